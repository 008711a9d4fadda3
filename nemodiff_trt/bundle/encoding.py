"""Encode combined matrices: the parts of a quantised layer as they are stored. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.bundle.manifest import Combine, Encoding, WeightLayout
from nemodiff_trt.quantization.formats import (
    Fp8Tensor,
    Nvfp4Tensor,
    amax_of,
    fp8_scale,
    nvfp4_global_scale,
    pack_fp8,
    pack_nvfp4,
)
from nemodiff_trt.quantization.recipe import WeightScales, layer_of
from nemodiff_trt.vocabulary import LinearFormat

_SCALE_OF = {LinearFormat.FP8: fp8_scale, LinearFormat.NVFP4: nvfp4_global_scale}


@dataclass(frozen=True, slots=True)
class QuantizedScales:
    """What encoding needs beyond the matrices: the range of a layer's input by its name, and how block scales are chosen."""

    input_amax: Callable[[str], float]
    weights: WeightScales = WeightScales.MAX


class MatrixEncoder:
    """Encodes matrices one source at a time. Matrices that are stored as one share the largest magnitude of all of them."""

    def __init__(self, scales: QuantizedScales) -> None:
        self._scales = scales
        self._amax: dict[tuple[str, ...], Tensor] = {}

    def blocks(self, layout: WeightLayout, sources: list[Tensor]) -> Iterator[Tensor]:
        """Consecutive rows of the stored tensor; a scale as [1].

        Args:
            layout: says what of the matrix is stored; not plain.
            sources: combined as the layout says, [out,in] each, in the dtype of the checkpoint.
        """
        encoding, form = layout.encoding, layout.encoding.linear_format
        assert form is not None, "a plain layout is not encoded"
        if encoding.is_input_scale:
            names = layout.sources if layout.combine is Combine.CONCAT else layout.sources[:1]
            amax = max(self._scales.input_amax(layer_of(name)) for name in names)
            yield _SCALE_OF[form](torch.tensor(amax)).reshape(1)
            return
        key = (*layout.sources, layout.combine)
        if key not in self._amax:
            self._amax[key] = torch.stack([amax_of(source) for source in sources]).max()
        amax_of_all = self._amax[key]
        if encoding in (Encoding.FP8_WEIGHT_SCALE, Encoding.NVFP4_WEIGHT_SCALE):
            yield _SCALE_OF[form](amax_of_all).reshape(1)
            return
        packed = (self._pack(form, source, amax_of_all) for source in sources)
        if layout.transposed:
            # Only for engines that emulate: their matrices are small.
            whole = torch.cat([matrix.dequantize() for matrix in packed])
            yield whole.t().to(getattr(torch, layout.dtype)).contiguous()
            return
        for matrix in packed:
            yield _part(matrix, encoding, getattr(torch, layout.dtype))

    def _pack(self, form: LinearFormat, source: Tensor, amax: Tensor) -> Fp8Tensor | Nvfp4Tensor:
        if form is LinearFormat.FP8:
            return pack_fp8(source, amax)
        return pack_nvfp4(source, amax, least_error=self._scales.weights is WeightScales.MSE)


def _part(matrix: Fp8Tensor | Nvfp4Tensor, encoding: Encoding, dtype: torch.dtype) -> Tensor:
    if encoding in (Encoding.FP8_DEQUANTIZED, Encoding.NVFP4_DEQUANTIZED):
        return matrix.dequantize(dtype)
    if isinstance(matrix, Fp8Tensor):
        return matrix.values
    return matrix.payload if encoding is Encoding.NVFP4 else matrix.block_scales
