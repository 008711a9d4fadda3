"""Checkpoints that ModelOpt has quantised: what is read, and what is refused with the name of the culprit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.bundle import Bundle, Combine, Encoding, WeightLayout
from nemodiff_trt.bundle.encoding import MatrixEncoder, QuantizedScales
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.ministral3 import to_decoder_name
from nemodiff_trt.errors import CheckpointError, InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.quantization.formats import Fp8Tensor, Nvfp4Tensor
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint, is_quantized
from nemodiff_trt.vocabulary import Mode, Precision
from support.damage import Tensors, edit_json, edit_tensors
from support.quantized_exports import RECIPES, export_quantized, made_up_statistics

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"
WEIGHTS, QUANT, CONFIG = "model.safetensors", "hf_quant_config.json", "config.json"


@pytest.fixture(scope="module")
def exported(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    return {name: export_quantized(tiny_checkpoint_dir, folder / name, recipe) for name, recipe in RECIPES.items()}


@pytest.fixture
def copies(exported: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export that may be damaged."""
    return lambda name: Path(shutil.copytree(exported[name], tmp_path / name))


def edit_quantization(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / QUANT).read_text())
    content["quantization"] |= changes
    (folder / QUANT).write_text(json.dumps(content))


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        QuantizedCheckpoint.open(folder)
    return caught.value


def numbers(checkpoint: QuantizedCheckpoint) -> Tensors:
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


class TestReading:
    @pytest.mark.parametrize("name", RECIPES)
    def test_names_of_the_published_layout_read_the_same(
        self, name: str, copies: Callable[[str], Path], tiny_checkpoint_dir: Path
    ) -> None:
        folder = copies(name)
        expected = QuantizedCheckpoint.open(folder)
        tensors = {to_decoder_name(stored): tensor.clone() for stored, tensor in load_file(folder / WEIGHTS).items()}
        wanted, formats = {key: tensor.clone() for key, tensor in numbers(expected).items()}, expected.formats
        save_file(tensors, folder / WEIGHTS)
        quantization = json.loads((folder / QUANT).read_text())
        renamed = json.loads(
            json.dumps(quantization).replace("model.layers", "encoder.layers").replace("lm_head", "diffusion_head")
        )
        (folder / QUANT).write_text(json.dumps(renamed))
        shutil.copyfile(tiny_checkpoint_dir / CONFIG, folder / CONFIG)
        found = QuantizedCheckpoint.open(folder)
        assert found.formats == formats
        assert_equal(numbers(found), wanted)

    @pytest.mark.parametrize("name", RECIPES)
    def test_the_configuration_alone_says_what_is_quantised(self, name: str, copies: Callable[[str], Path]) -> None:
        folder = copies(name)
        expected = QuantizedCheckpoint.open(folder).recipe()
        (folder / QUANT).unlink()
        assert is_quantized(folder)
        assert QuantizedCheckpoint.open(folder).recipe() == expected

    def test_scales_may_be_vectors_of_one(self, copies: Callable[[str], Path]) -> None:
        folder = copies("fp8")
        expected = {name: tensor.clone() for name, tensor in numbers(QuantizedCheckpoint.open(folder)).items()}

        def widen(tensors: Tensors) -> None:
            tensors.update({name: tensor.reshape(1) for name, tensor in tensors.items() if name.endswith("scale")})

        edit_tensors(folder / WEIGHTS, widen)
        assert_equal(numbers(QuantizedCheckpoint.open(folder)), expected)

    def test_scales_of_a_quantised_cache_are_left_aside(self, copies: Callable[[str], Path]) -> None:
        folder = copies("nvfp4")
        name = "model.layers.0.self_attn.k_proj.k_scale"
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update({name: torch.ones(())}))
        assert refusal(folder).field == name
        edit_quantization(folder, kv_cache_quant_algo="FP8")
        assert QuantizedCheckpoint.open(folder).recipe() == RECIPES["nvfp4"]

    def test_the_identity_follows_scales_and_formats(self, copies: Callable[[str], Path]) -> None:
        folder = copies("nvfp4")
        before = QuantizedCheckpoint.open(folder).identity
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors[f"{UP}.input_scale"].mul_(2))
        assert QuantizedCheckpoint.open(folder).identity != before

    def test_plain_checkpoints_are_told_apart(self, tiny_checkpoint_dir: Path) -> None:
        assert not is_quantized(tiny_checkpoint_dir)
        assert "missing" in str(refusal(tiny_checkpoint_dir))


def set_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


