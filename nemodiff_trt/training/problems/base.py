"""What a generated problem is, and how a text is graded against it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

# One prompt in sixteen is held out, chosen by its own text: no training run can have seen it, whatever its seed.
HELD_OUT_MODULUS = 16


class Split(StrEnum):
    """Which problems a training run may see."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt with its only right answer.

    Args:
        category: name of the generator.
        prompt: what the user says.
        answer: the reference reply, working included.
        reasoning: working that goes between the think tags; empty when the problem is asked without thinking.
    """

    category: str
    prompt: str
    answer: str
    reasoning: str = ""

    @property
    def thinking(self) -> bool:
        return bool(self.reasoning)

    @property
    def split(self) -> Split:
        digest = hashlib.sha256(self.prompt.encode()).digest()
        return Split.HELD_OUT if digest[0] % HELD_OUT_MODULUS == 0 else Split.TRAIN

    def is_correct(self, reply: str) -> bool:
        """Exact match of the final reply, after the think block if there is one."""
        return reply.rpartition("</think>")[2].strip() == self.answer.strip()


Generator = Callable[[random.Random], Problem]


@dataclass(frozen=True, slots=True)
class Category:
    """A generator, and its share of a training mix relative to the others."""

    name: str
    generate: Generator
    weight: float


def join_lines(*lines: str) -> str:
    """Lines of an answer as one text, no newline at the end."""
    return "\n".join(lines)
