"""What is written, matrix by matrix, and the streamed writer: memory holds one matrix at a time, whatever the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemodiff_trt.bundle.safetensors_layout import plan_spans
from nemodiff_trt.errors import CheckpointError, ExportError

# Rows are cast and copied in pieces of this size.
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Stored tensors that are made together.

    Args:
        tensors: dtype, as torch spells it, and shape by stored name.
        produce: yields (stored name, consecutive rows of it); each tensor comes whole before the next one.
    """

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    produce: Callable[[], Iterator[tuple[str, Tensor]]]


def plain_group(name: str, shape: tuple[int, ...], dtype: str, source: Callable[[], Tensor]) -> TensorGroup:
    """One tensor as it is, cast to `dtype`.

    Its production raises CheckpointError where a number does not fit `dtype`.
    """

    def produce() -> Iterator[tuple[str, Tensor]]:
        for rows in row_blocks(source()):
            cast = rows.to(getattr(torch, dtype))
            if cast.dtype != rows.dtype and not bool(torch.isfinite(cast).all()):
                raise CheckpointError(name, "a number beyond its range", f"numbers that {dtype} can hold; choose another dtype")
            yield name, cast

    return TensorGroup({name: (dtype, shape)}, produce)


def row_blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Consecutive rows of `tensor`, in pieces that are small beside a whole matrix."""
    row_bytes = tensor[:1].numel() * tensor.element_size()
    yield from torch.split(tensor, max(_BLOCK_BYTES // row_bytes, 1))


def write_groups(path: Path, groups: Iterable[TensorGroup], on_bytes: Callable[[int], None]) -> int:
    """Write a safetensors file and return its size in bytes.

    Args:
        path: of the file.
        groups: all of its tensors.
        on_bytes: told how many bytes of data are written.

    Raises:
        ExportError: a group produced other bytes than it announced.
    """
    groups = list(groups)
    head, spans = plan_spans({name: facts for group in groups for name, facts in group.tensors.items()})
    done = len(head)
    with path.open("wb") as file:
        file.write(head)
        for group in groups:
            ends = {name: spans[name].start for name in group.tensors}
            for name, rows in group.produce():
                file.seek(ends[name])
                # As bytes: numpy has neither bfloat16 nor float8. A scalar has no bytes to look at until it is a row.
                ends[name] += file.write(rows.reshape(-1).contiguous().view(torch.uint8).numpy().data)
            for name, end in ends.items():
                span = spans[name]
                if end != span.start + span.num_bytes:
                    raise ExportError(f"{name}: {end - span.start} bytes produced, {span.num_bytes} announced")
                done += span.num_bytes
            on_bytes(done)
    return done
