"""The weight file of a bundle: one safetensors file, memory-mapped, read by every engine and by the eager decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemodiff_trt.bundle.manifest import Combine, Encoding, WeightLayout
from nemodiff_trt.bundle.reader import Bundle
from nemodiff_trt.bundle.safetensors_layout import read_header
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.vocabulary import LinearFormat, Role

if TYPE_CHECKING:
    from torch import Tensor

# numpy has no bfloat16 and nothing narrower: such tensors are mapped as their bits, and `tensor_over` gives them their type.
_NUMPY_DTYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float4_e2m1fn_x2": "uint8",
}

_WITH_A_MATRIX = (Encoding.PLAIN, Encoding.FP8, Encoding.NVFP4, Encoding.FP8_DEQUANTIZED, Encoding.NVFP4_DEQUANTIZED)


def mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read-only views into the memory-mapped safetensors file at `path`, by stored name; bfloat16 comes as its bits in uint16.

    Nothing is read before it is touched; the views keep the mapping alive.
    """
    spans = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        name: data[span.start : span.start + span.num_bytes].view(_NUMPY_DTYPES[span.dtype]).reshape(span.shape)
        for name, span in spans.items()
    }


def tensor_over(array: np.ndarray, dtype: str) -> Tensor:
    """Tensor of the stored `dtype` over the memory of an array of `mapped_tensors`. It must not be written to."""
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and warns about the mapping's protection; nobody writes to these.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(getattr(torch, dtype))


def source_tensors(bundle: Bundle, role: Role | None = None) -> dict[str, Tensor]:
    """Decoder parameters by their own names, as views of the mapped weight file: no copies.

    Quantised layers give the numbers that their codes stand for, which are copies where the file holds codes. `role` is that of
    the engine whose parameters are wanted, which matters where drafting has a precision of its own.

    The result fits `TriModeDecoder.load_state_dict(..., strict=True, assign=True)`, given that the decoder has an adapter if
    and only if the manifest has one. The tensors must not be written to.
    """
    manifest = bundle.manifest
    layouts = role_layouts(manifest.weights, manifest.quantization, role)
    return split_sources(manifest.model, layouts, mapped_tensors(bundle.weights_path))


def input_scales(
    layouts: Mapping[str, WeightLayout], stored: Mapping[str, np.ndarray]
) -> dict[str, tuple[LinearFormat, Tensor]]:
    """Format and scale (fp32 []) of the inputs of every quantised layer, by its name without `.weight`."""
    found: dict[str, tuple[LinearFormat, Tensor]] = {}
    for name, layout in layouts.items():
        form = layout.encoding.linear_format
        if layout.encoding.is_input_scale and form is not None:
            scale = tensor_over(stored[name].reshape(1), layout.dtype).reshape(())
            found |= {source.removesuffix(".weight"): (form, scale) for source in layout.sources}
    return found


def role_layouts(
    layouts: Mapping[str, WeightLayout], quantization: QuantizationFacts | None, role: Role | None
) -> dict[str, WeightLayout]:
    """Those of `layouts` that the engine of `role` reads: a layer that drafting quantises in another way is stored twice."""
    if quantization is None:
        return dict(layouts)
    recipe = quantization.recipe_of(role or Role.VERIFY)

    def belongs(layout: WeightLayout) -> bool:
        form = layout.encoding.linear_format
        wanted = {recipe.format_of(source.removesuffix(".weight")) for source in layout.sources[:1]}
        return form in wanted or (form is None and not wanted)

    return {name: layout for name, layout in layouts.items() if belongs(layout)}


def split_sources(model: ModelConfig, layouts: dict[str, WeightLayout], stored: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Undo `layouts`: the sources of all concatenated tensors in `stored`, [out,in] each."""
    import torch

    found: dict[str, Tensor] = {}
    for name, layout in layouts.items():
        if layout.combine is not Combine.CONCAT or layout.encoding not in _WITH_A_MATRIX:
            continue
        tensor = _matrix(name, layouts, stored)
        tensor = tensor.t() if layout.transposed else tensor
        widths = [source_width(model, source) for source in layout.sources] if len(layout.sources) > 1 else [tensor.shape[0]]
        found.update(zip(layout.sources, torch.split(tensor, widths), strict=True))
    return found


def _matrix(name: str, layouts: dict[str, WeightLayout], stored: dict[str, np.ndarray]) -> Tensor:
    """Numbers of a stored matrix, those that its codes stand for if it is quantised."""
    import torch

    from nemodiff_trt.quantization.formats import Fp8Tensor, Nvfp4Tensor

    def part(suffix: str) -> Tensor:
        return tensor_over(stored[f"{name}.{suffix}"], layouts[f"{name}.{suffix}"].dtype)

    encoding = layouts[name].encoding
    tensor = tensor_over(stored[name], layouts[name].dtype)
    if encoding is Encoding.FP8:
        return Fp8Tensor(tensor, part("weight_scale").reshape(())).dequantize()
    if encoding is Encoding.NVFP4:
        return Nvfp4Tensor(tensor.view(torch.uint8), part("block_scales"), part("weight_scale").reshape(())).dequantize()
    return tensor


def source_width(model: ModelConfig, source: str) -> int:
    """Rows of a decoder matrix that can be part of a concatenation."""
    widths = {
        "q_proj": model.query_width,
        "k_proj": model.key_value_width,
        "v_proj": model.key_value_width,
        "gate_proj": model.intermediate_size,
        "up_proj": model.intermediate_size,
    }
    return widths[source.split(".")[-2]]
