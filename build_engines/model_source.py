"""What a build starts from: a checkpoint, or the geometry of a published one and no weights at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nemodiff_trt.build_engines.imported_quantization import imported_quantization
from nemodiff_trt.build_engines.quantize import Quantization
from nemodiff_trt.bundle import AdapterFacts
from nemodiff_trt.bundle.weight_writer import Source, checkpoint_source
from nemodiff_trt.checkpoint import AdapterSettings, Checkpoint, resolve_checkpoint
from nemodiff_trt.checkpoint.layout import ADAPTER_CONFIG_FILE, ADAPTER_DIR
from nemodiff_trt.config import ModelConfig, read_json_object
from nemodiff_trt.full_size import ADAPTER_ALPHA, ADAPTER_RANK, FULL_SIZE_CONFIGS, full_size_config
from nemodiff_trt.options import AdapterForm, CompileOptions
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint, is_quantized


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model of a build.

    Args:
        model: geometry.
        adapter: the draft adapter that some role of this build applies, if any.
        identity: SHA-256 that names the model in the build key.
        tensors: decoder tensors by name; None without a checkpoint.
        tokenizer_dir: where the tokenizer's files lie; None without a checkpoint.
        quantization: recipes and ranges; None where nothing is quantised.
        checkpoint: opened, to calibrate; None without one, and for one that came quantised.
    """

    model: ModelConfig
    adapter: AdapterFacts | None
    identity: str
    tensors: Source | None
    tokenizer_dir: Path | None
    quantization: Quantization | None = None
    checkpoint: Checkpoint | None = None

    def quantized(self, quantization: Quantization) -> ModelSource:
        """The same model with quantised layers; its identity covers the scales."""
        identity = hashlib.sha256(f"{self.identity} {quantization.digest()}".encode()).hexdigest()
        return dataclasses.replace(self, identity=identity, quantization=quantization)


def open_source(options: CompileOptions) -> ModelSource:
    """The checkpoint or the geometry that `options` names.

    Raises:
        InvalidInputError: there is no such checkpoint, or it does not have the published layout.
    """
    is_wanted = any(role.uses_adapter for role in options.roles) and options.draft_adapter is not AdapterForm.NONE
    if options.config is not None:
        model, settings = _geometry(options.config)
        adapter = AdapterFacts(settings.rank, settings.scale) if is_wanted and settings else None
        identity = hashlib.sha256(json.dumps(model.to_dict(), sort_keys=True).encode()).hexdigest()
        return ModelSource(model, adapter, identity, None, None)
    directory = resolve_checkpoint(options.checkpoint or "")
    checkpoint = QuantizedCheckpoint.open(directory) if is_quantized(directory) else Checkpoint.open(directory)
    found = checkpoint.adapter
    adapter = AdapterFacts(found.rank, found.scale) if is_wanted and found is not None else None
    source = ModelSource(checkpoint.config, adapter, checkpoint.identity, checkpoint_source(checkpoint), checkpoint.path)
    if isinstance(checkpoint, QuantizedCheckpoint):
        return dataclasses.replace(source, quantization=imported_quantization(checkpoint, options))
    return dataclasses.replace(source, checkpoint=checkpoint)


def _geometry(config: str) -> tuple[ModelConfig, AdapterSettings | None]:
    """Configuration and adapter of a published size, or of a folder that need not hold any weights."""
    if config in FULL_SIZE_CONFIGS:
        return full_size_config(config), AdapterSettings(ADAPTER_RANK, ADAPTER_ALPHA)
    folder = Path(config)
    settings_path = folder / ADAPTER_DIR / ADAPTER_CONFIG_FILE
    settings = (
        AdapterSettings.from_dict(read_json_object(settings_path, ADAPTER_CONFIG_FILE)) if settings_path.exists() else None
    )
    return ModelConfig.from_file(folder), settings
