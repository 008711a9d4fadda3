"""Packed formats: exactly ModelOpt's bytes, and the properties of the numbers they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization import formats

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def matrix(seed: int, dtype: torch.dtype, rows: int = 24, columns: int = 96) -> Tensor:
    """Numbers over many orders of magnitude, some blocks tiny, one block and one row zero, exact ties included."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp(3 * torch.randn(rows, columns // 16, generator=generator)).repeat_interleave(16, dim=1).clamp(max=900)
    x[3], x[4, 16:32] = 0, 0
    x[5, :16] = torch.tensor([6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -6])
    x[6, :16] *= 1e-7
    return x.to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


class TestAgainstModelOpt:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("factor", [None, 1.0, 3.7])
    def test_nvfp4_tensors(self, dtype: torch.dtype, factor: float | None) -> None:
        from modelopt.torch.quantization.qtensor import NVFP4QTensor

        weight = matrix(1, dtype)
        amax = None if factor is None else formats.amax_of(weight) * factor
        theirs_2 = None if amax is None else amax / (6.0 * 448.0)
        theirs, scales, global_scale = NVFP4QTensor.quantize(weight.clone(), 16, weights_scaling_factor_2=theirs_2)
        ours = formats.pack_nvfp4(weight, amax)
        assert torch.equal(ours.payload, theirs._quantized_data)
        assert torch.equal(bits(ours.block_scales), bits(scales))
        assert torch.equal(ours.global_scale, global_scale)
        back = theirs.dequantize(torch.float32, scale=scales, double_scale=global_scale, block_sizes={-1: 16})
        assert torch.equal(ours.dequantize(), back)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
    def test_layers_as_exported(self, name: str, dtype: torch.dtype) -> None:
        """Through ModelOpt's calibration and the functions of its unified export, two fused layers sharing an amax."""
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import quant_utils

        from nemodiff_trt.quantization.modelopt_backend import cpu_config

        layers = torch.nn.Sequential(*(torch.nn.Linear(96, 24, bias=False, dtype=dtype) for _ in range(2)))
        fused = torch.nn.ModuleList(layers)
        for seed, layer in enumerate(fused):
            layer.weight.requires_grad_(False).copy_(matrix(seed, dtype) / 50)
        x = torch.randn(5, 96, dtype=dtype)
        with cpu_config(getattr(mtq, name)) as config:
            mtq.quantize(fused, config, lambda module: [layer(x) for layer in module])
            quant_utils.preprocess_linear_fusion(list(fused))
            amax = torch.stack([formats.amax_of(layer.weight) for layer in fused]).max()
            for layer in fused:
                scale, scale_2 = quant_utils.get_weight_scaling_factor(layer), quant_utils.get_weight_scaling_factor_2(layer)
                block = quant_utils.get_weight_block_size(layer)
                packed = quant_utils.to_quantized_weight(
                    layer.weight.clone(), scale, quant_utils.get_quantization_format(layer), scale_2, block
                )
                if name.startswith("FP8"):
                    fp8 = formats.pack_fp8(layer.weight, amax)
                    assert torch.equal(bits(fp8.values), bits(packed))
                    assert torch.equal(fp8.scale, scale.squeeze())
                else:
                    nvfp4 = formats.pack_nvfp4(layer.weight, amax)
                    assert torch.equal(nvfp4.payload, packed)
                    assert torch.equal(bits(nvfp4.block_scales), bits(scale))
                    assert torch.equal(nvfp4.global_scale, scale_2)

    def test_fp8_activations(self) -> None:
        """ModelOpt's simulation multiplies by 448/amax where engines divide by amax/448: ties may fall to the other side."""
        from modelopt.torch.quantization.tensor_quant import fp8_eager

        x = matrix(2, torch.float32)
        amax = formats.amax_of(x) / 3
        ours, theirs = formats.fake_quantize_fp8(x, formats.fp8_scale(amax)), fp8_eager(x, amax)
        is_far = ~torch.isclose(ours, theirs, rtol=1e-6, atol=0)
        assert is_far.float().mean() < 2e-3
        assert ((ours - theirs).abs() <= theirs.abs() / 8 + amax / 448 * 2**-9).all()

    def test_backend_gives_the_packed_numbers(self) -> None:
        import modelopt.torch.quantization as mtq

        from nemodiff_trt.quantization.modelopt_backend import cpu_config

        layer = torch.nn.Sequential(torch.nn.Linear(96, 24, bias=False))
        layer[0].weight.data = matrix(7, torch.float32) / 50
        x = torch.randn(5, 96)
        with cpu_config(mtq.NVFP4_DEFAULT_CFG) as config:
            mtq.quantize(layer, config, lambda module: module(2 * x))
            found = layer(x)
        inputs = formats.fake_quantize_nvfp4(x, formats.nvfp4_global_scale(formats.amax_of(2 * x)))
        expected = inputs @ formats.pack_nvfp4(layer[0].weight.detach()).dequantize().T
        assert torch.equal(found, expected)


