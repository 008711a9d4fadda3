"""`hf_quant_config.json`, and the same facts in `config.json`: which layers of a checkpoint ModelOpt has quantised, and how."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.checkpoint.ministral3 import to_decoder_name, to_ministral3_name
from nemodiff_trt.config import read_json_object
from nemodiff_trt.errors import CheckpointError
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

QUANT_CONFIG_FILE = "hf_quant_config.json"
# The version whose layout this is. Loaders take files of this producer only.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_ALGORITHMS = {LinearFormat.FP8: "FP8", LinearFormat.NVFP4: "NVFP4"}
_FORMATS = {name: form for form, name in _ALGORITHMS.items()}
_MIXED = "MIXED_PRECISION"
_NUM_BITS = {LinearFormat.FP8: 8, LinearFormat.NVFP4: 4}


@dataclass(frozen=True, slots=True)
class QuantizationScheme:
    """Formats of layers by their name, in either naming of the layers.

    Args:
        default: of every linear layer that is not excluded; None where `layers` lists them.
        excluded: names or patterns.
        layers: formats of single layers.
        has_cache_scales: the file also holds scales for a quantised cache.
    """

    default: LinearFormat | None
    excluded: tuple[str, ...]
    layers: Mapping[str, LinearFormat]
    has_cache_scales: bool

    def format_of(self, linear: str) -> LinearFormat | None:
        """Format of the layer that the decoder calls `linear`, without `.weight`."""
        names = (linear, to_ministral3_name(linear))
        listed = next((self.layers[name] for name in names if name in self.layers), self.default)
        is_excluded = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.excluded)
        return None if is_excluded else listed


def read_scheme(directory: Path, config: dict[str, Any]) -> QuantizationScheme | None:
    """What `directory` says about its quantisation; None where it says nothing.

    Args:
        directory: of the checkpoint.
        config: content of its `config.json`.

    Raises:
        CheckpointError: names the field that is missing, unknown, or asks for what is not read here.
    """
    embedded = config.get("quantization_config")
    if (directory / QUANT_CONFIG_FILE).exists():
        content = read_json_object(directory / QUANT_CONFIG_FILE, QUANT_CONFIG_FILE).get("quantization")
        if not isinstance(content, dict):
            raise CheckpointError(f"{QUANT_CONFIG_FILE} quantization", content, "a JSON object")
        scheme = _parse(QUANT_CONFIG_FILE, content, content.get("exclude_modules"), content.get("kv_cache_quant_algo"))
        if isinstance(embedded, dict) and embedded.get("quant_algo") != content["quant_algo"]:
            where = f"{content['quant_algo']} as in {QUANT_CONFIG_FILE}"
            raise CheckpointError("quantization_config quant_algo", embedded.get("quant_algo"), where)
        return scheme
    if embedded is None:
        return None
    if not isinstance(embedded, dict) or embedded.get("quant_method") != "modelopt":
        found = embedded.get("quant_method") if isinstance(embedded, dict) else embedded
        raise CheckpointError("quantization_config quant_method", found, "modelopt")
    sizes = [
        part.get("group_size")
        for group in (embedded.get("config_groups") or {}).values()
        for part in (group.get("weights"), group.get("input_activations"))
        if isinstance(part, dict) and part.get("num_bits") == _NUM_BITS[LinearFormat.NVFP4]
    ]
    content = {"group_size": sizes[0] if len(set(sizes)) == 1 else sizes or None, **embedded}
    return _parse("quantization_config", content, embedded.get("ignore"), embedded.get("kv_cache_scheme"))


def _parse(where: str, content: dict[str, Any], excluded: Any, cache: Any) -> QuantizationScheme:
    algorithm = content.get("quant_algo")
    if excluded is None:
        excluded = []
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise CheckpointError(f"{where} exclude_modules", excluded, "a list of names")
    layers: dict[str, LinearFormat] = {}
    if algorithm == _MIXED:
        listed = content.get("quantized_layers")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{where} quantized_layers", listed, "formats by layer")
        for name, entry in listed.items():
            if not isinstance(entry, dict):
                raise CheckpointError(f"{where} quantized_layers {name}", entry, "an object with quant_algo")
            layers[name] = _format(f"{where} {name}", entry)
        return QuantizationScheme(None, tuple(excluded), layers, cache is not None)
    return QuantizationScheme(_format(where, content), tuple(excluded), layers, cache is not None)


def _format(where: str, content: dict[str, Any]) -> LinearFormat:
    algorithm = content.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm not in _FORMATS:
        raise CheckpointError(f"{where} quant_algo", algorithm, ", ".join((*_FORMATS, _MIXED)))
    form = _FORMATS[algorithm]
    if form is LinearFormat.NVFP4 and content.get("group_size") != NVFP4_BLOCK:
        raise CheckpointError(f"{where} group_size", content.get("group_size"), f"{NVFP4_BLOCK} for NVFP4")
    return form


def quantization_files(formats: Mapping[str, LinearFormat | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of `hf_quant_config.json`, and of `quantization_config` in `config.json`.

    Args:
        formats: of every linear layer and the embedding by decoder name, without `.weight`; at least one is quantised.
    """
    named = {to_ministral3_name(name): form for name, form in formats.items()}
    quantized = {name: form for name, form in named.items() if form is not None}
    excluded = sorted(name for name, form in named.items() if form is None)
    used = sorted(set(quantized.values()))
    if len(used) == 1:
        details: dict[str, Any] = {"quant_algo": _ALGORITHMS[used[0]], "kv_cache_quant_algo": None, **_group_size(used[0])}
        details["exclude_modules"] = excluded
        groups = {"group_0": {**_group(used[0]), "targets": ["Linear"]}}
        listed = {}
    else:
        layers = {name: {"quant_algo": _ALGORITHMS[form], **_group_size(form)} for name, form in quantized.items()}
        details = {"quant_algo": _MIXED, "kv_cache_quant_algo": None, "quantized_layers": layers, "exclude_modules": excluded}
        groups = {
            f"group_{index}": {**_group(form), "targets": sorted(name for name in quantized if quantized[name] is form)}
            for index, form in enumerate(used)
        }
        listed = {"quantized_layers": layers}
    embedded = {
        "config_groups": groups,
        **listed,
        "ignore": excluded,
        "quant_algo": details["quant_algo"],
        "producer": _PRODUCER,
        "quant_method": "modelopt",
    }
    return {"producer": _PRODUCER, "quantization": details}, embedded


def _group_size(form: LinearFormat) -> dict[str, int]:
    return {"group_size": NVFP4_BLOCK} if form is LinearFormat.NVFP4 else {}


def _group(form: LinearFormat) -> dict[str, Any]:
    part = {"dynamic": False, "num_bits": _NUM_BITS[form], "type": "float", **_group_size(form)}
    return {"input_activations": part, "weights": dict(part)}


def is_cache_scale(name: str) -> bool:
    """Whether a stored tensor is a scale of the cache: engines here keep theirs in the precision of activations."""
    return to_decoder_name(name).endswith((".self_attn.k_proj.k_scale", ".self_attn.v_proj.v_scale"))
