"""Compare a session with the oracle, role by role, on the same tokens and caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.rows.quadratic_layout import quadratic_layout
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Precision, Role

# Absolute error of a probability, and error of keys and values relative to their largest magnitude. fp32: sums of a few hundred
# products in another order. Half precision carries 11 bits, which a few layers of rounding reduce to about 7; bfloat16 has 8,
# three fewer. Quantised layers turn a rounding of fp32 into a step of the format wherever it decides between two steps.
TOLERANCES: dict[Precision, tuple[float, float]] = {
    Precision.FP32: (1e-4, 1e-4),
    Precision.FP16: (2e-2, 1e-2),
    Precision.BF16: (16e-2, 8e-2),
    Precision.FP8: (3e-1, 1e-1),
    Precision.NVFP4: (5e-1, 3e-1),
}


@dataclass(frozen=True, slots=True)
class RoleParity:
    """Largest differences of one role. `num_mismatches` counts positions, of `num_tokens`, with another token."""

    max_confidence_error: float
    max_cache_error: float
    num_mismatches: int
    num_tokens: int

    def is_within(self, precision: Precision) -> bool:
        """Whether only rounding separates the two; in half precision that may also decide between two equally likely tokens."""
        confidence, cache = TOLERANCES[precision]
        is_same = self.num_mismatches == 0 or precision is not Precision.FP32
        return is_same and self.max_confidence_error <= confidence and self.max_cache_error <= cache


def compare_sessions(session: Session, oracle: Session, token_ids: Sequence[int]) -> dict[Role, RoleParity]:
    """Run every role of `session` on both sessions, for as many rows of different length as it takes, two at most.

    Args:
        session: the one in question.
        oracle: the one that is right; has at least the same roles and limits.
        token_ids: at least four tokens of ordinary text.
    """
    if len(token_ids) < _LEAST_TOKENS:
        raise InvalidInputError("token_ids", f"{len(token_ids)} tokens", f"at least {_LEAST_TOKENS}")
    ids = np.asarray(token_ids, np.int64)[: min(session.limits.prefill_chunk, session.limits.max_seq_len - 1)]
    rows = min(2, session.limits.max_batch_size)
    return {role: _compare(session, oracle, role, np.stack([np.roll(ids, row) for row in range(rows)])) for role in Role
            if role in session.roles}  # fmt: skip


_LEAST_TOKENS = 4


def _compare(session: Session, oracle: Session, role: Role, ids: np.ndarray) -> RoleParity:
    """Prefill both with `ids` [B,S], the second row shorter by one token, and run one step of `role` behind it."""
    caches = [each.create_cache(len(ids)) for each in (session, oracle)]
    last = np.full(len(ids), ids.shape[1] - 1, np.int64) - np.arange(len(ids))
    outputs = [each.run(Role.PREFILL, ids, cache, last) for each, cache in zip((session, oracle), caches, strict=True)]
    length, num_written = 0, ids.shape[1]
    if role is not Role.PREFILL:
        step = _step_tokens(session, role, outputs[1].token)
        length, num_written = int(last.min()) + 1, step.shape[1]
        for cache in caches:
            cache.length[:] = last + 1
        layout = _step_layout(session, len(step)) if role.takes_layout else None
        pairs = zip((session, oracle), caches, strict=True)
        outputs = [each.run(role, step, cache, layout=layout) for each, cache in pairs]
    ours, right = outputs
    return RoleParity(
        float(np.abs(ours.confidence - right.confidence).max()),
        _cache_error(caches[0], caches[1], slice(length, length + num_written)),
        int((ours.token != right.token).sum()),
        right.token.size,
    )


def _step_tokens(session: Session, role: Role, seed: np.ndarray) -> np.ndarray:
    """The seeds [B,1] for a decode step; followed by masks for a bidirectional one, by ordinary tokens for verify, and by both
    for a quadratic one.
    """
    if role is Role.DECODE:
        return seed.copy()
    if role is Role.QUADRATIC:
        block = session.limits.quadratic_block_length
        heads = (seed + np.arange(block)) % session.model.vocab_size
        masks = np.full((len(seed), block * block), session.model.mask_token_id, np.int64)
        return np.concatenate([heads, masks], axis=1)
    rest = np.full((len(seed), session.limits.block_length - 1), session.model.mask_token_id, np.int64)
    if role.is_causal:
        rest[:] = seed + 1 + np.arange(rest.shape[1])
        rest %= session.model.vocab_size
    return np.concatenate([seed, rest], axis=1)


def _step_layout(session: Session, num_rows: int) -> StepLayout:
    """A group of masks behind every head."""
    block = session.limits.quadratic_block_length
    return StepLayout.stack([quadratic_layout(block, range(block), block)] * num_rows)


def _cache_error(ours: KVCache[Any], right: KVCache[Any], written: slice) -> float:
    """Largest difference in the slots all rows have written, relative to the largest magnitude of its layer."""
    errors = []
    for mine, oracle in zip([*ours.keys, *ours.values], [*right.keys, *right.values], strict=True):
        # Through torch: numpy has no bfloat16, and buffers may lie on a device.
        wanted, found = (torch.as_tensor(buffer)[:, :, written].float().cpu() for buffer in (oracle, mine))
        errors.append(float((found - wanted).abs().max() / wanted.abs().max()))
    return max(errors)
