"""The engine of this process behind the protocol of the load generator: what servers are compared with."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from load_generator import BrokenStreamError, Call, Piece, RefusedError

from nemodiff_trt.errors import BusyError, EngineStoppedError, InvalidInputError
from nemodiff_trt.runtime.engine import AsyncTriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions


class InProcessClient:
    """Calls an engine without a server in between."""

    def __init__(self, serving: AsyncTriModeEngine) -> None:
        self._serving = serving

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        try:
            options = GenerationOptions().changed(**call.options)
            # Left to the garbage collector, a stream would be cancelled only some time after its reader has left.
            async with aclosing(self._serving.stream(call.prompt, options)) as events:
                async for event in events:
                    reason = None if event.result is None else str(event.result.finish_reason)
                    yield Piece(event.text, len(event.token_ids), event.token_ids, reason)
        except (InvalidInputError, BusyError) as error:
            raise RefusedError(str(error)) from error
        except EngineStoppedError as error:
            raise BrokenStreamError(str(error)) from error
