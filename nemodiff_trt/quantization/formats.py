"""Two number formats of linear layers, packed and unpacked exactly as ModelOpt does.

FP8 (W8A8): float8_e4m3fn with one fp32 scale a tensor, `scale = amax / 448`.

NVFP4 (W4A4): 16 neighbours along the input axis share an e4m3 block scale, all blocks share one fp32 global scale:

    global_scale = amax / (6 * 448)        block_scale = e4m3(block_amax / (6 * global_scale))
    code = e2m1(x / (block_scale * global_scale))        two codes a byte, the even column in the low half

e2m1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 and rounds ties to the even code; bit 3 is the sign. Formats:
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf (e2m1, e4m3),
https://github.com/NVIDIA/Model-Optimizer (scales; `NVFP4QTensor` and `to_quantized_weight`). All functions are pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

E4M3_MAX = 448.0
E2M1_MAX = 6.0
# Block scales never become zero: a block of tiny numbers keeps the smallest e4m3 subnormal.
_E4M3_MIN = 2.0**-9
_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E4M3_LARGEST_CODE = 0x7E
# Three mantissa bits: eight steps double a scale. A scale two thirds as large cuts off the largest number of a block, one half
# larger puts it on 4, beside which the codes are closer; 0 first, which wins ties.
_SCALE_OFFSETS = (0, -1, 1, -2, 2, -3, 3, -4, 4, 5)
# Rows are packed in pieces: fp32 copies of a whole feed-forward matrix of 14B would take 1.3 GB.
_PIECE_NUMBERS = 1 << 22


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """A matrix in FP8: `values` float8_e4m3fn [out,in], `scale` fp32 []. In ModelOpt's files: `weight`, `weight_scale`."""

    values: Tensor
    scale: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`values * scale` [out,in], computed in `dtype`."""
        return self.values.to(dtype) * self.scale.to(dtype)


@dataclass(frozen=True, slots=True)
class Nvfp4Tensor:
    """A matrix in NVFP4. In ModelOpt's files: `weight`, `weight_scale`, `weight_scale_2`.

    Args:
        payload: uint8 [out,in/2], two codes a byte.
        block_scales: float8_e4m3fn [out,in/16].
        global_scale: fp32 [].
    """

    payload: Tensor
    block_scales: Tensor
    global_scale: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers [out,in] that the codes stand for, computed in fp32 and returned in `dtype`."""
        values = unpack_codes(self.payload)
        scales = self.block_scales.to(torch.float32) * self.global_scale
        blocks = _blocks(values) * scales.unsqueeze(-1)
        return blocks.flatten(-2).to(dtype)


def amax_of(x: Tensor) -> Tensor:
    """Largest magnitude of `x`, fp32 []. No copy of `x` is made."""
    low, high = torch.aminmax(x)
    return torch.maximum(low.abs(), high.abs()).to(torch.float32)


def joint_amax(matrices: Iterable[Tensor]) -> Tensor:
    """Largest magnitude of matrices that share one scale, fp32 []."""
    return torch.stack([amax_of(matrix) for matrix in matrices]).max()


def scale_of(form: LinearFormat, amax: Tensor) -> Tensor:
    """Scale of a whole tensor in `form`, fp32 []: `fp8_scale` or `nvfp4_global_scale`."""
    return fp8_scale(amax) if form is LinearFormat.FP8 else nvfp4_global_scale(amax)


def fp8_scale(amax: Tensor) -> Tensor:
    """Scale of an FP8 tensor whose largest magnitude is `amax`, fp32 []. A tensor of zeros has scale 1.

    Raises:
        InvalidInputError: `amax` is negative or not finite.
    """
    return _scale(amax, E4M3_MAX)


def nvfp4_global_scale(amax: Tensor) -> Tensor:
    """Global scale of an NVFP4 tensor whose largest magnitude is `amax`, fp32 []. A tensor of zeros has scale 1.

    Raises:
        InvalidInputError: `amax` is negative or not finite.
    """
    return _scale(amax, E2M1_MAX * E4M3_MAX)


