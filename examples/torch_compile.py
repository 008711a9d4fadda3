"""The project's passes as a torch.compile backend: the eager decoder of nemodiff-tiny, compiled, against itself.

Prints how far the two are apart and how their step times compare. Wants a C++ compiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint

CAPACITY, STEP, REPEATS = 256, 16, 50


def milliseconds(run: Callable[[], object]) -> float:
    """Median time of `run` once it is warm."""
    run()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times)[REPEATS // 2]


def main() -> None:
    decoder = Checkpoint.open(resolve_checkpoint("nemodiff-tiny")).load_decoder(CAPACITY, torch.float32, adapter=False)
    compiled = torch.compile(decoder, backend="nemodiff", dynamic=True)
    config = decoder.config
    shape = (1, config.num_key_value_heads, CAPACITY, config.head_dim)
    keys, values = ([torch.zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2))
    ids, length = torch.randint(101, config.vocab_size, (1, STEP)), torch.zeros(1, dtype=torch.int64)

    def step(model: Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]]) -> Tensor:
        with torch.inference_mode():
            return model(ids, length, keys, values)[0]

    difference = (step(compiled) - step(decoder)).abs().max().item()
    plain, fast = milliseconds(lambda: step(decoder)), milliseconds(lambda: step(compiled))
    print(f"largest difference of a logit {difference:.1e}; a compiled step takes {fast / plain:.2f} of the eager time (CPU)")


if __name__ == "__main__":
    main()
