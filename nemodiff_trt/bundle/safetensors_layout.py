"""Plan and read the byte layout of a safetensors file (format: 8 bytes of header length, JSON header, data without holes).

The plan exists before any data does: engines refer to offsets of a weight file that is written later, piece by piece.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from nemodiff_trt.contract import ITEM_BYTES
from nemodiff_trt.errors import BundleError

# Two FP4 numbers a byte are plain bytes to the format.
_TO_SAFETENSORS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float4_e2m1fn_x2": "U8",
}
_FROM_SAFETENSORS = {code: name for name, code in _TO_SAFETENSORS.items()}
# A page: vector loads start aligned, and ONNX Runtime maps packed matrices only from starts that are multiples of 256.
_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """Place of one tensor: bytes `start .. start + num_bytes` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def plan_spans(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Span]]:
    """Header bytes and the place of each tensor, for `tensors` = name -> (dtype, shape).

    Tensors whose size is a multiple of a page come first, then of half a page and so on: every start is then aligned to a page
    or to the largest power of two that divides the tensor's size, without holes.
    """

    def granularity(name: str) -> int:
        dtype, shape = tensors[name]
        return math.gcd(Span(dtype, shape, 0).num_bytes, _ALIGNMENT)

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    relative: dict[str, Span] = {}
    offset = 0
    # sorted() is stable: within one granularity, tensors keep the order of their use.
    for name in sorted(tensors, key=granularity, reverse=True):
        dtype, shape = tensors[name]
        span = Span(dtype, shape, offset)
        header[name] = {
            "dtype": _TO_SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + span.num_bytes],
        }
        relative[name] = span
        offset += span.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: Span(span.dtype, span.shape, len(head) + span.start) for name, span in relative.items()}


def read_header(path: Path) -> dict[str, Span]:
    """Places of all tensors of the safetensors file at `path`.

    Raises:
        BundleError: the header is not readable or holds a format that no engine here reads.
    """
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            name: Span(_FROM_SAFETENSORS[raw["dtype"]], tuple(raw["shape"]), 8 + length + raw["data_offsets"][0])
            for name, raw in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path.name}: not a readable weight file ({error})") from error