class TestPacked:
    def test_codes_round_trip_in_every_byte(self) -> None:
        payload = torch.arange(256, dtype=torch.uint8).repeat(2)[None]
        values = formats.unpack_codes(payload)
        again = formats.pack_nvfp4(values * 448, torch.tensor(6.0 * 448))
        # Minus zero has no numeric sign: it comes back as plus zero. A block without a 6 may take another scale.
        assert torch.equal(again.dequantize(), values * 448)

    @given(seed=st.integers(0, 2**16), scale=st.floats(1e-4, 1e4))
    @settings(deadline=None, max_examples=40)
    def test_error_is_at_most_half_a_step(self, seed: int, scale: float) -> None:
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * scale
        fp8 = formats.pack_fp8(x)
        # Three mantissa bits: half a step is 1/16 of the value, or half the smallest subnormal.
        assert ((fp8.dequantize() - x).abs() <= x.abs() / 16 + fp8.scale * 2**-10).all()
        nvfp4 = formats.pack_nvfp4(x)
        step = (nvfp4.block_scales.float() * nvfp4.global_scale).repeat_interleave(16, dim=1)
        # The widest interval of e2m1 lies between 4 and 6. A block scale rounded down cuts the largest number off by at most
        # 1/16 of 6 steps; both bounds get some room for fp32.
        assert ((nvfp4.dequantize() - x).abs() <= step * 1.0001).all()

    @given(seed=st.integers(0, 2**16))
    @settings(deadline=None, max_examples=20)
    def test_packing_is_idempotent(self, seed: int) -> None:
        x = matrix(seed, torch.float32)
        once = formats.pack_fp8(x)
        assert torch.equal(bits(formats.pack_fp8(once.dequantize(), formats.amax_of(x)).values), bits(once.values))
        fake = formats.fake_quantize_nvfp4(x, formats.nvfp4_global_scale(formats.amax_of(x)))
        assert torch.equal(fake, formats.pack_nvfp4(x).dequantize())

    def test_concatenated_rows_are_packed_independently(self) -> None:
        top, bottom = matrix(3, torch.bfloat16), matrix(4, torch.bfloat16)
        amax = torch.maximum(formats.amax_of(top), formats.amax_of(bottom))
        whole = formats.pack_nvfp4(torch.cat((top, bottom)))
        parts = [formats.pack_nvfp4(part, amax) for part in (top, bottom)]
        assert torch.equal(whole.payload, torch.cat([part.payload for part in parts]))
        assert torch.equal(bits(whole.block_scales), bits(torch.cat([part.block_scales for part in parts])))

    def test_pieces_of_a_large_matrix_equal_the_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weight = matrix(5, torch.bfloat16)
        whole = formats.pack_nvfp4(weight)
        monkeypatch.setattr(formats, "_PIECE_NUMBERS", 5 * 96)
        pieces = formats.pack_nvfp4(weight)
        assert torch.equal(whole.payload, pieces.payload)
        assert torch.equal(bits(whole.block_scales), bits(pieces.block_scales))

    @given(seed=st.integers(0, 2**16))
    @settings(deadline=None, max_examples=10)
    def test_scales_of_least_error_are_no_worse_in_any_block(self, seed: int) -> None:
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))

        def errors(packed: formats.Nvfp4Tensor) -> Tensor:
            return (packed.dequantize() - x).square().reshape(8, -1, 16).sum(-1)

        largest, best = formats.pack_nvfp4(x), formats.pack_nvfp4(x, least_error=True)
        # Sums of 16 squares in fp32.
        assert (errors(best) <= errors(largest) * (1 + 1e-5)).all()
        assert errors(best).sum() < 0.95 * errors(largest).sum()

    def test_zeros(self) -> None:
        zeros = torch.zeros(4, 32)
        assert torch.equal(formats.pack_fp8(zeros).dequantize(), zeros)
        assert torch.equal(formats.pack_nvfp4(zeros).dequantize(), zeros)

    def test_activations_beyond_amax_saturate(self) -> None:
        x = torch.tensor([[0.5, 1.0, -3.0, 100.0] * 4])
        one = torch.tensor(1.0)
        assert formats.fake_quantize_fp8(x, formats.fp8_scale(one)).tolist()[0][:4] == [0.5, 1.0, -1.0, 1.0]
        assert formats.fake_quantize_nvfp4(x, formats.nvfp4_global_scale(one)).abs().max() == 1.0


class TestRefused:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite(self, bad: float) -> None:
        weight = torch.ones(2, 16)
        weight[1, 3] = bad
        for pack in (formats.pack_fp8, formats.pack_nvfp4):
            with pytest.raises(InvalidInputError, match="amax: got"):
                pack(weight)

    def test_amax_below_the_matrix(self) -> None:
        for pack in (formats.pack_fp8, formats.pack_nvfp4):
            with pytest.raises(InvalidInputError, match=r"at least the largest magnitude of the matrix, 1\.0"):
                pack(torch.ones(2, 16), torch.tensor(0.5))

    def test_partial_blocks(self) -> None:
        with pytest.raises(InvalidInputError, match="in_features: got 24, allowed: a multiple of 16"):
            formats.pack_nvfp4(torch.ones(2, 24))