def block_scale(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(scales: torch.Tensor) -> torch.Tensor:
        wide = scales.to(torch.float32)
        wide[3, 1] = value
        return wide.to(torch.float8_e4m3fn)

    return change


# Export, edit of its tensors, the tensor that has to be named, a part of what is said about it.
DAMAGED: dict[str, tuple[str, Callable[[Tensors], Any], str, str]] = {
    "weight of another dtype": ("fp8", set_tensor(f"{UP}.weight", lambda w: w.to(torch.bfloat16)), f"{UP}.weight", "BF16"),
    "unpacked weight": ("nvfp4", set_tensor(f"{UP}.weight", lambda w: w.repeat(1, 2)), f"{UP}.weight", "shape"),
    "block scales of another dtype": (
        "nvfp4", set_tensor(f"{UP}.weight_scale", lambda s: s.to(torch.float32)), f"{UP}.weight_scale", "F32",
    ),
    "blocks of 32": (
        "nvfp4", set_tensor(f"{UP}.weight_scale", lambda s: s[:, :1].clone()), f"{UP}.weight_scale", "shape [96, 1]",
    ),
    "block scales in the order of a kernel": (
        "nvfp4", set_tensor(f"{UP}.weight_scale", lambda s: s.t().contiguous()), f"{UP}.weight_scale", "shape [3, 96]",
    ),
    "one scale a row": (
        "fp8", set_tensor(f"{UP}.weight_scale", lambda s: s.expand(96).clone()), f"{UP}.weight_scale", "shape [96]",
    ),
    "half-precision scale": (
        "fp8", set_tensor(f"{UP}.input_scale", lambda s: s.to(torch.float16)), f"{UP}.input_scale", "F16",
    ),
    "missing input scale": ("fp8", lambda t: t.pop(f"{UP}.input_scale"), f"{UP}.input_scale", "missing"),
    "missing global scale": ("nvfp4", lambda t: t.pop(f"{UP}.weight_scale_2"), f"{UP}.weight_scale_2", "missing"),
    "missing block scales": ("nvfp4", lambda t: t.pop(f"{UP}.weight_scale"), f"{UP}.weight_scale", "missing"),
    "smoothing scale": (
        "nvfp4", lambda t: t.update({f"{UP}.pre_quant_scale": torch.ones(48)}), f"{UP}.pre_quant_scale", "left over",
    ),
    "NaN in a scale": ("fp8", set_tensor(f"{UP}.weight_scale", lambda s: s * float("nan")), f"{UP}.weight_scale", "nan"),
    "zero scale": ("fp8", set_tensor(f"{UP}.input_scale", lambda s: s * 0), f"{UP}.input_scale", "0.0"),
    "negative scale": ("nvfp4", set_tensor(f"{UP}.weight_scale_2", lambda s: -s), f"{UP}.weight_scale_2", "-"),
    "infinite scale": ("nvfp4", set_tensor(f"{UP}.input_scale", lambda s: s / 0), f"{UP}.input_scale", "inf"),
    "NaN in a block scale": (
        "nvfp4", set_tensor(f"{UP}.weight_scale", block_scale(float("nan"))), f"{UP}.weight_scale", "1 of 288 scales",
    ),
    "zero in a block scale": (
        "nvfp4", set_tensor(f"{UP}.weight_scale", block_scale(0.0)), f"{UP}.weight_scale", "1 of 288 scales",
    ),
    "mixed dtypes": (
        "nvfp4", set_tensor("model.norm.weight", lambda w: w.to(torch.float16)), "model.norm.weight", "F16",
    ),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("case", DAMAGED)
    def test_the_tensor_is_named(self, case: str, copies: Callable[[str], Path]) -> None:
        name, edit, field, text = DAMAGED[case]
        folder = copies(name)
        edit_tensors(folder / WEIGHTS, edit)
        error = refusal(folder)
        assert error.field == field
        assert text in str(error)

    def test_nan_among_fp8_codes_is_found_when_they_are_read(self, copies: Callable[[str], Path]) -> None:
        folder = copies("fp8")

        def damage(weight: torch.Tensor) -> torch.Tensor:
            codes = weight.view(torch.uint8).clone()
            codes[5, 7] = 0xFF
            return codes.view(torch.float8_e4m3fn)

        edit_tensors(folder / WEIGHTS, set_tensor(f"{UP}.weight", damage))
        with pytest.raises(CheckpointError, match=r"up_proj\.weight.*1 codes of NaN"):
            QuantizedCheckpoint.open(folder).tensor("encoder.layers.1.mlp.up_proj.weight")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"quant_algo": "W4A16_AWQ"}, "quant_algo"),
            ({"quant_algo": None}, "quant_algo"),
            ({"quant_algo": ["NVFP4"]}, "quant_algo"),
            ({"group_size": 32}, "group_size"),
            ({"group_size": None}, "group_size"),
            ({"exclude_modules": "lm_head"}, "exclude_modules"),
            ({"exclude_modules": ["*"]}, "no quantised layer"),
            ({"quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
            ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.layers.0": {}}}, "model.layers.0 quant_algo"),
            ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.norm": {"quant_algo": "FP8"}}}, "model.norm"),
        ],
        ids=str,
    )
    def test_the_field_of_the_quantisation_is_named(
        self, changes: dict[str, Any], field: str, copies: Callable[[str], Path]
    ) -> None:
        folder = copies("nvfp4")
        content = json.loads((folder / CONFIG).read_text())
        del content["quantization_config"]
        (folder / CONFIG).write_text(json.dumps(content))
        edit_quantization(folder, **changes)
        assert field in str(refusal(folder))

    def test_files_that_contradict_each_other(self, copies: Callable[[str], Path]) -> None:
        folder = copies("nvfp4")
        edit_json(folder / CONFIG, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
        assert "NVFP4 as in hf_quant_config.json" in str(refusal(folder))

    def test_another_quantiser(self, copies: Callable[[str], Path]) -> None:
        folder = copies("fp8")
        (folder / QUANT).unlink()
        edit_json(folder / CONFIG, quantization_config={"quant_method": "fp8"})
        assert "modelopt" in str(refusal(folder))

    def test_facts_of_diffusion_that_a_foreign_export_lacks(self, copies: Callable[[str], Path]) -> None:
        folder = copies("fp8")
        content = json.loads((folder / CONFIG).read_text())
        del content["mask_token_id"]
        (folder / CONFIG).write_text(json.dumps(content))
        assert refusal(folder).field == "mask_token_id"

    def test_a_truncated_file(self, copies: Callable[[str], Path]) -> None:
        folder = copies("nvfp4")
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[:-1])
        assert "truncated" in str(refusal(folder))


