"""The analysis along one answer: its blocks denoised serially, each of them compacted, over a session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.errors import NemodiffError
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.speed_of_light.compaction import Compaction, compact
from nemodiff_trt.runtime.speed_of_light.greedy import GreedyBound, greedy_bound
from nemodiff_trt.runtime.speed_of_light.serial import Denoise, SerialTrajectory, SpecialTokens, serial_denoise
from nemodiff_trt.vocabulary import Role


@dataclass(frozen=True, slots=True)
class BlockAnalysis:
    """One block of an answer, in the three ways. `refreshes` is 1 if the cache had to be written for a block behind it."""

    trajectory: SerialTrajectory
    greedy: GreedyBound
    compaction: Compaction
    refreshes: int

    @property
    def exact_greedy_steps(self) -> int:
        """Of greedy acceptance, or serial ones where it does not end in the target."""
        return self.greedy.num_steps if self.greedy.is_exact else len(self.trajectory.steps)

    @property
    def tokens(self) -> list[int]:
        """The seed and the tokens behind it that belong to the answer."""
        return [int(token) for token in self.trajectory.target[: self.trajectory.num_needed]]


def analyse_answer(
    session: Session, prompt: Sequence[int], block_length: int, max_new_tokens: int, budget: int
) -> Iterator[BlockAnalysis]:
    """Blocks of the serial target's answer to `prompt`, until an EOS or `max_new_tokens`.

    Blocks are whole: the last one may go beyond the limit. A seed that is an EOS belongs to no block.

    Args:
        session: with the roles of mode diffusion.
        prompt: token ids, at least one.
        block_length: seed and masks of a block.
        max_new_tokens: no block begins at or behind this token.
        budget: forwards that the simulations of a block may take.

    Raises:
        NemodiffError: compaction did not end in the serial target, which would be a defect here or in the session.
    """
    cache = session.create_cache(1)
    special = SpecialTokens(session.model.mask_token_id, session.model.eos_token_id)
    seed, num_tokens = _prefill(session, cache, prompt), 0
    while seed != special.eos and num_tokens < max_new_tokens and _has_room(session, cache, block_length):
        block = np.full(block_length, special.mask, np.int64)
        block[0] = seed
        denoise = remembered(session_denoise(session, cache))
        trajectory = serial_denoise(denoise, block, special)
        compaction = compact(denoise, block, trajectory, special, budget)
        if not trajectory.is_reached_by(compaction.block):
            raise NemodiffError(f"compaction ended in {compaction.block.tolist()}, not in {trajectory.target.tolist()}")
        greedy = greedy_bound(denoise, block, trajectory, special)
        num_tokens += trajectory.num_needed
        is_last = special.eos in trajectory.target[: trajectory.num_needed]
        yield BlockAnalysis(trajectory, greedy, compaction, refreshes=int(not is_last))
        if is_last:
            return
        seed = int(session.run(Role.VERIFY, trajectory.target[None], cache).token[0, -1])
        cache.length[0] += block_length


def session_denoise(session: Session, cache: KVCache[Any]) -> Denoise:
    """Decisions of role denoise behind the one row of `cache`, as arrays that later runs leave alone."""

    def denoise(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = session.run(Role.DENOISE, block[None], cache)
        return output.token[0].copy(), output.confidence[0].copy()

    return denoise


def remembered(denoise: Denoise) -> Denoise:
    """`denoise` that runs every block once: simulations come by the same blocks again and again."""
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def once(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = block.tobytes()
        if key not in known:
            known[key] = denoise(block)
        return known[key]

    return once


def _has_room(session: Session, cache: KVCache[Any], block_length: int) -> bool:
    return int(cache.length[0]) + block_length <= session.limits.max_seq_len


def _prefill(session: Session, cache: KVCache[Any], prompt: Sequence[int]) -> int:
    """Write `prompt` into the cache; returns the token behind it."""
    chunk, token = session.limits.prefill_chunk, 0
    for begin in range(0, len(prompt), chunk):
        ids = np.array([prompt[begin : begin + chunk]], np.int64)
        output = session.run(Role.PREFILL, ids, cache, last_index=np.array([ids.shape[1] - 1], np.int64))
        token = int(output.token[0, 0])
        cache.length[0] += ids.shape[1]
    return token
