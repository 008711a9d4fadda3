"""Parts of the output: one file for each shard, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nemodiff_trt.errors import BatchError
from nemodiff_trt.runtime.batch.atomic_file import write_lines
from nemodiff_trt.runtime.batch.input_file import RawRow, Shard


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over answered rows; `forward_passes` counts those of every answer, also where answers shared one."""

    rows: int = 0
    bad_rows: int = 0
    new_tokens: int = 0
    forward_passes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.bad_rows + other.bad_rows,
            self.new_tokens + other.new_tokens,
            self.forward_passes + other.forward_passes,
        )


def part_path(folder: Path, shard: Shard) -> Path:
    """Where the answers to `shard` are, once they are all there."""
    return folder / f"part-{shard.index:05d}.jsonl"


def write_part(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Publish the answers to a shard, in the order of its rows.

    Raises:
        BatchError: the disk refused.
    """
    try:
        write_lines(path, (json.dumps(answer, allow_nan=False).encode() + b"\n" for answer in answers))
    except OSError as error:
        raise BatchError(f"cannot write {path}: {error.strerror}") from error


def read_part(path: Path, rows: Sequence[RawRow]) -> Iterator[tuple[bytes, Totals]]:
    """Lines of a part with what each adds to the totals, compared with the rows that they answer.

    Raises:
        BatchError: the file cannot be read; an answer is missing, doubled, out of order or damaged.
    """
    try:
        with path.open("rb") as file:
            for row, line in zip_longest(rows, file):
                yield line, _totals_of(path, row, line)
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {error.strerror}") from error


def check_part(path: Path, rows: Sequence[RawRow]) -> Totals:
    """Totals of a part that answers `rows`; errors as for `read_part`."""
    return sum((totals for _, totals in read_part(path, rows)), Totals())


def _totals_of(path: Path, row: RawRow | None, line: bytes | None) -> Totals:
    advice = "remove the file to have these rows answered again"
    if row is None or line is None:
        problem = "has answers to no row" if row is None else f"ends before row {row.index}"
        raise BatchError(f"{path} {problem}; {advice}")
    try:
        answer = json.loads(line)
        is_right = line.endswith(b"\n") and (answer["index"], answer["key"]) == (row.index, row.key)
        is_bad = "error" in answer
        stats = {} if is_bad else answer["stats"]
    except (ValueError, KeyError, TypeError) as error:
        raise BatchError(f"{path} is damaged where row {row.index} should be ({error}); {advice}") from error
    if not is_right:
        raise BatchError(f"{path} has another answer where that to row {row.index} should be; {advice}")
    return Totals(1, int(is_bad), stats.get("new_tokens", 0), stats.get("forward_passes", 0))
