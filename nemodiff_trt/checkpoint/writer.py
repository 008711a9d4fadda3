"""Write a checkpoint of the published layout: BF16 weights in one file, configuration, and the draft adapter in F32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.checkpoint import layout
from nemodiff_trt.checkpoint.adapter import AdapterSettings
from nemodiff_trt.checkpoint.checks import check_names, check_shapes
from nemodiff_trt.config import CONFIG_FILE, ModelConfig
from nemodiff_trt.errors import InvalidInputError

_ADAPTER_MARK = ".self_attn.adapter."


def write_checkpoint(
    directory: Path | str, config: ModelConfig, state_dict: Mapping[str, Tensor], adapter: AdapterSettings | None = None
) -> None:
    """Write weights, adapter and configuration into `directory`, which is made if needed. Tokenizer files are the caller's.

    Each file appears under its name only when it is whole, `config.json` last.

    Args:
        directory: the checkpoint folder. Files of the same names are replaced.
        config: goes to `config.json`.
        state_dict: state of a `TriModeDecoder`, any float dtype, on any device.
        adapter: rank and alpha of the attached adapter, whose matrices are then expected in `state_dict`. Without it they
            are not written, and `directory` must not hold an adapter yet: it would belong to other weights.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape than `config` asks for.
        InvalidInputError: `directory` holds an adapter or shards that would be mixed with the new weights.
    """
    path = Path(directory)
    stale = [layout.INDEX_FILE] if adapter else [layout.INDEX_FILE, layout.ADAPTER_DIR]
    for name in stale:
        if (path / name).exists():
            raise InvalidInputError("directory", str(path), f"a folder without {name}, which belongs to other weights")
    base = {name: tensor for name, tensor in state_dict.items() if _ADAPTER_MARK not in name}
    _check(base, layout.decoder_shapes(config))
    matrices = _adapter_matrices(config, state_dict, adapter) if adapter else {}
    path.mkdir(parents=True, exist_ok=True)
    _write_tensors(path / layout.WEIGHTS_FILE, base, torch.bfloat16)
    if adapter:
        (path / layout.ADAPTER_DIR).mkdir(exist_ok=True)
        _write_tensors(path / layout.ADAPTER_DIR / layout.ADAPTER_WEIGHTS_FILE, matrices, torch.float32)
        _write_json(path / layout.ADAPTER_DIR / layout.ADAPTER_CONFIG_FILE, adapter.to_dict())
    _write_json(path / CONFIG_FILE, config.to_dict() | {"torch_dtype": "bfloat16"})


def _adapter_matrices(config: ModelConfig, state_dict: Mapping[str, Tensor], adapter: AdapterSettings) -> dict[str, Tensor]:
    """Adapter tensors of a decoder's state under their stored names."""
    found = {name: tensor for name, tensor in state_dict.items() if _ADAPTER_MARK in name}
    places = [(layer, matrix) for layer in range(config.num_hidden_layers) for matrix in ("A", "B")]
    check_names(found, {layout.adapter_decoder_name(*place): None for place in places}, "the state of the decoder")
    stored = {layout.adapter_tensor_name(*place): found[layout.adapter_decoder_name(*place)] for place in places}
    _check(stored, layout.adapter_shapes(config, adapter.rank))
    return stored


def _check(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    check_names(tensors, wanted, "the state of the decoder")
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    # A copy even where nothing is cast: the file refuses tensors that share memory, and the source may be mapped from `path`.
    stored = {name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    with replaced_file(path) as partial:
        save_file(stored, partial, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
