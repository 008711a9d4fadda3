"""One safetensors file: everything about it from its header, its data memory-mapped on first access.

Format: https://huggingface.co/docs/safetensors. 8 bytes little-endian header size, a JSON header with dtype, shape and
`data_offsets` of each tensor, then the data without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from nemodiff_trt.errors import CheckpointError

FLOAT_DTYPES: dict[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# What a quantised checkpoint holds beside them: two NVFP4 codes a byte, FP8 numbers and block scales.
PACKED_DTYPES: dict[str, torch.dtype] = {"U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn}
_DTYPES = FLOAT_DTYPES | PACKED_DTYPES
_SIZE_BYTES = 8
# The format's own limit; without it a damaged size field asks for any amount of memory.
_MAX_HEADER_BYTES = 100_000_000
_MIB = 1 << 20
# Up to this size a fingerprint reads every byte (a fraction of a second); beyond, one page of every MiB.
_FULL_FINGERPRINT_BYTES = 256 * _MIB
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Header entry of one tensor; `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file whose header was read and checked against the size of the file. No data is read until `tensor`."""

    __slots__ = ("_mapping", "entries", "header", "num_bytes", "path")

    def __init__(self, path: Path, entries: dict[str, TensorEntry], header: bytes, num_bytes: int) -> None:
        self.path = path
        self.entries = entries
        self.header = header
        self.num_bytes = num_bytes
        self._mapping: Tensor | None = None

    @classmethod
    def open(cls, path: Path, dtypes: Mapping[str, torch.dtype] = FLOAT_DTYPES) -> TensorFile:
        """Read the header.

        Args:
            path: of the file.
            dtypes: those that its tensors may have.

        Raises:
            CheckpointError: the file is missing, truncated, longer than its header says, or no safetensors file.
        """
        try:
            num_bytes = path.stat().st_size
            with path.open("rb") as file:
                size_field = file.read(_SIZE_BYTES)
                header_bytes = int.from_bytes(size_field, "little")
                if len(size_field) < _SIZE_BYTES or header_bytes > min(_MAX_HEADER_BYTES, num_bytes - _SIZE_BYTES):
                    raise CheckpointError(
                        path.name, f"{num_bytes} bytes", "a whole safetensors file; it is truncated or damaged"
                    )
                header = file.read(header_bytes)
        except OSError as error:
            raise CheckpointError(path.name, str(path), f"a readable file ({error.strerror})") from error
        entries = _parse_header(path.name, header, dtypes)
        needed = max((entry.end for entry in entries.values()), default=_SIZE_BYTES + header_bytes)
        if num_bytes != needed:
            state = "truncated" if num_bytes < needed else "longer than its header says"
            raise CheckpointError(path.name, f"{num_bytes} bytes", f"{needed} bytes; the file is {state}")
        return cls(path, entries, header, num_bytes)

    def tensor(self, name: str) -> Tensor:
        """View of the memory-mapped data in the stored dtype. Writing to it changes private memory, never the file."""
        if self._mapping is None:
            self._mapping = torch.from_file(str(self.path), shared=False, size=self.num_bytes, dtype=torch.uint8)
        entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        data = self._mapping[entry.start : entry.end]
        # Writers align the data; one that does not costs a copy of the tensor.
        aligned = data if entry.start % dtype.itemsize == 0 else data.clone()
        return aligned.view(dtype).view(entry.shape)

    def fingerprint(self) -> str:
        """SHA-256 of header and data: of every byte up to 256 MiB, of one 4 KiB page in each MiB of a larger file."""
        digest = hashlib.sha256(self.header)
        with self.path.open("rb") as file:
            for offset, length in self._fingerprint_spans():
                file.seek(offset)
                digest.update(file.read(length))
        return digest.hexdigest()

    def _fingerprint_spans(self) -> Iterator[tuple[int, int]]:
        length = _MIB if self.num_bytes <= _FULL_FINGERPRINT_BYTES else _PAGE_BYTES
        for offset in range(_SIZE_BYTES + len(self.header), self.num_bytes, _MIB):
            yield offset, length
        # The end of the file, so that an append or a late edit of a sampled file is seen.
        yield max(0, self.num_bytes - _PAGE_BYTES), _PAGE_BYTES


def _parse_header(file_name: str, header: bytes, dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorEntry]:
    try:
        content = json.loads(header, object_pairs_hook=_unique_keys)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(file_name, f"a header of {len(header)} bytes", f"valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(file_name, type(content).__name__, "a header that is a JSON object")
    data_start = _SIZE_BYTES + len(header)
    named = {name: raw for name, raw in content.items() if name != "__metadata__"}
    entries = {name: _parse_entry(file_name, name, raw, data_start, dtypes) for name, raw in named.items()}
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise CheckpointError(
                name, f"data at byte {entry.start} of {file_name}", f"byte {position}, without gap or overlap"
            )
        position = entry.end
    return entries


def _parse_entry(file_name: str, name: str, raw: Any, data_start: int, dtypes: Mapping[str, torch.dtype]) -> TensorEntry:
    """Check one header entry.

    Raises:
        CheckpointError: it is malformed, of a dtype that is not read, or its byte range does not fit its shape.
    """
    if not isinstance(raw, dict):
        raise CheckpointError(name, raw, f"an entry with dtype, shape and data_offsets in the header of {file_name}")
    dtype, shape, offsets = raw.get("dtype"), raw.get("shape"), raw.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise CheckpointError(name, f"dtype {dtype}", ", ".join(dtypes))
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(name, raw, f"a shape and two data_offsets of whole numbers in the header of {file_name}")
    start, end = offsets
    num_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - start != num_bytes:
        raise CheckpointError(name, f"{end - start} bytes in {file_name}", f"{num_bytes} bytes for {dtype} {shape}")
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + end)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is given twice")
    return content
