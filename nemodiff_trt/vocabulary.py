"""The words used everywhere: modes, roles, targets, precisions, and which roles a mode needs."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What the user asks for."""

    AR = "ar"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"
    QUADRATIC = "quadratic"


class Role(StrEnum):
    """One compiled step graph.

    `prefill`, `decode` and `verify` are causal; `denoise` and `draft` let every token of the step see every other;
    only `draft` applies the low-rank adapter.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    VERIFY = "verify"
    DENOISE = "denoise"
    DRAFT = "draft"
    QUADRATIC = "quadratic"

    @property
    def is_causal(self) -> bool:
        return self in (Role.PREFILL, Role.DECODE, Role.VERIFY)

    @property
    def uses_adapter(self) -> bool:
        return self is Role.DRAFT


class Target(StrEnum):
    """Who compiles a role."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"
    INDUCTOR = "inductor"


class Precision(StrEnum):
    """Number format of weights, activations and cache."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    NVFP4 = "nvfp4"

    @property
    def linear_format(self) -> LinearFormat | None:
        """Format of the decoder's linear layers, None where they are like everything else."""
        return LinearFormat(self) if self in (Precision.FP8, Precision.NVFP4) else None


class LinearFormat(StrEnum):
    """Number format of a quantised linear layer's weights and inputs; see `quantization.formats`."""

    FP8 = "fp8"
    NVFP4 = "nvfp4"


# Neighbours along the input axis that share one scale.
NVFP4_BLOCK = 16


MODE_ROLES: dict[Mode, tuple[Role, ...]] = {
    Mode.AR: (Role.PREFILL, Role.DECODE),
    Mode.DIFFUSION: (Role.PREFILL, Role.DENOISE, Role.VERIFY),
    Mode.SELF_SPECULATION: (Role.PREFILL, Role.DRAFT, Role.VERIFY),
    Mode.QUADRATIC: (Role.PREFILL, Role.DRAFT, Role.QUADRATIC),
}


def roles_for(modes: tuple[Mode, ...]) -> tuple[Role, ...]:
    """Roles needed to serve `modes`, each once, in the order of `Role`."""
    wanted = {role for mode in modes for role in MODE_ROLES[mode]}
    return tuple(role for role in Role if role in wanted)
