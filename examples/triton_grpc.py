"""Stream an answer from a Triton server over gRPC (docs/triton.md). Needs `pip install 'tritonclient[grpc]'`.

python examples/triton_grpc.py "Count down from 103 to 28 in steps of 5." --address localhost:8001
"""

from __future__ import annotations

import argparse
import json
import queue
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput


def text_input(name: str, value: str) -> InferInput:
    tensor = InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], np.object_))
    return tensor


def integer_input(name: str, value: int) -> InferInput:
    tensor = InferInput(name, [1], "INT64")
    tensor.set_data_from_numpy(np.array([value], np.int64))
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--address", default="localhost:8001")
    parser.add_argument("--model", default="nemodiff")
    parser.add_argument("--mode", default="self_speculation")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    chat = json.dumps([{"role": "user", "content": arguments.prompt}])
    inputs = [
        text_input("messages", chat),
        text_input("mode", arguments.mode),
        integer_input("max_new_tokens", arguments.max_new_tokens),
    ]
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(arguments.address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer(arguments.model, inputs)
        reason = ""
        while not reason:
            result, error = responses.get()
            if error is not None:
                raise SystemExit(error.message())
            print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
            reason = result.as_numpy("finish_reason")[0].decode()
        print()
        answer = json.loads(result.as_numpy("stats")[0])["answer"]
        print(f"{answer['new_tokens']} tokens in {answer['forward_passes']} passes, ended by {reason}")
        # Leaving with a request open cancels it: stop_stream(cancel_requests=True) does so at once.
        client.stop_stream()


if __name__ == "__main__":
    main()
