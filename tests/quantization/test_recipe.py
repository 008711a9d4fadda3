"""Recipes: which layer gets which format, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization.recipe import HEAD, ActivationRange, Recipe, WeightScales, linear_names
from nemodiff_trt.vocabulary import LinearFormat
from support.checkpoints import tiny_config

CONFIG = tiny_config()
FP8, NVFP4 = LinearFormat.FP8, LinearFormat.NVFP4
DOWN = "encoder.layers.1.mlp.down_proj"


def recipe(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.from_file(path, NVFP4)


def test_by_default_the_decoder_and_nothing_else() -> None:
    formats = {name: Recipe(NVFP4).format_of(name) for name in linear_names(CONFIG)}
    plain = {name for name, form in formats.items() if form is None}
    assert plain == {HEAD} | {name for name in formats if "lora" in name}
    assert Recipe(NVFP4).format_of("encoder.embed_tokens") is None


def test_the_last_matching_pattern_decides(tmp_path: Path) -> None:
    found = recipe(
        tmp_path, 'overrides: {"encoder.layers.1.*": none, "*.down_proj": fp8, diffusion_head: fp8}\nactivations: percentile'
    )
    found.check(CONFIG)
    assert found.format_of("encoder.layers.0.mlp.up_proj") is NVFP4
    assert found.format_of("encoder.layers.1.mlp.up_proj") is None
    assert found.format_of(DOWN) is FP8
    assert found.format_of(HEAD) is FP8
    # A pattern for everything means every linear layer.
    assert Recipe.from_dict({"overrides": {"*": "fp8"}}).format_of("encoder.embed_tokens") is None
    assert (found.activations, found.weights) == (ActivationRange.PERCENTILE, WeightScales.MAX)


def test_a_file_without_content_is_the_default(tmp_path: Path) -> None:
    assert recipe(tmp_path, "# nothing\n") == Recipe(NVFP4)


def test_survives_json() -> None:
    original = Recipe.from_dict({"format": "fp8", "overrides": {"*.o_proj": "none"}, "weights": "mse"})
    assert Recipe.from_dict(original.to_dict()) == original
    assert Recipe.from_dict(Recipe(None).to_dict()) == Recipe(None)


@pytest.mark.parametrize(
    ("text", "field", "allowed"),
    [
        ("- fp8", "recipe", "a mapping"),
        ("formats: fp8", "recipe", "activations, format, overrides, weights"),
        ("format: int4", "recipe format", "fp8, nvfp4"),
        ("activations: mean", "recipe activations", "max, percentile"),
        ("weights: best", "recipe weights", "max, mse"),
        ("overrides: [a]", "recipe overrides", "a mapping of name pattern"),
        ('overrides: {"*.o_proj": bf16}', "recipe *.o_proj", "fp8, nvfp4"),
        ("overrides: {", "recipe", "a readable YAML file"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, field: str, allowed: str) -> None:
    with pytest.raises(InvalidInputError, match=allowed) as error:
        recipe(tmp_path, text)
    assert error.value.field == field


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a readable YAML file"):
        Recipe.from_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("raw", "changes", "allowed"),
    [
        ({"overrides": {"*.qkv_proj": "fp8"}}, {}, "a pattern that matches a layer"),
        ({"format": "nvfp4", "overrides": {"*.1.self_attn.k_proj": "fp8"}}, {}, "one format for layers over one input"),
        ({"format": "nvfp4"}, {"intermediate_size": 90}, "a multiple of 16 for nvfp4"),
    ],
)
def test_recipes_that_do_not_fit_the_model(raw: Any, changes: dict[str, int], allowed: str) -> None:
    with pytest.raises(InvalidInputError, match=allowed):
        Recipe.from_dict(raw).check(tiny_config(**changes))
    Recipe.from_dict({"format": "fp8"}).check(tiny_config(intermediate_size=90))