class TestJoinedMatrices:
    """Matrices that an engine stores as one, whose scales differ as ModelOpt leaves them in FP8."""

    def encode(self, linears: dict[str, QuantizedLinear], encoding: Encoding) -> torch.Tensor:
        scales = QuantizedScales(lambda _: 1.0, packed=linears.__getitem__)
        layout = WeightLayout(tuple(f"{name}.weight" for name in linears), False, "float32", Combine.CONCAT, encoding)
        return torch.cat(list(MatrixEncoder(scales).packed_blocks(layout)))

    def test_fp8_codes_move_to_the_largest_scale(self) -> None:
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(6, 32, generator=generator).mul(100).to(torch.float8_e4m3fn) for _ in range(2)]
        scales = [torch.tensor(0.25), torch.tensor(0.1)]
        pairs = zip("qk", values, scales, strict=True)
        linears = {name: QuantizedLinear(Fp8Tensor(value, scale), scale / 2) for name, value, scale in pairs}
        found = self.encode(linears, Encoding.FP8_DEQUANTIZED)
        assert self.encode(linears, Encoding.FP8_WEIGHT_SCALE).tolist() == [0.25]
        assert self.encode(linears, Encoding.FP8_INPUT_SCALE).tolist() == [0.125]
        assert torch.equal(found[:6], linears["q"].weight.dequantize()), "untouched"
        before = linears["k"].weight.dequantize()
        # Half a step of e4m3: 1/16 of the number, or of the smallest step.
        assert ((found[6:] - before).abs() <= before.abs() / 16 + 0.25 * 2**-10).all()

    def test_nvfp4_with_two_global_scales_is_refused(self) -> None:
        payload, blocks = torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 1).to(torch.float8_e4m3fn)
        linears = {
            name: QuantizedLinear(Nvfp4Tensor(payload, blocks, torch.tensor(scale)), torch.tensor(1.0))
            for name, scale in (("q", 0.5), ("k", 0.25))
        }
        with pytest.raises(CheckpointError, match=r"k\.weight_scale_2"):
            self.encode(linears, Encoding.NVFP4)


class TestBuild:
    @pytest.mark.parametrize("name", ["nvfp4", pytest.param("fp8", marks=pytest.mark.slow)])
    def test_the_bundle_equals_one_that_was_calibrated(
        self, name: str, exported: dict[str, Path], tiny_checkpoint_dir: Path, tmp_path: Path
    ) -> None:
        calibration = tmp_path / "calibration.json"
        calibration.write_bytes(made_up_statistics(Checkpoint.open(tiny_checkpoint_dir)).to_bytes())

        def build(checkpoint: Path, output: str, **options: Any) -> Bundle:
            limits = {"max_batch_size": 1, "max_seq_len": 64, "block_length": 8, "prefill_chunk": 16}
            return compile_bundle(
                CompileOptions(
                    checkpoint=str(checkpoint),
                    output=tmp_path / output,
                    modes=(Mode.AR,),
                    precision=Precision(name),
                    **limits,
                    **options,
                )
            )

        calibrated = build(tiny_checkpoint_dir, "calibrated", calibration=calibration)
        imported = build(exported[name], "imported")
        assert imported.weights_path.read_bytes() == calibrated.weights_path.read_bytes()
        assert imported.manifest.quantization is not None
        assert "quantised checkpoint" in imported.manifest.quantization.calibration

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"precision": Precision.FP32}, "precision"),
            ({"precision": Precision.FP8}, "precision"),
            ({"precision": Precision.NVFP4, "calibration": Path("x.json")}, "calibration"),
            ({"precision": Precision.NVFP4, "draft_precision": Precision.FP8}, "draft_precision"),
        ],
        ids=str,
    )
    def test_options_that_the_checkpoint_has_decided(
        self, options: dict[str, Any], field: str, exported: dict[str, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidInputError) as caught:
            compile_bundle(CompileOptions(checkpoint=str(exported["nvfp4"]), output=tmp_path / "out", **options))
        assert caught.value.field == field
