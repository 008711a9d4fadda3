"""What the audit needs of a plan's bytes: the texts in it, which are a small part of it, and a few counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

_START = b"header {"
# A program is text; anything longer than this is not one.
_MAX_TEXT_BYTES = 1 << 28
_NUMBER_BYTES = 8
# Written into a plan for a size that a kernel computes and the host has to know before it goes on.
_HOST_COPY = b"[DevicetoShapeHostCopy]"


@dataclass(frozen=True, slots=True)
class PlanText:
    """A text that may be a program, and the byte of the plan it starts at."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class PlanTexts:
    """Texts of a plan of `num_bytes`, and how many sizes its host reads back from the device."""

    num_bytes: int
    texts: tuple[PlanText, ...]
    num_host_copies: int

    @classmethod
    def of(cls, plan: bytes | mmap) -> PlanTexts:
        """Read a plan, all of it; any other bytes hold no text, or some that is no program."""
        return cls(len(plan), tuple(_texts(plan)), _count(plan, _HOST_COPY))


def _count(plan: bytes | mmap, mark: bytes) -> int:
    count, place = 0, plan.find(mark)
    while place >= 0:
        count, place = count + 1, plan.find(mark, place + len(mark))
    return count


def _texts(plan: bytes | mmap) -> Iterator[PlanText]:
    start = plan.find(_START)
    while start >= 0:
        body = start + len(_START)
        end = body
        if plan[body : body + 1].isspace():
            end = plan.find(b"\0", body)
            end = len(plan) if end < 0 else end
            if end - start <= _MAX_TEXT_BYTES:
                yield PlanText(start, _without_length(plan[start:end].decode("latin-1")))
        start = plan.find(_START, end)


def _without_length(text: str) -> str:
    """`text` up to its last line: a number in the plan's binary part follows, whose first bytes may be printable."""
    end = text.rfind("}\n") + 2
    return text[:end] if end >= 2 and len(text) - end < _NUMBER_BYTES else text
