"""Encode combined matrices: the parts of a quantised layer as they are stored. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.bundle.manifest import Encoding, WeightLayout
from nemodiff_trt.errors import CheckpointError
from nemodiff_trt.quantization.formats import (
    Fp8Tensor,
    Nvfp4Tensor,
    joint_amax,
    pack,
    scale_of,
)
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear
from nemodiff_trt.quantization.recipe import WeightScales, layer_of
from nemodiff_trt.vocabulary import LinearFormat

# FP8 rows that are widened to fp32 at a time.
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class QuantizedScales:
    """What encoding needs beyond the matrices: the range of a layer's input by its name, and how block scales are chosen.

    `packed` gives layers of a checkpoint that is quantised already; they are stored with the codes and scales they have.
    """

    input_amax: Callable[[str], float]
    weights: WeightScales = WeightScales.MAX
    packed: Callable[[str], QuantizedLinear] | None = None


class MatrixEncoder:
    """Encodes matrices one source at a time. Matrices that are stored as one share the largest magnitude of all of them."""

    def __init__(self, scales: QuantizedScales) -> None:
        self._scales = scales
        self._amax: dict[tuple[str, ...], Tensor] = {}
        # Of the matrix that was asked for last only: codes and block scales of a whole model do not fit in memory.
        self._packed_key: tuple[object, ...] = ()
        self._packed: list[Fp8Tensor | Nvfp4Tensor] = []
        self._linears_key: tuple[str, ...] = ()
        self._linears: list[QuantizedLinear] = []

    @property
    def is_packed(self) -> bool:
        """Whether matrices come in codes: `packed_blocks` is for them, `blocks` for all others."""
        return self._scales.packed is not None

    def packed_blocks(self, layout: WeightLayout) -> Iterator[Tensor]:
        """As `blocks`, for layers that are quantised already.

        Raises:
            CheckpointError: NVFP4 matrices that are stored as one have different global scales, or a matrix holds NaN.
        """
        linears = self._packed_linears(layout.sources)
        if layout.encoding.is_input_scale:
            yield torch.stack([linear.input_scale for linear in linears]).max().reshape(1)
            return
        matrices = _joined([linear.weight for linear in linears], layout.sources)
        if layout.encoding in (Encoding.FP8_WEIGHT_SCALE, Encoding.NVFP4_WEIGHT_SCALE):
            first = matrices[0]
            yield (first.scale if isinstance(first, Fp8Tensor) else first.global_scale).reshape(1)
            return
        yield from _matrix_blocks(layout, matrices)

    def blocks(self, layout: WeightLayout, sources: list[Tensor]) -> Iterator[Tensor]:
        """Consecutive rows of the stored tensor; a scale as [1].

        Args:
            layout: says what of the matrix is stored; not plain.
            sources: combined as the layout says, [out,in] each, in the dtype of the checkpoint.
        """
        encoding, form = layout.encoding, layout.encoding.linear_format
        assert form is not None, "a plain layout is not encoded"
        if encoding.is_input_scale:
            amax = max(self._scales.input_amax(layer_of(name)) for name in layout.sources)
            yield scale_of(form, torch.tensor(amax)).reshape(1)
            return
        key = layout.sources
        if key not in self._amax:
            self._amax[key] = joint_amax(sources)
        amax_of_all = self._amax[key]
        if encoding in (Encoding.FP8_WEIGHT_SCALE, Encoding.NVFP4_WEIGHT_SCALE):
            yield scale_of(form, amax_of_all).reshape(1)
            return
        if self._packed_key != (key, form):
            self._packed = [self._pack(form, source, amax_of_all) for source in sources]
            self._packed_key = (key, form)
        yield from _matrix_blocks(layout, self._packed)

    def _packed_linears(self, names: tuple[str, ...]) -> list[QuantizedLinear]:
        """Layers of a quantised checkpoint, which are read through for NaN each time they are asked for."""
        assert self._scales.packed is not None, "checked by the caller"
        if self._linears_key != names:
            self._linears = [self._scales.packed(layer_of(name)) for name in names]
            self._linears_key = names
        return self._linears

    def _pack(self, form: LinearFormat, source: Tensor, amax: Tensor) -> Fp8Tensor | Nvfp4Tensor:
        return pack(form, source, amax, self._scales.weights is WeightScales.MSE)


def _matrix_blocks(layout: WeightLayout, matrices: Iterable[Fp8Tensor | Nvfp4Tensor]) -> Iterator[Tensor]:
    """What `layout` stores of the matrices themselves."""
    dtype = getattr(torch, layout.dtype)
    if layout.transposed:
        # Only for engines that emulate: their matrices are small.
        whole = torch.cat([matrix.dequantize() for matrix in matrices])
        yield whole.t().to(dtype).contiguous()
        return
    for matrix in matrices:
        yield _part(matrix, layout.encoding, dtype)


def _joined(matrices: list[Fp8Tensor | Nvfp4Tensor], names: tuple[str, ...]) -> list[Fp8Tensor | Nvfp4Tensor]:
    """The same with one scale for all: FP8 codes are rounded again to the largest, as servers that join them do."""
    scales = [matrix.scale if isinstance(matrix, Fp8Tensor) else matrix.global_scale for matrix in matrices]
    largest = torch.stack(scales).max()
    joined: list[Fp8Tensor | Nvfp4Tensor] = []
    for name, matrix, scale in zip(names, matrices, scales, strict=True):
        if torch.equal(scale, largest):
            joined.append(matrix)
        elif isinstance(matrix, Fp8Tensor):
            rows = torch.cat(
                [
                    (part.to(torch.float32) * (scale / largest)).to(torch.float8_e4m3fn)
                    for part in torch.split(matrix.values, _ROWS)
                ]
            )
            joined.append(Fp8Tensor(rows, largest))
        else:
            allowed = f"{float(largest)} as the layers that are one matrix with it"
            raise CheckpointError(f"{layer_of(name)}.weight_scale_2", float(scale), allowed)
    return joined


def _part(matrix: Fp8Tensor | Nvfp4Tensor, encoding: Encoding, dtype: torch.dtype) -> Tensor:
    if encoding in (Encoding.FP8_DEQUANTIZED, Encoding.NVFP4_DEQUANTIZED):
        return matrix.dequantize(dtype)
    if isinstance(matrix, Fp8Tensor):
        return matrix.values
    return matrix.payload if encoding is Encoding.NVFP4 else matrix.block_scales
