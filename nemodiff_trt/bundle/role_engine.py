"""What a bundle says about the engine of one role: its file, the shapes it takes, what is bound besides the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemodiff_trt.contract import TensorSpec
from nemodiff_trt.vocabulary import Role


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Ranges of B and S, both ends included, that one optimisation profile was compiled for.

    Its position among the profiles of the engine is its index there.
    """

    min_batch: int
    max_batch: int
    min_step: int
    max_step: int

    def accepts(self, batch: int, step: int) -> bool:
        return self.min_batch <= batch <= self.max_batch and self.min_step <= step <= self.max_step


@dataclass(frozen=True, slots=True)
class RoleEngine:
    """The engine of one role.

    Args:
        file: name relative to the bundle.
        shared_with: other roles that the same file serves.
        profiles: shapes it takes; empty where an engine takes every shape within the limits.
        weights: stored tensors that are inputs of the engine, to be bound once.
        constants: stored tensors that are inside the engine.
        scratch: outputs beyond the contract, whose content nobody reads: they want a buffer.
    """

    file: str
    shared_with: tuple[Role, ...] = ()
    profiles: tuple[StepProfile, ...] = ()
    weights: tuple[str, ...] = ()
    scratch: tuple[TensorSpec, ...] = ()
    constants: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> RoleEngine:
        """Inverse of `dataclasses.asdict`, after a trip through JSON."""
        scratch = (TensorSpec(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in raw["scratch"])
        return cls(
            raw["file"],
            tuple(map(Role, raw["shared_with"])),
            tuple(StepProfile(**profile) for profile in raw["profiles"]),
            tuple(raw["weights"]),
            tuple(scratch),
            tuple(raw["constants"]),
        )