def _scale(amax: Tensor, largest: float) -> Tensor:
    value = float(amax)
    if not math.isfinite(value) or value < 0:
        raise InvalidInputError("amax", value, "a finite number of at least 0; the tensor holds infinities or NaN")
    scale = amax.to(torch.float32) / largest
    return scale if float(scale) > 0 else torch.ones((), device=amax.device)


def pack(form: LinearFormat, weight: Tensor, amax: Tensor, least_error: bool) -> Fp8Tensor | Nvfp4Tensor:
    """`pack_fp8` or `pack_nvfp4` by `form`; `least_error` matters to block scales only."""
    return pack_fp8(weight, amax) if form is LinearFormat.FP8 else pack_nvfp4(weight, amax, least_error)


def pack_fp8(weight: Tensor, amax: Tensor | None = None) -> Fp8Tensor:
    """Quantise a matrix [out,in] to FP8.

    Args:
        weight: any float dtype.
        amax: largest magnitude to represent, fp32 []; of `weight` by default. Matrices that are concatenated later get the
            largest of theirs, so that one scale serves all.

    Raises:
        InvalidInputError: `amax` or a number of `weight` is not finite, or `amax` is smaller than a number of `weight`.
    """
    amax = _covering(weight, amax)
    scale = fp8_scale(amax)
    return Fp8Tensor(torch.cat([(rows.to(torch.float32) / scale).to(torch.float8_e4m3fn) for rows in _pieces(weight)]), scale)


def pack_nvfp4(weight: Tensor, amax: Tensor | None = None, least_error: bool = False) -> Nvfp4Tensor:
    """Quantise a matrix [out,in] to NVFP4.

    Args:
        weight: any float dtype; `in` is a multiple of 16.
        amax: as for `pack_fp8`. It sets the global scale only: block scales of concatenated matrices are independent.
        least_error: choose each block scale among its neighbours by the squared error, instead of by the largest magnitude.

    Raises:
        InvalidInputError: see `pack_fp8`; also when `in` is not a multiple of 16.
    """
    check_blocks(weight.shape[-1])
    global_scale = nvfp4_global_scale(_covering(weight, amax))
    pieces = [_pack_rows(rows, global_scale, least_error) for rows in _pieces(weight)]
    return Nvfp4Tensor(torch.cat([codes for codes, _ in pieces]), torch.cat([scales for _, scales in pieces]), global_scale)


def check_blocks(width: int) -> None:
    """Refuse an input axis that does not consist of whole NVFP4 blocks.

    Raises:
        InvalidInputError: `width` is not a multiple of 16.
    """
    if width % NVFP4_BLOCK:
        raise InvalidInputError("in_features", width, f"a multiple of {NVFP4_BLOCK} for nvfp4")


def _covering(weight: Tensor, amax: Tensor | None) -> Tensor:
    own = amax_of(weight)
    if amax is None:
        return own
    # Some room for an amax that went through other arithmetic: a quotient just above 448 still rounds to 448.
    if not float(own) <= float(amax) * (1 + 1e-5):
        raise InvalidInputError("amax", float(amax), f"at least the largest magnitude of the matrix, {float(own)}")
    return amax.to(torch.float32)


