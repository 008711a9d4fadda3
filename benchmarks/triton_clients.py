"""The clients of Triton behind the protocol of the load generator: gRPC streaming and HTTP generate_stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import grpc
import numpy as np
import tritonclient.grpc.aio as grpc_aio
from load_generator import BrokenStreamError, Call, Piece, RefusedError
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

# What the inputs of the server are called where options have another name.
NAMES: Mapping[str, tuple[str, ...]] = {"prompt": ("text_input", "messages", "input_ids")}
_DTYPES = {bool: ("BOOL", np.bool_), int: ("INT64", np.int64), float: ("FP64", np.float64)}
# Inputs that are floating-point numbers, which a client may well write as integers.
_NUMBERS = frozenset({"threshold", "temperature", "top_p", "min_p", "timeout_s"})


def fields_of(call: Call) -> dict[str, Any]:
    """Inputs of the model as plain values."""
    if isinstance(call.prompt, str):
        prompt: dict[str, Any] = {"text_input": call.prompt}
    elif call.prompt and isinstance(call.prompt[0], Mapping):
        prompt = {"messages": json.dumps(call.prompt)}
    else:
        prompt = {"input_ids": list(call.prompt)}
    return {**prompt, **call.options}


def tensors_of(fields: Mapping[str, Any]) -> list[InferInput]:
    """Inputs as tensors of the types in `config.pbtxt`."""
    tensors = []
    for name, value in fields.items():
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        kind = float if name in _NUMBERS else type(items[0])
        dtype, numpy_type = _DTYPES.get(kind, ("BYTES", np.object_))
        tensor = InferInput(name, [len(items)], dtype)
        tensor.set_data_from_numpy(np.array([item.encode() if isinstance(item, str) else item for item in items], numpy_type))
        tensors.append(tensor)
    return tensors


class GrpcClient:
    """One channel; every call is a stream of its own on it."""

    def __init__(self, address: str, model: str) -> None:
        self._client = grpc_aio.InferenceServerClient(address)
        self._model = model

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": self._model, "inputs": tensors_of(fields_of(call)), "request_id": str(call.number)}

        responses = self._client.stream_infer(requests())
        has_piece = has_end = False
        try:
            async for result, error in responses:
                if error is not None:
                    raise _error_of(error.message(), has_piece)
                reason = result.as_numpy("finish_reason")[0].decode()
                ids = result.as_numpy("token_ids").tolist()
                has_piece, has_end = True, bool(reason)
                yield Piece(result.as_numpy("text_output")[0].decode(), len(ids), tuple(ids), reason or None)
        except (InferenceServerException, grpc.RpcError) as error:
            raise BrokenStreamError(str(error)) from error
        finally:
            if not has_end:
                responses.cancel()

    async def close(self) -> None:
        await self._client.close()


class HttpClient:
    """Server-sent events of generate_stream."""

    def __init__(self, address: str, model: str) -> None:
        self._url = f"http://{address}/v2/models/{model}/generate_stream"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 22
        )

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        has_piece = False
        try:
            async with self._session.post(self._url, json=fields_of(call)) as reply:
                if reply.status != 200:
                    # The server's own refusals are JSON, those of the model an event.
                    raise RefusedError(json.loads((await reply.text()).removeprefix("data: "))["error"])
                async for line in reply.content:
                    if not line.startswith(b"data: "):
                        continue
                    content = json.loads(line[6:])
                    if "error" in content:
                        raise _error_of(content["error"], has_piece)
                    # A tensor of one element is written without brackets.
                    ids = content["token_ids"] if isinstance(content["token_ids"], list) else [content["token_ids"]]
                    has_piece = True
                    yield Piece(content["text_output"], len(ids), tuple(ids), content["finish_reason"] or None)
        except aiohttp.ClientError as error:
            raise BrokenStreamError(str(error)) from error

    async def close(self) -> None:
        await self._session.close()


def _error_of(message: str, has_piece: bool) -> Exception:
    """An answer that has begun is broken by an error; before that, the request was refused."""
    return BrokenStreamError(message) if has_piece else RefusedError(message)
