"""`QuantizedCheckpoint`: a folder that ModelOpt has quantised, with the names of the published layout or of Ministral3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemodiff_trt.checkpoint import layout
from nemodiff_trt.checkpoint.adapter import DraftAdapter
from nemodiff_trt.checkpoint.checks import check_names, check_one_dtype, check_shapes
from nemodiff_trt.checkpoint.fingerprint import checkpoint_identity
from nemodiff_trt.checkpoint.ministral3 import (
    MINISTRAL3_MODEL_TYPE,
    from_ministral3_config,
    to_decoder_name,
    to_ministral3_name,
)
from nemodiff_trt.checkpoint.reader import open_weight_files
from nemodiff_trt.checkpoint.tensor_file import FLOAT_DTYPES, PACKED_DTYPES, TensorFile
from nemodiff_trt.config import CONFIG_FILE, ModelConfig, read_json_object
from nemodiff_trt.errors import CheckpointError
from nemodiff_trt.quantization.formats import E2M1_MAX, E4M3_MAX
from nemodiff_trt.quantization.modelopt_config import QUANT_CONFIG_FILE, QuantizationScheme, is_cache_scale, read_scheme
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear, check_codes, check_scale, stored_parts
from nemodiff_trt.quantization.recipe import Override, Recipe, layer_of
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

_DTYPES = FLOAT_DTYPES | PACKED_DTYPES
# Two FP4 numbers a byte are plain bytes to the file.
_CODES = {"float8_e4m3fn": "F8_E4M3", "float4_e2m1fn_x2": "U8", "float32": "F32"}
_EMBEDDING = "encoder.embed_tokens.weight"
_SCALES = ("weight_scale", "weight_scale_2", "input_scale")


def is_quantized(directory: Path) -> bool:
    """Whether a checkpoint folder says that its layers are quantised."""
    if (directory / QUANT_CONFIG_FILE).exists():
        return True
    return (directory / CONFIG_FILE).exists() and "quantization_config" in read_json_object(
        directory / CONFIG_FILE, CONFIG_FILE
    )


class QuantizedCheckpoint:
    """An opened checkpoint: every tensor named, of the right shape and dtype, every scale a finite number above 0."""

    __slots__ = ("_files", "_identity", "_stored_name", "adapter", "config", "dtype", "formats", "path")

    def __init__(
        self, path: Path, config: ModelConfig, formats: dict[str, LinearFormat], files: dict[str, TensorFile], naming: Naming
    ) -> None:
        """Use `open`. `files` says which file holds each stored tensor."""
        self.path = path
        self.config = config
        self.formats = formats
        self._files = files
        self._identity: str | None = None
        self._stored_name = naming
        adapter_dir = path / layout.ADAPTER_DIR
        self.adapter = DraftAdapter.open(adapter_dir, config) if adapter_dir.exists() else None
        self.dtype: torch.dtype = self._stored(_EMBEDDING).dtype

    @classmethod
    def open(cls, directory: Path | str) -> QuantizedCheckpoint:
        """Read the configuration, the headers of all weight files and all scales.

        Raises:
            CheckpointError: names the field, file or tensor that is missing, left over, of another dtype or shape than the
                format asks for, or a scale that is no finite number above 0.
        """
        path = Path(directory)
        raw = read_json_object(path / CONFIG_FILE, CONFIG_FILE)
        scheme = read_scheme(path, raw)
        if scheme is None:
            raise CheckpointError(QUANT_CONFIG_FILE, "missing", f"a file that says what is quantised in {path}")
        is_ministral3 = raw.get("model_type") == MINISTRAL3_MODEL_TYPE
        config = ModelConfig.from_dict(from_ministral3_config(raw) if is_ministral3 else raw)
        files = open_weight_files(path, _DTYPES)
        naming = to_ministral3_name if to_ministral3_name(_EMBEDDING) in files else _unchanged
        if scheme.has_cache_scales:
            files = {name: file for name, file in files.items() if not is_cache_scale(name)}
        formats = _formats(config, scheme)
        _check_tensors(config, formats, files, naming)
        checkpoint = cls(path, config, formats, files, naming)
        checkpoint.check_scales()
        return checkpoint

    def check_scales(self) -> None:
        """See `open`."""
        for linear, form in self.formats.items():
            for part in stored_parts(form, (0, 0)):
                if part in _SCALES:
                    name = f"{linear}.{part}"
                    check_scale(self._stored_name(name), self._stored(name))

    def names(self) -> tuple[str, ...]:
        """Decoder names of all matrices and vectors, embedding first, head last."""
        return tuple(layout.decoder_shapes(self.config))

    def linear(self, name: str) -> QuantizedLinear:
        """A quantised layer by its decoder name without `.weight`, as views of the mapped files.

        Raises:
            CheckpointError: the layer is not quantised, or its matrix holds NaN.
        """
        if name not in self.formats:
            raise CheckpointError(name, "not quantised", f"one of {len(self.formats)} quantised layers")
        form = self.formats[name]
        parts = {part: self._stored(f"{name}.{part}") for part in stored_parts(form, (0, 0))}
        found = QuantizedLinear.from_parts(form, parts)
        check_codes(self._stored_name(f"{name}.weight"), found.weight)
        return found

    def input_amax(self, linear: str) -> float:
        """Largest magnitude of a layer's input that its scale represents; `linear` as in `formats`."""
        largest = {LinearFormat.FP8: E4M3_MAX, LinearFormat.NVFP4: E4M3_MAX * E2M1_MAX}
        return float(self._stored(f"{linear}.input_scale")) * largest[self.formats[linear]]

    def tensor(self, name: str) -> Tensor:
        """Decoder tensor by name: a mapped view, or for a quantised matrix the fp32 numbers that its codes stand for.

        Raises:
            CheckpointError: there is no such tensor, or it holds NaN.
        """
        if layer_of(name) in self.formats:
            return self.linear(layer_of(name)).weight.dequantize()
        if self._stored_name(name) not in self._files:
            raise CheckpointError(name, "missing", f"one of the {len(self.names())} tensors of the decoder")
        return self._stored(name)

    def recipe(self) -> Recipe:
        """The formats as a recipe: the one that most layers have, and what differs from it."""
        used = list(self.formats.values())
        default = max(LinearFormat, key=used.count)
        wanted = Recipe(default)
        linears = [layer_of(name) for name in self.names() if name.endswith(".weight") and name != _EMBEDDING]
        overrides = [
            Override(linear, self.formats.get(linear))
            for linear in linears
            if wanted.format_of(linear) != self.formats.get(linear)
        ]
        return Recipe(default, tuple(overrides))

    @property
    def identity(self) -> str:
        """SHA-256 that changes with configuration, weights, scales, adapter and tokenizer; see `checkpoint_identity`."""
        # Once: it reads the weight files.
        if self._identity is None:
            facts = [self.config.to_dict(), sorted(self.formats.items())]
            self._identity = checkpoint_identity(facts, self._files.values(), self.adapter, self.path)
        return self._identity

    def _stored(self, name: str) -> Tensor:
        stored = self._stored_name(name)
        return self._files[stored].tensor(stored)