def _pieces(weight: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight, max(_PIECE_NUMBERS // weight.shape[-1], 1))


def _pack_rows(rows: Tensor, global_scale: Tensor, least_error: bool = False) -> tuple[Tensor, Tensor]:
    """Payload and block scales of some rows [n,in]."""
    scales = nvfp4_block_scales(rows, global_scale)
    if least_error:
        scales = _least_error_scales(rows, scales, global_scale)
    codes = _encode(_scaled(rows, scales, global_scale))
    return (codes[..., 1::2] << 4) | codes[..., 0::2], scales


def _blocks(x: Tensor) -> Tensor:
    """View [...,in/16,16] of `x` [...,in]."""
    return x.reshape(*x.shape[:-1], -1, NVFP4_BLOCK)


def nvfp4_block_scales(x: Tensor, global_scale: Tensor) -> Tensor:
    """Block scales of `x` [...,in] under `global_scale`, float8_e4m3fn [...,in/16]. A block of zeros gets 1, as in ModelOpt."""
    amax = _blocks(x).abs().amax(-1).to(torch.float32)
    scales = amax / (E2M1_MAX * global_scale)
    scales = torch.where(scales == 0, 1.0, scales)
    return scales.clamp(_E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)


def _least_error_scales(rows: Tensor, scales: Tensor, global_scale: Tensor) -> Tensor:
    """Block scales whose codes come closest to `rows`, each at most a few e4m3 steps from that of the largest magnitude."""
    wide, codes = rows.to(torch.float32), scales.view(torch.uint8).to(torch.int16)
    best, least = scales, torch.full(scales.shape, math.inf, device=rows.device)
    for offset in _SCALE_OFFSETS:
        # Positive e4m3 numbers are ordered like their bits.
        tried = (codes + offset).clamp(1, _E4M3_LARGEST_CODE).to(torch.uint8).view(torch.float8_e4m3fn)
        found = _round_e2m1(_scaled(wide, tried, global_scale))
        steps = (tried.to(torch.float32) * global_scale).unsqueeze(-1)
        error = (_blocks(found) * steps - _blocks(wide)).square().sum(-1)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = torch.where(is_better, tried.view(torch.uint8), best.view(torch.uint8)).view(torch.float8_e4m3fn)
    return best


def _round_e2m1(x: Tensor) -> Tensor:
    codes = _encode(x)
    return torch.tensor(_E2M1_MAGNITUDES, device=x.device)[(codes & 7).int()].copysign(x)


def _scaled(x: Tensor, scales: Tensor, global_scale: Tensor) -> Tensor:
    steps = scales.to(torch.float32) * global_scale
    return (_blocks(x).to(torch.float32) / steps.unsqueeze(-1)).flatten(-2)


def _encode(x: Tensor) -> Tensor:
    """e2m1 codes of fp32 numbers, uint8 of the same shape; beyond 6 they saturate."""
    codes = torch.bucketize(x.abs(), _bounds(x.device), out_int32=True).to(torch.uint8)
    return codes + ((x < 0).to(torch.uint8) << 3)


def _bounds(device: torch.device) -> Tensor:
    """Upper ends of the codes' intervals. Ties go to the even code: every second bound belongs to the code above it."""
    values = torch.tensor(_E2M1_MAGNITUDES, device=device)
    middles = (values[1:] + values[:-1]) / 2
    below = torch.nextafter(middles, torch.zeros_like(middles))
    is_odd = torch.arange(len(middles), device=device) % 2 == 1
    return torch.where(is_odd, below, middles)


def unpack_codes(payload: Tensor) -> Tensor:
    """Magnitudes with sign of packed codes: uint8 [...,n] -> fp32 [...,2n]."""
    table = torch.tensor(_E2M1_MAGNITUDES + tuple(-value for value in _E2M1_MAGNITUDES), device=payload.device)
    codes = torch.stack((payload & 0xF, payload >> 4), dim=-1).flatten(-2)
    return table[codes.int()]


def fake_quantize_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to FP8 and back, in fp32 and returned in its dtype; what `scale` (fp32 []) cannot represent saturates.

    A hardware conversion saturates; torch's own makes NaN of numbers above 464.
    """
    scaled = (x.to(torch.float32) / scale).clamp(-E4M3_MAX, E4M3_MAX)
    return (scaled.to(torch.float8_e4m3fn).to(torch.float32) * scale).to(x.dtype)


def fake_quantize_nvfp4(x: Tensor, global_scale: Tensor) -> Tensor:
    """`x` [...,in] rounded to NVFP4 and back: block scales of its own numbers below `global_scale` (fp32 []).

    Returned in the dtype of `x`.

    Raises:
        InvalidInputError: `in` is not a multiple of 16.
    """
    check_blocks(x.shape[-1])
    payload, scales = _pack_rows(x, global_scale)
    return Nvfp4Tensor(payload, scales, global_scale).dequantize(x.dtype)
