"""The input: a JSONL file that is read in shards, by byte offset, so that nobody holds more than one of them.

A row is a line that is not empty. Rows are numbered from 0, lines from 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemodiff_trt.errors import BatchError, InvalidInputError

# Hexadecimal digits of a row's key: 64 bits tell any two lines of a file apart.
_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file."""

    index: int
    line: int
    content: bytes

    @property
    def key(self) -> str:
        """Digest of the content, which an answer carries, so that it can be matched with its row."""
        return hashlib.sha256(self.content).hexdigest()[:_KEY_DIGITS]


@dataclass(frozen=True, slots=True)
class Shard:
    """Neighbouring rows that one worker answers together.

    Attributes:
        index: of the shard, from 0.
        first_row: index of its first row.
        first_line: line of that row.
        num_rows: rows in it.
        offset: bytes of the file before it.
        num_bytes: bytes from its first line to its last, empty lines between them included.
        sha256: of these bytes.
    """

    index: int
    first_row: int
    first_line: int
    num_rows: int
    offset: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file, its digest and its shards."""

    path: Path
    sha256: str
    num_rows: int
    shards: tuple[Shard, ...]

    @classmethod
    def scan(cls, path: Path, shard_size: int) -> InputFile:
        """Read the file once and split it into shards of `shard_size` rows; the last one may be smaller.

        Raises:
            InvalidInputError: the file cannot be read or has no row, or `shard_size` is not positive.
        """
        if shard_size < 1:
            raise InvalidInputError("shard-size", shard_size, "an integer of at least 1")
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                shards = tuple(_split(_hashed(file, digest), shard_size))
        except OSError as error:
            raise InvalidInputError("input", str(path), f"a readable file ({error.strerror})") from error
        if not shards:
            raise InvalidInputError("input", str(path), "at least one line that is not empty")
        return cls(path, digest.hexdigest(), sum(shard.num_rows for shard in shards), shards)

    def rows(self, shard: Shard) -> list[RawRow]:
        """Rows of one shard; errors as for `read_rows`."""
        return read_rows(self.path, shard)


def read_rows(path: Path, shard: Shard) -> list[RawRow]:
    """Rows of `shard` of the file at `path`.

    Raises:
        BatchError: the file cannot be read, or its bytes are not those that were scanned.
    """
    try:
        with path.open("rb") as file:
            file.seek(shard.offset)
            content = file.read(shard.num_bytes)
    except OSError as error:
        raise BatchError(f"{path} cannot be read here: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise BatchError(f"{path} has changed since the job was started, at or after line {shard.first_line}")
    lines = enumerate(content.split(b"\n"), start=shard.first_line)
    kept = [(line, text.strip()) for line, text in lines if text.strip()]
    return [RawRow(shard.first_row + place, line, text) for place, (line, text) in enumerate(kept)]


def _hashed(lines: Iterator[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for line in lines:
        digest.update(line)
        yield line


def _split(lines: Iterator[bytes], shard_size: int) -> Iterator[Shard]:
    opened: _OpenShard | None = None
    offset = row = index = 0
    for number, line in enumerate(lines, start=1):
        has_row = bool(line.strip())
        if has_row and opened is not None and opened.num_rows == shard_size:
            yield opened.close(index)
            index, opened = index + 1, None
        if has_row and opened is None:
            opened = _OpenShard(row, number, offset)
        if opened is not None:
            opened.add(line, has_row)
        offset += len(line)
        row += has_row
    if opened is not None:
        yield opened.close(index)


class _OpenShard:
    """A shard that rows are still added to. Empty lines wait: only those before another row belong to it."""

    __slots__ = ("_digest", "_first", "_num_bytes", "_waiting", "num_rows")

    def __init__(self, first_row: int, first_line: int, offset: int) -> None:
        self._first = (first_row, first_line, offset)
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._waiting: list[bytes] = []
        self.num_rows = 0

    def add(self, line: bytes, has_row: bool) -> None:
        self._waiting.append(line)
        if has_row:
            for each in self._waiting:
                self._digest.update(each)
                self._num_bytes += len(each)
            self._waiting.clear()
            self.num_rows += 1

    def close(self, index: int) -> Shard:
        row, line, offset = self._first
        return Shard(index, row, line, self.num_rows, offset, self._num_bytes, self._digest.hexdigest())
