"""Choices of the user. Facts of the model live in `config`, wishes of one request in the runtime.

Every field carries in its metadata whether it is a *build* field (it changes the bundle's content and so the build key) or a
*run* field (it does not), and the help text of the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits, compute_precision
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.full_size import FULL_SIZE_CONFIGS
from nemodiff_trt.vocabulary import BUILT_MODES, Mode, Precision, Role, Target, roles_for

DEFAULT_MODES = (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION)

# What can be compiled today, per target. Everything else is refused before any work starts.
_PRECISIONS: dict[Target, tuple[Precision, ...]] = {
    # FP8 and NVFP4 are emulated in fp32: their results, not their speed.
    Target.ONNXRUNTIME: (Precision.FP32, Precision.FP16, Precision.FP8, Precision.NVFP4),
    # Fused attention has no fp32 kernel.
    Target.TENSORRT_RTX: (Precision.BF16, Precision.FP16, Precision.FP8, Precision.NVFP4),
    Target.TENSORRT: (Precision.BF16, Precision.FP16, Precision.FP8, Precision.NVFP4),
    Target.INDUCTOR: (Precision.FP32, Precision.BF16),
}
_MODES: dict[Target, tuple[Mode, ...]] = dict.fromkeys(_PRECISIONS, BUILT_MODES)
# Compute capabilities that can be compiled for without the GPU, and the one a build is for unless told otherwise.
TENSORRT_RTX_SMS = (75, 80, 86, 89, 120, 121)
# Targets whose engines may hold kernels that the compiler knows nothing of.
PLUGIN_TARGETS = (Target.TENSORRT, Target.INDUCTOR)


class WeightStorage(StrEnum):
    """Where an engine finds its weights: one file bound by every role, or inside each engine."""

    SHARED = "shared"
    EMBEDDED = "embedded"


class AdapterForm(StrEnum):
    """How the draft role applies the checkpoint's adapter.

    `low_rank` adds a small branch beside the shared o_proj; `merged` stores a second o_proj (no branch to compute, one more
    matrix per layer to keep); `none` drafts with the base weights.
    """

    LOW_RANK = "low_rank"
    MERGED = "merged"
    NONE = "none"


def _build(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "build", "help": text})


def _run(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "run", "help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """Everything `build_engines` can be told. Field names are the long options of the command line.

    Raises:
        InvalidInputError: a field is out of range, not available for the target, or contradicts another field.
    """

    checkpoint: str | None = _run(None, "Checkpoint folder, or nemodiff-tiny for the packaged one.")
    config: str | None = _build(
        None, f"Geometry without a checkpoint: {', '.join(FULL_SIZE_CONFIGS)}, or a folder with config.json."
    )
    target: Target = _build(Target.ONNXRUNTIME, "Who compiles the engines.")
    output: Path = _run(Path("bundle"), "Folder of the bundle to write.")
    modes: tuple[Mode, ...] = _build(DEFAULT_MODES, "Decoding modes to serve, separated by commas.")
    precision: Precision = _build(Precision.FP32, "Number format of weights, activations and cache.")
    draft_precision: Precision | None = _build(None, "Number format of drafting alone; that of everything else if left out.")
    recipe: Path | None = _build(None, "YAML file with the formats of single layers, see docs/quantization.md.")
    sm: tuple[int, ...] = _build((), "Compute capabilities to compile for, separated by commas: 120,121. tensorrt-rtx only.")
    weights: WeightStorage = _build(WeightStorage.SHARED, "One weight file for all roles, or weights inside each engine.")
    block_length: int = _build(32, "Largest block that can be drafted or denoised at run time, in tokens.")
    quadratic_block_length: int = _build(
        16, "Largest block B of mode quadratic: its steps have up to B(B + 1) tokens, so it is chosen for the device."
    )
    max_batch_size: int = _build(8, "Largest number of sequences in one step.")
    max_seq_len: int = _build(2048, "Tokens a sequence may reach, prompt and answer together.")
    prefill_chunk: int = _build(256, "Longest piece of a prompt that one prefill step takes, in tokens.")
    sampling: bool = _build(False, "Also return logits, which sampling needs.")
    draft_adapter: AdapterForm = _build(AdapterForm.LOW_RANK, "How drafting applies the adapter.")
    plugins: bool = _build(
        False, "Run operators by the project's own kernels, not by what the compiler makes of them. tensorrt, inductor."
    )
    calibration: Path | None = _build(
        None, "Prompts to calibrate quantised precisions with, one a line or JSONL, or calibration.json of a bundle."
    )
    strict: bool = _run(False, "Fail on any finding of the plan audit with severity warning.")
    force: bool = _run(False, "Replace an existing bundle once the new one is complete.")

    def __post_init__(self) -> None:
        self._check_source()
        self._check_available()
        self.limits  # noqa: B018 - checks the sizes

    def _check_source(self) -> None:
        if (self.checkpoint is None) == (self.config is None):
            raise InvalidInputError("checkpoint", self.checkpoint, "exactly one of checkpoint and config")
        if self.config is not None and self.config not in FULL_SIZE_CONFIGS and not Path(self.config).is_dir():
            raise InvalidInputError("config", self.config, f"{', '.join(FULL_SIZE_CONFIGS)}, or a folder with config.json")

    def _check_available(self) -> None:
        available = _PRECISIONS[self.target]
        if self.precision not in available:
            raise InvalidInputError("precision", str(self.precision), f"{', '.join(available)} for target {self.target}")
        if not self.modes:
            raise InvalidInputError("modes", "", "at least one mode")
        for mode in self.modes:
            if mode not in _MODES[self.target]:
                raise InvalidInputError("modes", str(mode), f"{', '.join(_MODES[self.target])} for target {self.target}")
        if len(set(self.modes)) != len(self.modes):
            raise InvalidInputError("modes", ",".join(self.modes), "each mode once")
        self._check_target_fields()

    def _check_target_fields(self) -> None:
        if self.config is not None and not self.target.is_for_gpu:
            raise InvalidInputError(
                "config", self.config, f"a checkpoint instead: target {self.target} keeps weights in the bundle"
            )
        self._check_sm()
        if self.plugins and self.target not in PLUGIN_TARGETS:
            raise InvalidInputError("plugins", True, f"off for target {self.target}, which has none")
        if self.weights is not WeightStorage.SHARED:
            if not self.target.is_for_gpu:
                raise InvalidInputError("weights", str(self.weights), f"shared for target {self.target}")
            if self.config is not None:
                raise InvalidInputError("weights", str(self.weights), "shared for a build without a checkpoint")
        self._check_quantization()

    @property
    def is_quantized(self) -> bool:
        """Whether some role has quantised layers."""
        precisions = [Precision(each) for each in (self.precision, self.draft_precision) if each is not None]
        return any(precision.linear_format is not None for precision in precisions)

    @property
    def compute_precision(self) -> Precision:
        """Precision of activations and cache, whatever the linear layers have."""
        return compute_precision(Precision(self.precision), self.target)

    def _check_quantization(self) -> None:
        draft = self.draft_precision
        if draft is not None:
            allowed = [each for each in _PRECISIONS[self.target] if self._shares_cache(each)]
            if draft not in allowed:
                shown = ", ".join(allowed)
                raise InvalidInputError("draft_precision", str(draft), f"{shown} beside precision {self.precision}")
            if Role.DRAFT not in self.roles:
                raise InvalidInputError("draft_precision", str(draft), "nothing without mode self_speculation")
        if self.is_quantized:
            if self.weights is not WeightStorage.SHARED:
                raise InvalidInputError("weights", str(self.weights), "shared for quantised precisions")
            if self.draft_adapter is AdapterForm.MERGED and Role.DRAFT in self.roles:
                raise InvalidInputError("draft_adapter", str(self.draft_adapter), "low_rank or none for quantised precisions")
            if self.calibration is not None and self.checkpoint is None:
                raise InvalidInputError("calibration", str(self.calibration), "nothing for a build without a checkpoint")
            return
        for name in ("calibration", "recipe"):
            if getattr(self, name) is not None:
                raise InvalidInputError(name, str(getattr(self, name)), f"nothing for precision {self.precision}")

    def _shares_cache(self, draft: Precision) -> bool:
        """Whether a drafter of this precision can write the cache of the others, and is no wider in another format."""
        if draft.linear_format is None and self.precision.linear_format is None:
            return draft is self.precision
        return compute_precision(draft, self.target) is compute_precision(self.precision, self.target)

    def _check_sm(self) -> None:
        shown = ",".join(map(str, self.sm))
        if self.target is not Target.TENSORRT_RTX:
            if self.sm:
                reason = "which compiles for the GPU it finds" if self.target is Target.TENSORRT else "which runs on the CPU"
                raise InvalidInputError("sm", shown, f"nothing for target {self.target}, {reason}")
            return
        allowed = ", ".join(map(str, TENSORRT_RTX_SMS))
        if not self.sm or any(sm not in TENSORRT_RTX_SMS for sm in self.sm) or len(set(self.sm)) < len(self.sm):
            raise InvalidInputError("sm", shown, f"one or more of {allowed} for target {self.target}, each once")

    @property
    def limits(self) -> Limits:
        quadratic = self.quadratic_block_length if Mode.QUADRATIC in self.modes else 0
        return Limits(self.max_batch_size, self.max_seq_len, self.block_length, self.prefill_chunk, quadratic)

    @property
    def roles(self) -> tuple[Role, ...]:
        return roles_for(self.modes)

    def check_model(self, model: ModelConfig) -> None:
        """Compare the sizes with those of the checkpoint.

        Raises:
            InvalidInputError: `max_seq_len` exceeds the positions the model was made for.
        """
        if self.max_seq_len > model.max_position_embeddings:
            allowed = f"at most max_position_embeddings = {model.max_position_embeddings} of the checkpoint"
            raise InvalidInputError("max_seq_len", self.max_seq_len, allowed)

    def build_fields(self) -> dict[str, Any]:
        """The build fields as JSON values; the build key hashes them. The order within a list does not matter."""
        fields = [field.name for field in dataclasses.fields(self) if field.metadata["kind"] == "build"]
        return {name: _plain(sorted(value) if isinstance(value := getattr(self, name), tuple) else value) for name in fields}


def _plain(value: Any) -> Any:
    """JSON value of an option."""
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return str(value) if isinstance(value, (StrEnum, Path)) else value