Naming = Callable[[str], str]


def _unchanged(name: str) -> str:
    return name


def _formats(config: ModelConfig, scheme: QuantizationScheme) -> dict[str, LinearFormat]:
    """Formats of quantised layers, by decoder name without `.weight`."""
    found = {}
    for name, shape in layout.decoder_shapes(config).items():
        form = scheme.format_of(layer_of(name)) if len(shape) == 2 and name != _EMBEDDING else None
        if form is not None:
            found[layer_of(name)] = form
            if form is LinearFormat.NVFP4 and shape[1] % NVFP4_BLOCK:
                raise CheckpointError(name, f"{shape[1]} columns", f"a multiple of {NVFP4_BLOCK} for NVFP4")
    for name in scheme.layers:
        if scheme.format_of(name) is not None and to_decoder_name(name) not in found:
            raise CheckpointError(f"{QUANT_CONFIG_FILE} quantized_layers", name, "linear layers of the model")
    if not found:
        raise CheckpointError(QUANT_CONFIG_FILE, "no quantised layer", "at least one; every layer is excluded")
    return found


def _check_tensors(config: ModelConfig, formats: dict[str, LinearFormat], files: dict[str, TensorFile], naming: Naming) -> None:
    """Names, dtypes and shapes of all stored tensors."""
    packed: dict[str, tuple[str, tuple[int, ...]]] = {}
    plain: dict[str, tuple[int, ...]] = {}
    for name, shape in layout.decoder_shapes(config).items():
        form = formats.get(layer_of(name))
        if form is None:
            plain[naming(name)] = shape
        else:
            parts = stored_parts(form, (shape[0], shape[1]))
            packed |= {naming(f"{layer_of(name)}.{part}"): facts for part, facts in parts.items()}
    check_names(files, {**plain, **packed}, layout.WEIGHTS_FILE)
    entries: dict[str, Any] = {name: file.entries[name] for name, file in files.items()}
    for name, (dtype, shape) in packed.items():
        if entries[name].dtype != _CODES[dtype]:
            raise CheckpointError(name, f"dtype {entries[name].dtype}", f"{_CODES[dtype]} by {QUANT_CONFIG_FILE}")
        # Some writers store a scalar as a vector of one.
        if entries[name].shape != shape and (shape or entries[name].shape != (1,)):
            raise CheckpointError(name, f"shape {list(entries[name].shape)}", f"{list(shape)} by {QUANT_CONFIG_FILE}")
    check_shapes({name: entries[name].shape for name in plain}, plain)
    dtype = check_one_dtype({name: entries[name].dtype for name in plain})
    if dtype not in FLOAT_DTYPES:
        raise CheckpointError(next(iter(plain)), f"dtype {dtype}", ", ".join(FLOAT_DTYPES))
