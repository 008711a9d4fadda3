"""What the engine loop knows of a request that decodes: its next run, and how to give it the result.

A row knows no session, cache buffer, batch or clock, so any rows that want the same role and step length can run together,
whatever their modes and options, and each gives the tokens it would give alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


@dataclass(slots=True)
class RowOutput:
    """One row of a step's result. Views, valid until the next engine run.

    Attributes:
        token: int64 [S].
        confidence: float32 [S].
        logits: float32 [S,V] where the engines were built with sampling, None elsewhere.
    """

    token: np.ndarray
    confidence: np.ndarray
    logits: np.ndarray | None = None

    def behind(self, row: int) -> RowOutput:
        """The rows from `row` on."""
        return RowOutput(self.token[row:], self.confidence[row:], None if self.logits is None else self.logits[row:])


class RowDecoder(Protocol):
    """One request after its prefill. The next run is one of `role` over `step_length` tokens.

    `num_cached` tokens of the row are valid in the cache; the step goes behind them. After `absorb`, `moves` are (source,
    target) slots of the row to copy, in order: tokens that were computed elsewhere in the step than where they belong.
    """

    @property
    def sequence(self) -> Sequence: ...

    @property
    def num_cached(self) -> int: ...

    @property
    def role(self) -> Role: ...

    @property
    def step_length(self) -> int: ...

    @property
    def moves(self) -> tuple[tuple[int, int], ...]: ...

    def fill(self, ids: np.ndarray) -> StepLayout | None:
        """Write the tokens of the next run into `ids` int64 [S]; returns their layout if the role takes one."""
        ...

    def absorb(self, output: RowOutput) -> RowStep:
        """Take in the decisions of that run, and settle what the next one is. Not called once the sequence is finished."""
        ...
