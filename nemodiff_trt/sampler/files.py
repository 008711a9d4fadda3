"""A sampler on disk: `sampler.json` with its sizes and how it was trained, `sampler.safetensors` with float32 weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.sampler.settings import NUM_CANDIDATES, SCALARS, SamplerSettings

CONFIG_FILE, WEIGHTS_FILE = "sampler.json", "sampler.safetensors"


def weight_shapes(settings: SamplerSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    width, ffn = settings.hidden_size, settings.ffn_size
    num_inputs = len(SCALARS) + (1 + NUM_CANDIDATES) * settings.embedding_size
    matrices = {"input": (width, num_inputs), "head": (1, width)}
    vectors = ["norm"]
    for layer in range(settings.num_layers):
        name = f"layers.{layer}."
        matrices |= {f"{name}qkv": (3 * width, width), f"{name}output": (width, width)}
        matrices |= {f"{name}up": (ffn, width), f"{name}down": (width, ffn)}
        vectors += [f"{name}norm_attention", f"{name}norm_ffn"]
    shapes: dict[str, tuple[int, ...]] = {"mean": (len(SCALARS),), "spread": (len(SCALARS),)}
    shapes["embedding.weight"] = (settings.vocab_size, settings.embedding_size)
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in vectors:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def write_sampler(
    directory: Path, settings: SamplerSettings, weights: Mapping[str, np.ndarray], training: Mapping[str, Any]
) -> None:
    """Write both files into `directory`, made if needed; each appears only when it is whole, the configuration last."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    with replaced_file(directory / WEIGHTS_FILE) as partial:
        save_file(dict(weights), partial)
    content = {"sampler": asdict(settings), "training": dict(training)}
    with replaced_file(directory / CONFIG_FILE) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_sampler(directory: Path) -> tuple[SamplerSettings, dict[str, np.ndarray]]:
    """Sizes and float32 weights of the sampler in `directory`.

    Raises:
        InvalidInputError: a file is missing or unreadable, or a tensor is missing, left over, or of another shape or dtype.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInputError(
            "sampler", str(directory), f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}: {error}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("sampler"), dict):
        raise InvalidInputError("sampler", str(directory / CONFIG_FILE), 'an object with "sampler"')
    settings = SamplerSettings.from_dict(content["sampler"])
    shapes = weight_shapes(settings)
    for name in sorted(shapes.keys() ^ weights.keys()):
        raise InvalidInputError("sampler", name, f"exactly the {len(shapes)} tensors of {CONFIG_FILE}")
    for name, shape in shapes.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            found = f"{name} {weights[name].dtype} {list(weights[name].shape)}"
            raise InvalidInputError("sampler", found, f"float32 {list(shape)}")
    return settings, weights
