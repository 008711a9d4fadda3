"""Many answers at once from a Triton server, with asyncio over gRPC; one of them is cancelled (docs/triton.md).

Needs `pip install 'tritonclient[grpc]'`.

python examples/triton_asyncio.py --address localhost:8001
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

PROMPTS = (
    "Count down from 103 to 28 in steps of 5.",
    "Write the receipt for 7 eggs at 5, 9 stamps at 6, 5 coins at 3.",
    "Sort by name: Ola, Zoe, Vic, Yara, Quin",
)


def tensor(name: str, value: str | int) -> InferInput:
    array = np.array([value.encode()], np.object_) if isinstance(value, str) else np.array([value], np.int64)
    found = InferInput(name, [1], "BYTES" if isinstance(value, str) else "INT64")
    found.set_data_from_numpy(array)
    return found


async def stream(client: InferenceServerClient, model: str, fields: dict[str, str | int]) -> AsyncIterator[str]:
    """Text of one answer as it comes; leaving early cancels the request."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": [tensor(name, value) for name, value in fields.items()]}

    responses = client.stream_infer(requests())
    try:
        async for result, error in responses:
            if error is not None:
                raise RuntimeError(error.message())
            yield result.as_numpy("text_output")[0].decode()
    finally:
        responses.cancel()


async def answer(client: InferenceServerClient, model: str, prompt: str) -> str:
    chat = json.dumps([{"role": "user", "content": prompt}])
    return "".join([text async for text in stream(client, model, {"messages": chat, "max_new_tokens": 96})])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="localhost:8001")
    parser.add_argument("--model", default="nemodiff")
    arguments = parser.parse_args()
    async with InferenceServerClient(arguments.address) as client:
        tasks = [asyncio.create_task(answer(client, arguments.model, prompt)) for prompt in PROMPTS]
        leaving = stream(client, arguments.model, {"text_input": PROMPTS[0], "mode": "ar", "max_new_tokens": 500})
        async for text in leaving:
            print(f"cancelled after {text!r}")
            break
        await leaving.aclose()  # type: ignore[attr-defined]
        for prompt, text in zip(PROMPTS, await asyncio.gather(*tasks), strict=True):
            print(f"{prompt!r} -> {text!r}")


if __name__ == "__main__":
    asyncio.run(main())
