"""The weight file of a bundle: one safetensors file, memory-mapped, read by every engine and by the eager decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemodiff_trt.bundle.manifest import Combine, WeightLayout
from nemodiff_trt.bundle.reader import Bundle
from nemodiff_trt.bundle.safetensors_layout import read_header
from nemodiff_trt.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

# numpy has no bfloat16: such tensors are mapped as their bits, and `tensor_over` gives them their type in torch.
_NUMPY_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


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


def source_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """Decoder parameters by their own names, as views of the mapped weight file: no copies.

    The result fits `TriModeDecoder.load_state_dict(..., strict=True, assign=True)`, given that the decoder has an adapter if
    and only if the manifest has one. The tensors must not be written to.
    """
    return split_sources(bundle.manifest.model, bundle.manifest.weights, mapped_tensors(bundle.weights_path))


def split_sources(model: ModelConfig, layouts: dict[str, WeightLayout], stored: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Undo `layouts`: the sources of all concatenated tensors in `stored`, [out,in] each."""
    import torch

    found: dict[str, Tensor] = {}
    for name, layout in layouts.items():
        if layout.combine is not Combine.CONCAT:
            continue
        tensor = tensor_over(stored[name], layout.dtype)
        tensor = tensor.t() if layout.transposed else tensor
        widths = [source_width(model, source) for source in layout.sources] if len(layout.sources) > 1 else [tensor.shape[0]]
        found.update(zip(layout.sources, torch.split(tensor, widths), strict=True))
    return found


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
