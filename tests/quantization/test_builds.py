"""Quantised bundles for ONNX Runtime: built, checked against the eager decoder, decoded, refused when they were altered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemodiff_trt.bundle import Bundle, Encoding, mapped_tensors, source_tensors
from nemodiff_trt.bundle.weights import input_scales, role_layouts
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.errors import BundleError
from nemodiff_trt.quantization.formats import fp8_scale, pack_fp8, pack_nvfp4
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.runtime.parity import compare_sessions
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.vocabulary import LinearFormat, Precision, Role
from support.bundles import build_bundle

GATE, UP = "encoder.layers.0.mlp.gate_proj.weight", "encoder.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """FP8, drafting in NVFP4, calibrated on a handful of prompts."""
    folder = tmp_path_factory.mktemp("mixed")
    prompts = folder / "prompts.txt"
    prompts.write_text("What is 2 + 2?\nName three colours.\nWrite a loop.\n")
    options: dict[str, Any] = {"precision": Precision.FP8, "draft_precision": Precision.NVFP4, "calibration": prompts}
    return Bundle.open(build_bundle(tiny_checkpoint_dir, folder / "b", **options))


@pytest.fixture(scope="module")
def calibration(mixed: Bundle) -> Path:
    """Ranges of the tiny checkpoint."""
    return mixed.path / "calibration.json"


def test_the_manifest_says_what_is_quantised(mixed: Bundle) -> None:
    facts = mixed.manifest.quantization
    assert facts is not None
    assert (facts.recipe.format, facts.draft_recipe.format) == (LinearFormat.FP8, LinearFormat.NVFP4)
    assert facts.calibration.startswith("max over 3 sequences")
    assert not facts.is_rehearsal
    assert mixed.manifest.compute_precision is Precision.FP32


def test_weights_are_what_the_codes_stand_for(mixed: Bundle, tiny_checkpoint: Checkpoint) -> None:
    weights = [tiny_checkpoint.tensor(name) for name in (GATE, UP)]
    amax = torch.stack([weight.abs().max().float() for weight in weights]).max()
    for role, pack in ((Role.VERIFY, pack_fp8), (Role.DRAFT, pack_nvfp4)):
        found = source_tensors(mixed, role)
        for name, weight in zip((GATE, UP), weights, strict=True):
            assert torch.equal(found[name], pack(weight, amax).dequantize())
        # Head and embedding are those of the checkpoint.
        for name in ("diffusion_head.weight", "encoder.embed_tokens.weight"):
            assert torch.equal(found[name], tiny_checkpoint.tensor(name).float())


def test_input_scales_are_those_of_the_calibration(mixed: Bundle, calibration: Path) -> None:
    statistics = ActivationStatistics.from_file(calibration)
    layouts = role_layouts(mixed.manifest.weights, mixed.manifest.quantization, Role.VERIFY)
    scales = input_scales(layouts, mapped_tensors(mixed.weights_path))
    assert len(scales) == 7 * 2
    for name, (form, scale) in scales.items():
        assert form is LinearFormat.FP8
        assert torch.equal(scale, fp8_scale(torch.tensor(statistics.input_amax(name))))


def test_every_role_agrees_with_its_own_eager_decoder(mixed: Bundle) -> None:
    session = OnnxRuntimeSession.open(mixed, num_threads=1)
    found = compare_sessions(session, EagerSession.from_bundle(mixed), list(range(130, 142)))
    assert set(found) == set(mixed.manifest.roles)
    for role, parity in found.items():
        assert parity.is_within(Precision.NVFP4 if role is Role.DRAFT else Precision.FP8), (role, parity)


def test_the_oracle_of_the_other_format_is_another(mixed: Bundle) -> None:
    """The check above can fail: a drafter that is not quantised like the engine's is further away."""
    session, oracle = OnnxRuntimeSession.open(mixed, num_threads=1), EagerSession.from_bundle(mixed)
    right = compare_sessions(session, oracle, list(range(130, 142)))[Role.DRAFT]
    oracle._draft_decoder = oracle._decoder
    wrong = compare_sessions(session, oracle, list(range(130, 142)))[Role.DRAFT]
    assert wrong.max_cache_error > 10 * right.max_cache_error


def test_speculation_gives_the_tokens_of_the_verifier(mixed: Bundle) -> None:
    model = TriModeLM.from_bundle(mixed.path)
    prompts = [list(range(130, 140)), list(range(200, 230)), [150, 160, 170]]
    common = {"max_new_tokens": 24, "ignore_eos": True}
    wanted = [result.token_ids for result in model.generate(prompts, mode="ar", **common)]
    found = [result.token_ids for result in model.generate(prompts, mode="self_speculation", block_length=8, **common)]
    assert found == wanted


def test_layers_of_a_recipe_keep_their_precision(tiny_checkpoint_dir: Path, calibration: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('overrides: {"encoder.layers.0.*": none, diffusion_head: fp8}\nweights: mse\n')
    options: dict[str, Any] = {"precision": Precision.NVFP4, "calibration": calibration, "recipe": recipe}
    manifest = Bundle.open(build_bundle(tiny_checkpoint_dir, tmp_path / "b", **options)).manifest
    forms: dict[LinearFormat, set[str]] = {form: set() for form in LinearFormat}
    for layout in manifest.weights.values():
        if layout.encoding is not Encoding.PLAIN:
            forms[layout.encoding.linear_format or LinearFormat.FP8].update(layout.sources)
    assert forms[LinearFormat.FP8] == {"diffusion_head.weight"}
    assert len(forms[LinearFormat.NVFP4]) == 7
    assert all(".layers.1." in source for source in forms[LinearFormat.NVFP4])


def test_an_altered_scale_is_refused_by_the_name_of_its_file(mixed: Bundle, tmp_path: Path) -> None:
    from support.bundles import copy_bundle

    folder = copy_bundle(mixed.path, tmp_path / "copy")
    path = folder / "weights" / "shared.safetensors"
    data = np.memmap(path, dtype=np.uint8, mode="r+")
    data[-1] ^= 1
    data.flush()
    with pytest.raises(BundleError, match=r"shared\.safetensors: altered since it was written"):
        Bundle.open(folder)
