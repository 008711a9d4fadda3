"""`manifest.json`: what a bundle holds, for whom it was built and how its weights are laid out.

The file carries the SHA-256 of its own content and must be byte for byte what `Manifest.to_bytes` writes, so one changed byte
anywhere in it is found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from nemodiff_trt.bundle.role_engine import RoleEngine
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits, compute_precision
from nemodiff_trt.errors import BundleError, NemodiffError
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.vocabulary import LinearFormat, Mode, Precision, Role, Target

SCHEMA_VERSION = 3
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights/shared.safetensors"
REPORT_FILE = "report.json"
TOKENIZER_DIR = "tokenizer"
# Ranges of activations by layer and role, in the form that --calibration takes.
CALIBRATION_FILE = "calibration.json"
ENGINES_DIR = "engines"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Checksum and size of one file of the bundle."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The low-rank draft adapter of a checkpoint; `scale` is alpha / rank."""

    rank: int
    scale: float


class Combine(StrEnum):
    """How a stored tensor is made of its sources."""

    CONCAT = "concat"
    MERGE_ADAPTER = "merge_adapter"
    ROTARY_TABLE = "rotary_table"


class Encoding(StrEnum):
    """What of a combined matrix [out,in] is stored. Scales are fp32 [], block scales are e4m3 [out,in/16].

    `*_dequantized` are the numbers that the quantised matrix stands for, for engines that emulate the format.
    """

    PLAIN = "plain"
    FP8 = "fp8"
    FP8_WEIGHT_SCALE = "fp8_weight_scale"
    FP8_INPUT_SCALE = "fp8_input_scale"
    FP8_DEQUANTIZED = "fp8_dequantized"
    NVFP4 = "nvfp4"
    NVFP4_BLOCK_SCALES = "nvfp4_block_scales"
    NVFP4_WEIGHT_SCALE = "nvfp4_weight_scale"
    NVFP4_INPUT_SCALE = "nvfp4_input_scale"
    NVFP4_DEQUANTIZED = "nvfp4_dequantized"

    @property
    def linear_format(self) -> LinearFormat | None:
        """Format of the layer that it is a part of."""
        return None if self is Encoding.PLAIN else LinearFormat(self.split("_")[0])

    @property
    def is_input_scale(self) -> bool:
        return self in (Encoding.FP8_INPUT_SCALE, Encoding.NVFP4_INPUT_SCALE)


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """How one stored tensor is made.

    `concat`: the `sources` (decoder parameter names, [out,in] each) joined along `out`. `merge_adapter`: base + scale * B @ A
    of the three sources base, A, B. `rotary_table`: no source tensor; computed from the model's configuration.
    With `transposed` the stored matrix is [in,out]. `dtype` is that of the file. `encoding` says what of the matrix is stored.
    """

    sources: tuple[str, ...]
    transposed: bool
    dtype: str
    combine: Combine = Combine.CONCAT
    encoding: Encoding = Encoding.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know before it opens an engine.

    `sms` are the compute capabilities that the engines were compiled for (120 is SM120), empty for a CPU. `weight_shapes` has
    the shape of every tensor of `weights`. Without `has_weights` the bundle was built from a geometry alone: a checkpoint has
    to be bound to it before it can run. `operators` says of every operator of the step what realises it in the engines, such as
    "plugin" or "native layers". `quantization` is None where no layer is quantised.
    """

    schema_version: int = SCHEMA_VERSION
    model: ModelConfig
    target: Target
    precision: Precision
    modes: tuple[Mode, ...]
    limits: Limits
    keep_logits: bool
    adapter: AdapterFacts | None
    roles: dict[Role, RoleEngine]
    operators: dict[str, str]
    weights: dict[str, WeightLayout]
    weight_shapes: dict[str, tuple[int, ...]]
    weight_storage: WeightStorage = WeightStorage.SHARED
    has_weights: bool = True
    sms: tuple[int, ...] = ()
    quantization: QuantizationFacts | None = None
    build_key: str
    tool_versions: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def compute_precision(self) -> Precision:
        """Precision of activations and cache, whatever the linear layers have."""
        return compute_precision(self.precision, self.target)

    @property
    def has_baked_scales(self) -> bool:
        """Whether engines hold scales of one checkpoint, or random ones in their place, while other weights are bound."""
        return self.quantization is not None and any(engine.constants for engine in self.roles.values())

    def to_bytes(self) -> bytes:
        """Content of `manifest.json`, its own digest included."""
        content = {
            "schema_version": self.schema_version,
            "model": self.model.to_dict(),
            "target": self.target,
            "precision": self.precision,
            "modes": list(self.modes),
            "limits": dataclasses.asdict(self.limits),
            "keep_logits": self.keep_logits,
            "adapter": dataclasses.asdict(self.adapter) if self.adapter else None,
            "roles": {role: dataclasses.asdict(engine) for role, engine in self.roles.items()},
            "operators": self.operators,
            "weights": {name: dataclasses.asdict(layout) for name, layout in self.weights.items()},
            "weight_shapes": {name: list(shape) for name, shape in self.weight_shapes.items()},
            "weight_storage": self.weight_storage,
            "has_weights": self.has_weights,
            "sms": list(self.sms),
            "quantization": self.quantization.to_dict() if self.quantization else None,
            "build_key": self.build_key,
            "tool_versions": self.tool_versions,
            "files": {name: dataclasses.asdict(entry) for name, entry in self.files.items()},
        }
        return _canonical({**content, "digest": hashlib.sha256(_canonical(content)).hexdigest()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """Parse and check the content of `manifest.json`.

        Raises:
            BundleError: not JSON, changed since it was written, of another schema version, or a field is not usable.
        """
        content = _checked_content(raw)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST_FILE}: schema version {version!r}, this program reads {SCHEMA_VERSION}; build the bundle again"
            )
        try:
            return _manifest_from(content)
        except (KeyError, TypeError, ValueError, NemodiffError) as error:
            raise BundleError(f"{MANIFEST_FILE}: unusable content ({type(error).__name__}: {error})") from error


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _checked_content(raw: bytes) -> dict[str, Any]:
    """Parsed content without its digest, after the digest and the exact bytes were compared."""
    try:
        content = json.loads(raw.decode("ascii"))
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE}: not valid JSON, the file was truncated or edited ({error})") from error
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    try:
        is_intact = (
            isinstance(digest, str)
            and hashlib.sha256(_canonical(content)).hexdigest() == digest
            and _canonical({**content, "digest": digest}) == raw
        )
    except ValueError:
        is_intact = False
    if not is_intact:
        raise BundleError(f"{MANIFEST_FILE}: its content does not match its own checksum, the file was edited or damaged")
    return dict(content)


def _manifest_from(content: dict[str, Any]) -> Manifest:
    for name in content["files"]:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"file name {name!r} leaves the bundle")
    roles = {Role(role): RoleEngine.from_dict(raw) for role, raw in content["roles"].items()}
    for engine in roles.values():
        if engine.file not in content["files"]:
            raise ValueError(f"engine {engine.file!r} is not among the files")
    weights = {
        name: WeightLayout(
            tuple(raw["sources"]), raw["transposed"], raw["dtype"], Combine(raw["combine"]), Encoding(raw["encoding"])
        )
        for name, raw in content["weights"].items()
    }
    return Manifest(
        model=ModelConfig.from_dict(content["model"]),
        target=Target(content["target"]),
        precision=Precision(content["precision"]),
        modes=tuple(map(Mode, content["modes"])),
        limits=Limits(**content["limits"]),
        keep_logits=content["keep_logits"],
        adapter=AdapterFacts(**content["adapter"]) if content["adapter"] else None,
        roles=roles,
        operators=content["operators"],
        weights=weights,
        weight_shapes={name: tuple(shape) for name, shape in content["weight_shapes"].items()},
        weight_storage=WeightStorage(content["weight_storage"]),
        has_weights=content["has_weights"],
        sms=tuple(content["sms"]),
        quantization=QuantizationFacts.from_dict(content["quantization"]) if content["quantization"] else None,
        build_key=content["build_key"],
        tool_versions=content["tool_versions"],
        files={name: FileEntry(**raw) for name, raw in content["files"].items()},
    )
