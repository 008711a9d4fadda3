"""A session that decides nothing but how far drafts are right, and whose clock advances by the predicted time of every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.full_size import full_size_config
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.planner import LatencyModel, Step
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.simulator.acceptance import AcceptanceProfile
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role

# Tokens tell the category of a request: the even id of a pair is what drafts guess, the odd one what verification corrects to.
_FIRST_TOKEN = 1000


def category_token(category: int) -> int:
    """The token of which prompts of a category are made."""
    return _FIRST_TOKEN + 2 * category


class SimulatedSession:
    """Runs `prefill`, `decode`, `draft` and `verify` on a clock, with a cache that has lengths and nothing else."""

    has_logits = False

    def __init__(
        self,
        latency: LatencyModel,
        limits: Limits,
        acceptance: Sequence[AcceptanceProfile],
        generator: np.random.Generator,
    ) -> None:
        """Start at time 0.

        Args:
            latency: of the device.
            limits: of the engines.
            acceptance: by category.
            generator: draws how many drafts are accepted.
        """
        self.now_s = 0.0
        # S of the latest run.
        self.last_step = 0
        self.roles = frozenset({Role.PREFILL, Role.DECODE, Role.DRAFT, Role.VERIFY})
        self._latency = latency
        self._limits = limits
        self._acceptance = acceptance
        self._generator = generator
        # Only special ids and the number of ids matter, and all published sizes share them.
        self._model = full_size_config("nemotron-labs-diffusion-8b")

    @property
    def model(self) -> ModelConfig:
        return self._model

    @property
    def limits(self) -> Limits:
        return self._limits

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        return KVCache([], [], np.zeros(batch_size + spare_rows, np.int64), self._limits.cache_capacity)

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,  # noqa: ARG002 - see Session; quadratic steps are not simulated
    ) -> StepOutput:
        """Advance the clock; arguments and output as of `Session.run`."""
        step = input_ids.shape[1]
        self.now_s += self._latency.ms(Step.of_run(role, input_ids, cache.length)) / 1e3
        self.last_step = step
        if role is Role.PREFILL:
            token = np.take_along_axis(input_ids, last_index[:, None], 1) if last_index is not None else input_ids[:, -1:]
        elif role is Role.VERIFY:
            token = self._verified(input_ids)
        else:
            token = np.repeat(_guess(input_ids[:, :1]), step, axis=1)
        return StepOutput(token, np.ones(token.shape, np.float32))

    def _verified(self, ids: np.ndarray) -> np.ndarray:
        """Every row agrees with its drafts up to the drawn number of them."""
        batch, step = ids.shape
        token = np.repeat(_guess(ids[:, :1]), step, axis=1)
        for row in range(batch):
            category = (int(token[row, 0]) - _FIRST_TOKEN) // 2
            # A row that only lies between others keeps ids of an earlier step, which may be of a prompt.
            if 0 <= category < len(self._acceptance):
                token[row, self._acceptance[category].draw(self._generator, step - 1)] += 1
        return token


def _guess(seeds: np.ndarray) -> np.ndarray:
    return seeds & ~1
