"""What the auditor is told about a plan: sizes of the model, weights the engine takes, profiles, and the steps to audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.vocabulary import Precision

# Weights whose rows are picked by an index: the embedding by token, the rotary tables by position.
_ROW_TABLE_ENDINGS = ("embed_tokens.weight", "_cos", "_sin")


def is_row_table(name: str) -> bool:
    """Whether a stored weight of this project is read row by row instead of as a whole."""
    return name.endswith(_ROW_TABLE_ENDINGS)


@dataclass(frozen=True, slots=True)
class WeightFact:
    """One stored weight: dtype and shape as stored, size in bytes (a packed format holds several elements a byte).

    `by_rows`: a step reads one row per token of it, not the whole. `embedded`: the plan holds it, it is no input. `operands`:
    dtype ("fp8", "fp4") that both operands of its multiplication must have, empty where nothing is asked for.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    by_rows: bool = False
    embedded: bool = False
    operands: str = ""

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    def step_bytes(self, num_tokens: int) -> int:
        """Bytes that a step of `num_tokens` tokens (B * S) has to read."""
        if not self.by_rows or not self.shape:
            return self.num_bytes
        return min(self.num_bytes, num_tokens * (self.num_bytes // max(1, self.shape[0])))


@dataclass(frozen=True, slots=True)
class CacheFact:
    """One key or value cache, [B,G,K,D] with `item_bytes` an element."""

    num_kv_heads: int
    capacity: int
    head_dim: int
    item_bytes: int

    def token_bytes(self) -> int:
        """Bytes of one token in one cache of one sequence."""
        return self.num_kv_heads * self.head_dim * self.item_bytes


@dataclass(frozen=True, slots=True)
class ProfileRange:
    """Sizes one optimisation profile admits, both ends included."""

    min_batch: int
    max_batch: int
    min_step: int
    max_step: int

    def admits(self, point: AuditPoint) -> bool:
        return self.min_batch <= point.batch <= self.max_batch and self.min_step <= point.step <= self.max_step


@dataclass(frozen=True, slots=True)
class AuditPoint:
    """One step to audit: B sequences, S tokens each, `cache_tokens` tokens in the cache of each before the step."""

    batch: int
    step: int
    cache_tokens: int

    def used_tokens(self, capacity: int) -> int:
        """Tokens attention covers: those in the cache and those of the step."""
        return min(capacity, self.cache_tokens + self.step)


@dataclass(frozen=True, slots=True)
class StepFacts:
    """Facts of one plan.

    `weights` are those this engine takes as inputs or holds itself, by stored name. Profiles are in the order of the plan. A
    point is audited in the first profile that admits it; a profile that no point falls into is audited at its largest sizes,
    with a cache as full as the step allows.
    """

    role: str
    precision: Precision
    num_layers: int
    vocab_size: int
    cache: CacheFact
    weights: Mapping[str, WeightFact]
    profiles: tuple[ProfileRange, ...]
    points: tuple[AuditPoint, ...] = ()

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise InvalidInputError("num_layers", self.num_layers, "an integer of at least 1")
        for point in self.points:
            if not any(profile.admits(point) for profile in self.profiles):
                raise InvalidInputError("points", point, f"sizes within one of the profiles {self.profiles}")

    def points_of(self, profile: int) -> tuple[AuditPoint, ...]:
        """Points audited in `profile`; never empty for a profile that was declared."""
        if profile >= len(self.profiles):
            return ()
        chosen = tuple(point for point in self.points if self._home(point) == profile)
        if chosen:
            return chosen
        sizes = self.profiles[profile]
        return (AuditPoint(sizes.max_batch, sizes.max_step, max(0, self.cache.capacity - sizes.max_step)),)

    def _home(self, point: AuditPoint) -> int:
        return next(index for index, profile in enumerate(self.profiles) if profile.admits(point))

    def weight_bytes(self) -> int:
        """Bytes of all weights of the engine."""
        return sum(weight.num_bytes for weight in self.weights.values())

    def embedded_bytes(self) -> int:
        """Bytes of the weights that the plan is meant to hold."""
        return sum(weight.num_bytes for weight in self.weights.values() if weight.embedded)
