"""What decoding needs of an engine: run one step of a role on a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


@dataclass(slots=True)
class StepOutput:
    """Decisions of one step: `token` int64 and `confidence` float32, [B,S], or [B,1] for prefill.

    `logits` float32 [B,S,V], or [B,1,V], are what was decided from, where the session has them. All may be views of buffers a
    session owns, valid until its next run.
    """

    token: np.ndarray
    confidence: np.ndarray
    logits: np.ndarray | None = None


class Session(Protocol):
    """Runs the roles of one model. Not safe for use from several threads at once."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def roles(self) -> frozenset[Role]: ...

    @property
    def has_logits(self) -> bool:
        """Whether steps return logits: sampling needs them."""
        ...

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        """Empty cache of `limits.cache_capacity` slots for `batch_size` rows.

        Further `spare_rows` lie behind them, to copy rows to and from; no step runs on these.
        """
        ...

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        """Run one step and write its keys and values behind `cache.length`, which stays as it is.

        Args:
            role: one of `roles`.
            input_ids: int64 [B,S].
            cache: of B rows, made by this session; `cache.length[b] + S` must not exceed its capacity.
            last_index: int64 [B], for prefill only: the step token of each row whose successor is wanted.
            layout: for quadratic only: how the tokens of the step relate, [B,S] and [B,S,S].
        """
        ...
