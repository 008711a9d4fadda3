"""Quantised exports: the numbers of our engines, in the files of ModelOpt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemodiff_trt.bundle import Combine, Encoding, WeightLayout
from nemodiff_trt.bundle.encoding import QuantizedScales
from nemodiff_trt.bundle.weight_writer import WeightLayouter, checkpoint_source
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.ministral3 import to_ministral3_name
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.hf_export import LayerQuantization
from nemodiff_trt.model import assemble_decoder
from nemodiff_trt.quantization.modelopt_config import quantization_files
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint
from nemodiff_trt.quantization.recipe import Recipe, joined_linears, layer_of
from support.ministral3 import random_step, relative_error
from support.quantized_exports import FP8, NVFP4, RECIPES, export_quantized, made_up_statistics


@pytest.fixture(scope="module")
def exported(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    return {name: export_quantized(tiny_checkpoint_dir, folder / name, recipe) for name, recipe in RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_codes_stand_for_the_numbers_of_engines_exactly(
    name: str, exported: dict[str, Path], tiny_checkpoint: Checkpoint
) -> None:
    recipe, statistics = RECIPES[name], made_up_statistics(tiny_checkpoint)
    opened = QuantizedCheckpoint.open(exported[name])
    scales = QuantizedScales(statistics.input_amax, recipe.weights)
    layouter = WeightLayouter(tiny_checkpoint.config, checkpoint_source(tiny_checkpoint), 8, None, scales)
    num_quantized = 0
    for tensor_name in tiny_checkpoint.names():
        linear = layer_of(tensor_name)
        form = recipe.format_of(linear)
        assert opened.formats.get(linear) is form
        if form is None:
            assert torch.equal(opened.tensor(tensor_name), tiny_checkpoint.tensor(tensor_name))
            continue
        num_quantized += 1
        sources = tuple(f"{each}.weight" for each in joined_linears(linear))
        matrix = WeightLayout(sources, False, "float32", Combine.CONCAT, Encoding(f"{form}_dequantized"))
        scale = WeightLayout(sources, False, "float32", Combine.CONCAT, Encoding(f"{form}_input_scale"))
        assert torch.equal(torch.cat([opened.tensor(source) for source in sources]), layouter.tensor("", matrix))
        assert torch.equal(opened.linear(linear).input_scale.reshape(1), layouter.tensor("", scale))
    assert num_quantized == len(opened.formats) > 8


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_with_the_exported_numbers_gives_our_logits(
    name: str, exported: dict[str, Path], tiny_checkpoint: Checkpoint
) -> None:
    opened = QuantizedCheckpoint.open(exported[name])
    state = {each: opened.tensor(each).to(torch.float32) for each in opened.names()}
    step = random_step(opened.config, 1, 0, 80)
    logits = step.decoder_logits(assemble_decoder(opened.config, state, 80, None))
    config = AutoConfig.from_pretrained(exported[name])
    del config.quantization_config
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    reference.load_state_dict({to_ministral3_name(each): tensor for each, tensor in state.items()})
    assert relative_error(logits, step.reference_logits(reference)) < 2e-5
    plain = tiny_checkpoint.load_decoder(80, torch.float32, adapter=False)
    assert relative_error(logits, step.decoder_logits(plain)) > 1e-3, "quantising changes something"


def test_the_configuration_is_what_modelopt_writes() -> None:
    """Content of an export of ModelOpt 0.47, written down."""
    formats = {"encoder.embed_tokens": None, "encoder.layers.0.mlp.up_proj": NVFP4, "diffusion_head": None}
    separate, embedded = quantization_files(formats)
    excluded = ["lm_head", "model.embed_tokens"]
    details = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": excluded}
    producer = {"name": "modelopt", "version": "0.47.0"}
    part = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    group = {"input_activations": part, "weights": part, "targets": ["Linear"]}
    assert separate == {"producer": producer, "quantization": details}
    assert embedded == {
        "config_groups": {"group_0": group},
        "ignore": excluded,
        "quant_algo": "NVFP4",
        "producer": producer,
        "quant_method": "modelopt",
    }
    separate, embedded = quantization_files({**formats, "encoder.layers.0.mlp.up_proj": FP8})
    assert separate["quantization"] == {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": excluded}
    part = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert embedded["config_groups"] == {"group_0": {"input_activations": part, "weights": part, "targets": ["Linear"]}}


def test_formats_of_single_layers_are_listed(exported: dict[str, Path]) -> None:
    content = json.loads((exported["mixed"] / "hf_quant_config.json").read_text())["quantization"]
    assert content["quant_algo"] == "MIXED_PRECISION"
    listed = content["quantized_layers"]
    assert listed["model.layers.0.mlp.up_proj"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert listed["model.layers.0.mlp.down_proj"] == listed["lm_head"] == {"quant_algo": "FP8"}
    assert "model.layers.0.self_attn.q_proj" in content["exclude_modules"]
    groups = json.loads((exported["mixed"] / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(name for group in groups.values() for name in group["targets"]) == sorted(listed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config_name", "dtype"),
    # Of bfloat16 weights ModelOpt rounds an FP8 quotient to bfloat16 first.
    [("NVFP4_DEFAULT_CFG", "bfloat16"), ("NVFP4_DEFAULT_CFG", "float32"), ("FP8_DEFAULT_CFG", "float32")],
)
def test_modelopt_itself_writes_the_same_tensors(
    config_name: str, dtype: str, tiny_checkpoint_dir: Path, tmp_path: Path
) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from safetensors.torch import load_file

    from nemodiff_trt.hf_export import ExportSource, export_hf
    from nemodiff_trt.quantization.modelopt_backend import cpu_config

    checkpoint = Checkpoint.open(tiny_checkpoint_dir)
    export_hf(ExportSource.from_checkpoint(checkpoint), tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=getattr(torch, dtype))
    ids = torch.randint(128, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    with cpu_config(getattr(mtq, config_name)) as config:
        mtq.quantize(model, config, lambda module: module(ids))
        export_hf_checkpoint(model, export_dir=tmp_path / "theirs")
    theirs = QuantizedCheckpoint.open(tmp_path / "theirs")
    form = theirs.recipe().format
    assert len(theirs.formats) == 7 * checkpoint.config.num_hidden_layers
    quantization = LayerQuantization(Recipe(form), theirs.input_amax)
    export_hf(ExportSource.from_checkpoint(checkpoint), tmp_path / "ours", quantization=quantization, dtype=dtype)
    stored, expected = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert stored.keys() == expected.keys()
    # ModelOpt leaves FP8 matrices over one input their own scales, ours share one as engines that join them need.
    alone = [name for name in stored if form is NVFP4 or len(joined_linears(layer_of(name.rsplit(".", 1)[0]))) == 1]
    for name in alone:
        assert (stored[name].dtype, stored[name].shape) == (expected[name].dtype, expected[name].shape), name
        if name.endswith("input_scale"):
            # It went to a range and back here.
            torch.testing.assert_close(stored[name], expected[name], rtol=2e-7, atol=0.0)
        else:
            assert torch.equal(as_bytes(stored[name]), as_bytes(expected[name])), name
    ours = json.loads((tmp_path / "ours" / "hf_quant_config.json").read_text())
    assert ours == json.loads((tmp_path / "theirs" / "hf_quant_config.json").read_text())


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


class TestRefusals:
    def test_a_layer_without_range(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        from nemodiff_trt.hf_export import ExportSource, export_hf

        checkpoint = Checkpoint.open(tiny_checkpoint_dir)
        statistics = made_up_statistics(checkpoint)
        del statistics.amax["encoder.layers.1.mlp.up_proj"]  # type: ignore[attr-defined]
        quantization = LayerQuantization(Recipe(FP8), statistics.input_amax)
        with pytest.raises(InvalidInputError, match=r"layers\.1\.mlp\.up_proj"):
            export_hf(ExportSource.from_checkpoint(checkpoint), tmp_path / "out", quantization=quantization)
        assert list(tmp_path.iterdir()) == []

    def test_a_recipe_that_quantises_nothing(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="no quantised layer"):
            export_quantized(tiny_checkpoint_dir, tmp_path / "out", Recipe(None))
