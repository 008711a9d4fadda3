"""Stream an answer from a Triton server over HTTP, with nothing but the standard library (docs/triton.md).

python examples/triton_http.py "Count down from 103 to 28 in steps of 5." --address localhost:8000
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--address", default="localhost:8000")
    parser.add_argument("--model", default="nemodiff")
    parser.add_argument("--mode", default="self_speculation")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    fields = {
        # A tensor holds a text, so the chat travels as one.
        "messages": json.dumps([{"role": "user", "content": arguments.prompt}]),
        "mode": arguments.mode,
        "max_new_tokens": arguments.max_new_tokens,
    }
    url = f"http://{arguments.address}/v2/models/{arguments.model}/generate_stream"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(fields).encode())) as reply:
            # Closing the connection cancels the request.
            for line in reply:
                if not line.startswith(b"data: "):
                    continue
                content = json.loads(line[len(b"data: ") :])
                print(content["text_output"], end="", flush=True)
                if content["finish_reason"]:
                    answer = json.loads(content["stats"])["answer"]
                    print(f"\n{answer['new_tokens']} tokens in {answer['forward_passes']} passes")
    except urllib.error.HTTPError as error:
        raise SystemExit(json.loads(error.read().removeprefix(b"data: "))["error"]) from error


if __name__ == "__main__":
    main()
