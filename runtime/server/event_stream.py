"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nemodiff_trt.runtime.server.errors import ClientLeftError

Result = TypeVar("Result")
DONE = b"data: [DONE]\n\n"


def event_of(content: Mapping[str, Any]) -> bytes:
    """One event that carries a JSON object."""
    return b"data: " + json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Result of `work`, which is cancelled when the connection is closed. The body of the request has to be read before.

    Raises:
        ClientLeftError: the client left first.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeftError
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Sends pieces as they come. Whatever ends it closes their generator."""

    def __init__(self, first: bytes, pieces: AsyncGenerator[bytes, None], write_timeout_s: float) -> None:
        """Of a generator that gave its `first` piece: closing one that was never started would close nothing it holds.

        A client that takes no piece for `write_timeout_s` seconds counts as gone.
        """
        # Proxies must not gather pieces either.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(pieces, headers=headers, media_type="text/event-stream")
        self._first = first
        self._pieces = pieces
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces):
            try:
                await unless_client_leaves(receive, self._send_all(send))
            except (ClientLeftError, TimeoutError):
                scope["state"]["client_left"] = True

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send_piece(send, self._first)
        async for piece in self._pieces:
            await self._send_piece(send, piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, send: Send, piece: bytes) -> None:
        async with asyncio.timeout(self._write_timeout_s):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
