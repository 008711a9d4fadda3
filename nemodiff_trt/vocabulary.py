"""The words used everywhere: modes, roles, targets, precisions, and which roles a mode needs."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What the user asks for. `auto` leaves the choice between `ar` and `self_speculation` to the runtime."""

    AR = "ar"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"
    QUADRATIC = "quadratic"
    AUTO = "auto"


class Role(StrEnum):
    """One compiled step graph.

    `prefill`, `decode` and `verify` are causal; `denoise` and `draft` let every token of the step see every other. In
    `quadratic` an input says which step tokens see each other, where they stand and to which of them the low-rank adapter
    applies; otherwise only `draft` applies it.
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
        return self in (Role.DRAFT, Role.QUADRATIC)

    @property
    def takes_layout(self) -> bool:
        """Whether mask, positions and adapter rows of a step are inputs."""
        return self is Role.QUADRATIC


class Target(StrEnum):
    """Who compiles a role."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"
    INDUCTOR = "inductor"

    @property
    def is_for_gpu(self) -> bool:
        """Whether its engines run on a GPU; the others run on a CPU."""
        return self in (Target.TENSORRT_RTX, Target.TENSORRT)


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
    Mode.QUADRATIC: (Role.PREFILL, Role.QUADRATIC),
    Mode.AUTO: (Role.PREFILL, Role.DECODE, Role.DRAFT, Role.VERIFY),
}


# What engines are built for; `auto` uses those of others.
BUILT_MODES = tuple(mode for mode in Mode if mode is not Mode.AUTO)


def roles_for(modes: tuple[Mode, ...]) -> tuple[Role, ...]:
    """Roles needed to serve `modes`, each once, in the order of `Role`."""
    wanted = {role for mode in modes for role in MODE_ROLES[mode]}
    return tuple(role for role in Role if role in wanted)


class Objective(StrEnum):
    """What mode `auto` chooses for: tokens of all requests in a second, or every request's own tokens in a second."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
