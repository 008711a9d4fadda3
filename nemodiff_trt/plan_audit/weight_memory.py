"""How much memory the weights of all roles take together, against one copy of the model.

A plan cannot tell: its inputs look alike whether another role binds the same bytes or a set of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemodiff_trt.bundle import Encoding, RoleEngine, WeightLayout
from nemodiff_trt.checkpoint.layout import decoder_shapes
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import ENGINE_FLOAT, ITEM_BYTES
from nemodiff_trt.plan_audit.report import Finding, FindingCode, Severity
from nemodiff_trt.vocabulary import Precision, Role

# A merged draft adapter costs a second output projection, at most 9 % of a published model. A second set costs far more.
MAX_RATIO = 1.10
# Plans that hold block scales hold them once each: a sixteenth of a byte a weight, an eighth of the weights themselves.
MAX_BAKED_RATIO = 1.25


@dataclass(frozen=True, slots=True)
class WeightMemory:
    """Bytes that sessions keep on the device: tensors bound as inputs once, tensors inside plans once per plan."""

    num_bytes: int
    one_copy_bytes: int
    has_baked_scales: bool = False

    @property
    def ratio(self) -> float:
        return self.num_bytes / self.one_copy_bytes

    def findings(self) -> tuple[Finding, ...]:
        if self.ratio <= (MAX_BAKED_RATIO if self.has_baked_scales else MAX_RATIO):
            return ()
        message = (
            f"the roles keep {self.num_bytes / 1e6:.1f} MB of weights, {self.ratio:.2f} times one copy of the model"
            f" ({self.one_copy_bytes / 1e6:.1f} MB)"
        )
        excess = self.num_bytes - self.one_copy_bytes
        return (Finding(FindingCode.DUPLICATED_WEIGHTS, Severity.WARNING, message, None, excess),)

    def to_dict(self) -> dict[str, float | int]:
        return {"num_bytes": self.num_bytes, "one_copy_bytes": self.one_copy_bytes, "ratio": self.ratio}


def weight_memory(
    model: ModelConfig,
    precision: Precision,
    roles: Mapping[Role, RoleEngine],
    weights: Mapping[str, WeightLayout],
    shapes: Mapping[str, tuple[int, ...]],
) -> WeightMemory:
    """Weights of the engines `roles`; `weights` and `shapes` are those of the manifest, rotary tables among them."""

    def num_bytes(name: str) -> int:
        return math.prod(shapes[name]) * ITEM_BYTES[weights[name].dtype]

    bound = {name for engine in roles.values() for name in engine.weights}
    inside = {engine.file: engine.constants for engine in roles.values()}
    total = sum(map(num_bytes, bound)) + sum(num_bytes(name) for names in inside.values() for name in names)
    used = bound.union(*inside.values())
    if any(weights[name].encoding is not Encoding.PLAIN for name in used):
        # One copy: every stored tensor once, but for the adapter, which is no part of the model.
        copy = sum(num_bytes(name) for name in used if not any(".adapter." in source for source in weights[name].sources))
        return WeightMemory(total, copy, any(inside.values()))
    item = ITEM_BYTES[ENGINE_FLOAT[precision]]
    return WeightMemory(total, sum(math.prod(shape) for shape in decoder_shapes(model).values()) * item)
