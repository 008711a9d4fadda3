"""Dynamic compaction: the fewest steps found in which an oracle reaches exactly the serial target.

Source: arXiv 2607.05722, section 4. A step ranks the matches by confidence and commits the longest prefix that is safe, found
by binary search. A prefix is safe if greedy acceptance, simulated behind it, ends in the target. Beyond the paper, it has to
get there in no more steps than are left serially: early commits may lead it astray, to positions behind the end of the answer.
The top match alone is always safe on the serial trajectory, where it is the serial step itself.

Exact by construction: a block is either on the serial trajectory, or a simulation has shown that greedy acceptance ends
in the target from where it is. In the second case nothing is longer than all matches, so no search is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from nemodiff_trt.runtime.speed_of_light.greedy import accepted, matches
from nemodiff_trt.runtime.speed_of_light.serial import Denoise, SerialTrajectory, SpecialTokens, num_settled

# Forwards that simulations of one block may take, as in the paper.
DEFAULT_BUDGET = 5000


@dataclass(frozen=True, slots=True)
class Compaction:
    """How compaction filled a block.

    Attributes:
        commits: positions committed by each denoise run.
        block: int64 [S], the block in the end.
        simulated_forwards: denoise runs spent on deciding what is safe; the oracle's, not part of `num_steps`.
        is_over_budget: whether a simulation was given up, and its prefix taken for unsafe.
    """

    commits: tuple[tuple[int, ...], ...]
    block: np.ndarray
    simulated_forwards: int
    is_over_budget: bool

    @property
    def num_steps(self) -> int:
        return len(self.commits)


def compact(
    denoise: Denoise,
    block: np.ndarray,
    trajectory: SerialTrajectory,
    special: SpecialTokens,
    budget: int = DEFAULT_BUDGET,
) -> Compaction:
    """Fill `block` int64 [S] in few steps; arguments as of `greedy_bound`, and the forwards that simulations may take."""
    search = _Search(denoise, trajectory, special, budget)
    state, is_certified = block.copy(), False
    commits: list[tuple[int, ...]] = []
    while num_settled(state, special) is None:
        token, confidence = denoise(state)
        if is_certified:
            chosen = accepted(token, confidence, state, trajectory, special)
        else:
            ranked = matches(token, confidence, state, trajectory, special)
            chosen, is_certified = search.longest_safe(state, ranked)
        state[chosen] = token[chosen]
        commits.append(tuple(chosen.tolist()))
    return Compaction(tuple(commits), state, search.num_forwards, search.is_over_budget)


class _Safety(Enum):
    """What is known of a block: not safe, on the serial trajectory, or that greedy acceptance ends in the target."""

    UNSAFE = auto()
    ON_TRAJECTORY = auto()
    CERTIFIED = auto()


class _Search:
    """Looks for safe prefixes within the budget of one block."""

    def __init__(self, denoise: Denoise, trajectory: SerialTrajectory, special: SpecialTokens, budget: int) -> None:
        self._denoise, self._trajectory, self._special, self._budget = denoise, trajectory, special, budget
        self.num_forwards = 0
        self.is_over_budget = False

    def longest_safe(self, state: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, bool]:
        """Positions to commit in a block on the serial trajectory, and whether the block behind them is certified.

        Safety need not fall with length, so the binary search finds a safe prefix whose next longer one tried was not.
        """
        safe, unsafe, found = 1, len(ranked) + 1, _Safety.ON_TRAJECTORY
        length = len(ranked)
        while unsafe - safe > 1:
            safety = self._safety(state, ranked[:length])
            if safety is _Safety.UNSAFE:
                unsafe = length
            else:
                safe, found = length, safety
            length = (safe + unsafe) // 2
        return ranked[:safe], found is _Safety.CERTIFIED

    def _safety(self, state: np.ndarray, chosen: np.ndarray) -> _Safety:
        after = state.copy()
        after[chosen] = self._trajectory.target[chosen]
        first = self._trajectory.steps[0].block
        num_committed = int(np.sum(after != first))
        if np.all(after[list(self._trajectory.order[:num_committed])] != self._special.mask):
            return _Safety.ON_TRAJECTORY
        num_left = len(self._trajectory.steps) - int(np.sum(state != first))
        return _Safety.CERTIFIED if self._greedy_ends_in_target(after, num_left - 1) else _Safety.UNSAFE

    def _greedy_ends_in_target(self, state: np.ndarray, most_steps: int) -> bool:
        """Simulate greedy acceptance from `state`, which is overwritten, for `most_steps` at most."""
        needed = slice(self._trajectory.num_needed)
        target = self._trajectory.target[needed]
        while num_settled(state, self._special) is None:
            if not most_steps:
                return False
            most_steps -= 1
            if self.num_forwards >= self._budget:
                self.is_over_budget = True
                return False
            self.num_forwards += 1
            token, confidence = self._denoise(state)
            chosen = accepted(token, confidence, state, self._trajectory, self._special)
            state[chosen] = token[chosen]
            if np.any((state[needed] != self._special.mask) & (state[needed] != target)):
                return False
        return self._trajectory.is_reached_by(state)
