"""Sums over analysed blocks and over answers of the modes, in one form, so that they can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.speed_of_light.answer import BlockAnalysis


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one way to fill blocks.

    Attributes:
        filled: tokens that denoise (or draft) steps decided and that belong to answers; seeds are not among them.
        steps: these steps.
        refreshes: causal runs that wrote finished blocks into the cache; each gave the next seed, one token more.
    """

    filled: int
    steps: int
    refreshes: int

    @property
    def acceptance(self) -> float | None:
        """Mean tokens per denoise step."""
        return self.filled / self.steps if self.steps else None

    @property
    def tokens_per_forward(self) -> float | None:
        """Real tokens per forward, refreshes included; the count of `GenerationStats`."""
        forwards = self.steps + self.refreshes
        return (self.filled + self.refreshes) / forwards if forwards else None


@dataclass(frozen=True, slots=True)
class BoundTotals:
    """The ways over the same blocks, and how greedy acceptance compares with compaction block by block.

    Attributes:
        exact_greedy: greedy acceptance, with serial steps for the blocks in which it does not end in the serial target.
        greedy_inexact: blocks in which greedy acceptance does not end in the serial target.
        greedy_fewer_steps: blocks in which it takes fewer steps than compaction; none of them can be exact.
        over_budget: blocks whose simulations were given up.
        max_simulated_forwards: the most forwards that simulations of a block took.
    """

    serial: Totals
    greedy: Totals
    exact_greedy: Totals
    compaction: Totals
    num_blocks: int
    greedy_inexact: int
    greedy_fewer_steps: int
    over_budget: int
    max_simulated_forwards: int

    @classmethod
    def of(cls, blocks: Iterable[BlockAnalysis]) -> BoundTotals:
        listed = list(blocks)
        filled = sum(block.trajectory.num_needed - 1 for block in listed)
        refreshes = sum(block.refreshes for block in listed)
        steps = (
            sum(len(block.trajectory.steps) for block in listed),
            sum(block.greedy.num_steps for block in listed),
            sum(block.exact_greedy_steps for block in listed),
            sum(block.compaction.num_steps for block in listed),
        )
        serial, greedy, exact_greedy, compaction = (Totals(filled, count, refreshes) for count in steps)
        return cls(
            serial,
            greedy,
            exact_greedy,
            compaction,
            len(listed),
            greedy_inexact=sum(not block.greedy.is_exact for block in listed),
            greedy_fewer_steps=sum(block.greedy.num_steps < block.compaction.num_steps for block in listed),
            over_budget=sum(block.compaction.is_over_budget for block in listed),
            max_simulated_forwards=max((block.compaction.simulated_forwards for block in listed), default=0),
        )


@dataclass(frozen=True, slots=True)
class SpeculationTotals:
    """Counts of self-speculation: one draft and one verification a cycle."""

    tokens: int
    forwards: int

    @property
    def acceptance(self) -> float | None:
        """Mean tokens per cycle, the verifier's own included."""
        return 2 * self.tokens / self.forwards if self.forwards else None

    @property
    def tokens_per_forward(self) -> float | None:
        return self.tokens / self.forwards if self.forwards else None


def diffusion_totals(results: Sequence[GenerationResult], block_length: int) -> Totals:
    """Counts of answers of mode diffusion. Every block but the last is whole, and each whole one was written once."""
    later = sum(result.stats.new_tokens - 1 for result in results)
    forwards = sum(result.stats.forward_passes for result in results)
    refreshes = sum((result.stats.new_tokens - 1) // block_length for result in results)
    return Totals(later - refreshes, forwards - refreshes, refreshes)


def speculation_totals(results: Sequence[GenerationResult]) -> SpeculationTotals:
    """Counts of answers of mode self_speculation that drafts in one pass."""
    tokens = sum(result.stats.new_tokens - 1 for result in results)
    return SpeculationTotals(tokens, sum(result.stats.forward_passes for result in results))
