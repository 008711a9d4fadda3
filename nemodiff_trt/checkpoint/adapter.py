"""The draft adapter: a PEFT LoRA folder that may change `o_proj` and nothing else.

`adapter_config.json` has many switches that change the computation. Each is either checked here or known to be without effect;
a switch this project has never heard of must be off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nemodiff_trt.checkpoint import layout
from nemodiff_trt.checkpoint.checks import check_names, check_one_dtype, check_shapes
from nemodiff_trt.checkpoint.tensor_file import TensorFile
from nemodiff_trt.config import ModelConfig, read_json_object
from nemodiff_trt.errors import CheckpointError

# Keys that say where an adapter comes from, how it was trained, or configure a feature that another key switches on.
_WITHOUT_EFFECT = frozenset({
    "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
    "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
_CHECKED = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"})
# Other initialisations (PiSSA, OLoRA, ...) also change the base weights, so the adapter alone would not be enough.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Rank r and alpha of an adapter: its branch is `scale * (x @ A.T) @ B.T` with `scale = alpha / r`."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CheckpointError("adapter r", self.rank, "a positive integer")
        if not 0 < self.alpha < float("inf"):
            raise CheckpointError("adapter lora_alpha", self.alpha, "a finite number above 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """Content for `adapter_config.json`."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": [layout.ADAPTER_TARGET],
            "bias": "none",
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "inference_mode": True,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> AdapterSettings:
        """Build from the parsed content of `adapter_config.json`.

        Raises:
            CheckpointError: a switch asks for another computation than low-rank branches on `o_proj`.
        """
        _require(raw, "peft_type", ("LORA",))
        _require(raw, "bias", ("none", None))
        _require(raw, "init_lora_weights", _PLAIN_INITIALISATIONS)
        targets = raw.get("target_modules")
        if targets not in (layout.ADAPTER_TARGET, [layout.ADAPTER_TARGET]):
            raise CheckpointError("adapter target_modules", targets, f"only {layout.ADAPTER_TARGET}")
        for name in sorted(raw.keys() - _CHECKED - _WITHOUT_EFFECT):
            if raw[name]:
                raise CheckpointError(f"adapter {name}", raw[name], "absent or off")
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise CheckpointError("adapter r", rank, "a positive integer")
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
            raise CheckpointError("adapter lora_alpha", alpha, "a finite number above 0")
        return cls(rank, alpha)


def _require(raw: dict[str, Any], name: str, allowed: tuple[object, ...]) -> None:
    if raw.get(name) not in allowed:
        raise CheckpointError(f"adapter {name}", raw.get(name), " or ".join(map(repr, allowed)))


class DraftAdapter:
    """The opened adapter of a checkpoint. Matrices are memory-mapped views in their stored dtype."""

    __slots__ = ("_file", "settings")

    def __init__(self, settings: AdapterSettings, file: TensorFile) -> None:
        self.settings = settings
        self._file = file

    @classmethod
    def open(cls, directory: Path, config: ModelConfig) -> DraftAdapter:
        """Read `adapter_config.json` and the header of `adapter_model.safetensors` in `directory`.

        Raises:
            CheckpointError: a file is missing or damaged, the adapter computes something else, or a tensor does not fit.
        """
        settings = AdapterSettings.from_dict(
            read_json_object(directory / layout.ADAPTER_CONFIG_FILE, layout.ADAPTER_CONFIG_FILE)
        )
        file = TensorFile.open(directory / layout.ADAPTER_WEIGHTS_FILE)
        wanted = layout.adapter_shapes(config, settings.rank)
        check_names(file.entries, wanted, layout.ADAPTER_WEIGHTS_FILE)
        check_shapes({name: entry.shape for name, entry in file.entries.items()}, wanted)
        check_one_dtype({name: entry.dtype for name, entry in file.entries.items()})
        return cls(settings, file)

    @property
    def rank(self) -> int:
        return self.settings.rank

    @property
    def alpha(self) -> float:
        return self.settings.alpha

    @property
    def scale(self) -> float:
        return self.settings.scale

    def names(self) -> tuple[str, ...]:
        """Stored names, A before B, layer by layer (see `layout.adapter_tensor_name`)."""
        return tuple(sorted(self._file.entries, key=lambda name: self._file.entries[name].start))

    def tensor(self, name: str) -> Tensor:
        """A [r, H*D] or B [hidden, r] by its stored name."""
        if name not in self._file.entries:
            raise CheckpointError(name, "missing", f"one of {len(self._file.entries)} tensors of {layout.ADAPTER_WEIGHTS_FILE}")
        return self._file.tensor(name)

    def fingerprint(self) -> str:
        """Changes with rank, alpha and every matrix."""
        return f"{self.rank} {self.alpha!r} {self._file.fingerprint()}"
