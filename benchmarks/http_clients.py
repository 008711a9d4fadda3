"""`nemodiff serve` behind the protocol of the load generator: through the official client of the API, and over bare HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import openai
from load_generator import BrokenStreamError, Call, Piece, RefusedError

# What the API calls our options, for errors that name a field.
NAMES = {"max_new_tokens": ("max_tokens",), "prompt": ("prompt", "messages")}
_STANDARD = ("messages", "prompt", "max_tokens", "stream", "stop", "temperature", "top_p", "seed")


def body_of(call: Call) -> tuple[str, dict[str, Any]]:
    """Path below /v1 and body of a call."""
    options = dict(call.options)
    if "max_new_tokens" in options:
        options["max_tokens"] = options.pop("max_new_tokens")
    is_chat = isinstance(call.prompt, list) and isinstance(call.prompt[0], dict)
    place = {"messages": call.prompt} if is_chat else {"prompt": call.prompt}
    return ("chat/completions" if is_chat else "completions"), {**place, **options, "stream": True, "return_token_ids": True}


def piece_of(choice: dict[str, Any]) -> Piece:
    """What one chunk brings."""
    delta = choice.get("delta", {})
    text = choice.get("text", "") + delta.get("reasoning_content", "") + (delta.get("content") or "")
    ids = tuple(choice.get("token_ids") or ())
    reason = choice["nemodiff"]["finish_reason"] if choice.get("finish_reason") else None
    return Piece(text, len(ids), ids, reason)


class OpenAIClient:
    """The official client, as its users use it: what is not of the API goes into `extra_body`."""

    def __init__(self, url: str, api_key: str = "none", max_retries: int = 0) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=max_retries, timeout=120)

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        path, body = body_of(call)
        own = {name: body.pop(name) for name in _STANDARD if name in body}
        create: Any = self._client.chat.completions.create if path == "chat/completions" else self._client.completions.create
        try:
            async with await create(model=None, **own, extra_body=body) as chunks:
                async for chunk in chunks:
                    yield piece_of(chunk.choices[0].model_dump())
        except openai.APIStatusError as error:
            raise RefusedError(error.message) from error
        except openai.APIError as error:
            raise BrokenStreamError(str(error)) from error

    async def close(self) -> None:
        await self._client.close()


class BareClient:
    """One connection a request and as little work as possible, so that what is measured is the server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)

    async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        path, body = body_of(call)
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            data = json.dumps(body).encode()
            head = f"POST /v1/{path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode() + data)
            status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if status != b"200":
                raise RefusedError((await reader.read()).decode())
            async for event in _events(reader):
                yield piece_of(event["choices"][0])
        except (OSError, asyncio.IncompleteReadError) as error:
            raise BrokenStreamError(str(error)) from error
        finally:
            writer.close()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Objects of the data lines. The lines of the chunked encoding between them begin with no `data`."""
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            event = json.loads(line[len(b"data: ") :])
            if "error" in event:
                raise BrokenStreamError(event["error"]["message"])
            yield event
    raise BrokenStreamError("the connection was closed")
