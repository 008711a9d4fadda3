"""Self-speculation whose cycles never leave the device: draft, verify, accept and the next block as one launch.

One small read a cycle tells the host what was emitted. The rules are those of `rows/self_speculation.py` with a draft of one
pass; a thinking budget or a draft of several passes needs the host between two runs, so neither is possible here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.plugins.accept_draft import accept_draft_reference
from nemodiff_trt.plugins.next_block import next_block_reference
from nemodiff_trt.runtime.device_steps import DeviceSession, Work
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.vocabulary import Role

_INT64_BYTES = 8
# Behind the emitted tokens of a row: their number, accepted drafts, cache length, tokens left.
_NUM_FACTS = 4


@dataclass(frozen=True, slots=True)
class CycleOperators:
    """The two decisions of a cycle, with the arguments of `nemodiff::next_block` and `nemodiff::accept_draft`."""

    next_block: Callable[..., Tensor] = next_block_reference
    accept_draft: Callable[..., tuple[Tensor, ...]] = accept_draft_reference


@dataclass(frozen=True, slots=True)
class RowCycle:
    """What one cycle did for a row: tokens emitted, how many of them were drafts, whether the row goes on."""

    emitted: list[int]
    accepted: int
    is_finished: bool


class DeviceSpeculation:
    """Greedy self-speculation of a batch on one cache."""

    def __init__(
        self,
        session: DeviceSession,
        cache: KVCache[Any],
        block_length: int,
        end_token_ids: Sequence[int] = (),
        operators: CycleOperators | None = None,
    ) -> None:
        """Bind the steps of a cycle.

        Args:
            session: with the roles draft and verify.
            cache: of B rows, made by the session.
            block_length: S, seed and drafts of a cycle, 2 to the built maximum.
            end_token_ids: the first one emitted ends a row and stays in its answer.
            operators: how cycles decide; None for plain torch.

        Raises:
            InvalidInputError: `block_length` is out of range, or the session lacks a role.
        """
        if not 2 <= block_length <= session.limits.block_length:
            raise InvalidInputError("block_length", block_length, f"2 to {session.limits.block_length}")
        self._session, self._cache, self._block_length = session, cache, block_length
        self._operators = operators or CycleOperators()
        self._steps = tuple(session.device_step(role, block_length, cache) for role in (Role.DRAFT, Role.VERIFY))
        batch = cache.batch_size
        self._block = self._allocate(batch, block_length)
        # Seed, cache length and tokens left of every row.
        self._state = self._allocate(3, batch)
        self._report = self._allocate(batch, block_length + _NUM_FACTS)
        self._host_report = session.queue.pinned(self._report.numel() * _INT64_BYTES).view(torch.int64).view(self._report.shape)
        # -1 is no token; an engine takes no empty tensor.
        ends = torch.tensor(list(end_token_ids) or [-1], dtype=torch.int64)
        self._ends = self._allocate(1, len(ends))[0]
        session.queue.copy(self._ends, ends)
        session.queue.synchronize()
        self._run: Work | None = None

    def decode(self, seeds: Sequence[int], max_new_tokens: Sequence[int]) -> Iterator[list[RowCycle]]:
        """Run cycles until all rows are finished, and set `cache.length` after each.

        Args:
            seeds: first token of every answer, emitted already and not in the cache. `cache.length` counts the prompts.
            max_new_tokens: tokens that every row may emit beyond its seed; 0 for a row to leave alone.

        Yields:
            One entry a row. A row that was finished before emits nothing.

        Raises:
            InvalidInputError: not one seed and one limit a row, or a row does not fit the cache.
        """
        state = self._initial_state(seeds, max_new_tokens)
        queue = self._session.queue
        queue.copy(self._state, torch.from_numpy(state))
        queue.synchronize()
        left = state[2]
        while left.any():
            self._run_cycle()
            report = self._host_report.numpy()
            count, accepted, length, left = (report[:, self._block_length + fact].copy() for fact in range(_NUM_FACTS))
            self._cache.length[:] = length
            rows = zip(report.tolist(), count.tolist(), accepted.tolist(), (left == 0).tolist(), strict=True)
            yield [RowCycle(row[:emitted], drafts, is_finished) for row, emitted, drafts, is_finished in rows]

    def _initial_state(self, seeds: Sequence[int], max_new_tokens: Sequence[int]) -> np.ndarray:
        batch, cache = self._cache.batch_size, self._cache
        if len(seeds) != batch or len(max_new_tokens) != batch:
            raise InvalidInputError("seeds", f"{len(seeds)} and {len(max_new_tokens)} limits", f"one a row, {batch}")
        if min(max_new_tokens) < 0:
            raise InvalidInputError("max_new_tokens", min(max_new_tokens), "an integer of at least 0")
        state = np.stack([np.asarray(seeds, np.int64), cache.length, np.asarray(max_new_tokens, np.int64)])
        longest = int((state[1] + state[2]).max())
        # Every row takes part in every cycle, so that a finished one has to have room for a block as well.
        if longest + self._block_length > cache.capacity:
            allowed = f"at most {cache.capacity - self._block_length} tokens with the prompt"
            raise InvalidInputError("max_new_tokens", longest, allowed)
        return state

    def _run_cycle(self) -> None:
        """The first cycle runs as it is, which warms it up; it is then captured for all others."""
        if self._run is None:
            self._enqueue_cycle()
            self._session.queue.synchronize()
            self._run = self._session.capture(self._enqueue_cycle, self._steps)
            return
        self._run()
        self._session.queue.synchronize()

    def _enqueue_cycle(self) -> None:
        queue, (draft, verify) = self._session.queue, self._steps
        queue.enqueue(self._fill_draft)
        draft.launch()
        queue.enqueue(self._fill_verify)
        verify.launch()
        queue.enqueue(self._accept)
        queue.copy(self._host_report, self._report)

    def _fill_draft(self) -> None:
        seed, length, _ = self._state
        draft = self._steps[0]
        self._block.copy_(self._operators.next_block(seed, self._block_length, self._session.model.mask_token_id))
        draft.input_ids.copy_(self._block)
        draft.cache_length.copy_(length)

    def _fill_verify(self) -> None:
        draft, verify = self._steps
        self._block[:, 1:] = draft.token[:, 1:]
        verify.input_ids.copy_(self._block)
        verify.cache_length.copy_(self._state[1])

    def _accept(self) -> None:
        _, length, left = self._state
        verified = self._steps[1].token
        results = self._operators.accept_draft(self._block, verified, length, left, self._ends)
        accepted, emitted, count, next_seed, next_length, next_left = results
        self._report[:, : self._block_length] = emitted
        self._report[:, self._block_length :] = torch.stack((count, accepted, next_length, next_left), 1)
        self._state.copy_(torch.stack((next_seed, next_length, next_left)))

    def _allocate(self, rows: int, columns: int) -> Tensor:
        """int64 [rows,columns] where the session's steps run."""
        return self._session.queue.zeros(rows * columns * _INT64_BYTES).view(torch.int64).view(rows, columns)
