"""Options: what is refused, and which of them decide the build key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.bundle import build_key
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import AdapterForm, CompileOptions, WeightStorage
from nemodiff_trt.vocabulary import Mode, Precision, Role, Target
from support.checkpoints import tiny_config

VERSIONS = {"torch": "2.13.0"}
# Another valid value for every field that has one today; the others are checked by hand below.
OTHER_VALUES: dict[str, Any] = {
    "checkpoint": "elsewhere",
    "output": Path("other"),
    "modes": (Mode.AR,),
    "precision": Precision.FP16,
    "block_length": 16,
    "quadratic_block_length": 8,
    "max_batch_size": 4,
    "max_seq_len": 1024,
    "prefill_chunk": 128,
    "sampling": True,
    "draft_precision": Precision.NVFP4,
    "draft_adapter": AdapterForm.MERGED,
    "strict": True,
    "force": True,
}
# Where more values exist, they exist for GPU targets.
GPU = {"target": Target.TENSORRT_RTX, "sm": (120,), "precision": Precision.BF16}
GPU_VALUES: dict[str, Any] = {"sm": (120, 121), "weights": WeightStorage.EMBEDDED}
# And this one on a CPU target other than the default.
INDUCTOR = {"target": Target.INDUCTOR}
# Checked by hand below.
BY_HAND = {"config", "target", "calibration", "plugins", "recipe"}


def options(**changes: Any) -> CompileOptions:
    return CompileOptions(**({"checkpoint": "c", "target": Target.ONNXRUNTIME} | changes))


def key(of: CompileOptions) -> str:
    return build_key("identity", of, VERSIONS)


def test_every_field_is_marked_and_has_a_help_text() -> None:
    for field in dataclasses.fields(CompileOptions):
        assert field.metadata["kind"] in ("build", "run"), field.name
        assert field.metadata["help"].endswith("."), field.name


def test_every_field_is_flipped_by_a_test() -> None:
    assert OTHER_VALUES.keys() | GPU_VALUES.keys() | BY_HAND == {field.name for field in dataclasses.fields(CompileOptions)}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_the_build_key_moves_exactly_for_build_fields(name: str) -> None:
    kind = CompileOptions.__dataclass_fields__[name].metadata["kind"]
    changed = key(options(**{name: OTHER_VALUES[name]})) != key(options())
    assert changed == (kind == "build")


@pytest.mark.parametrize("name", GPU_VALUES)
def test_the_build_key_moves_with_fields_of_gpu_targets(name: str) -> None:
    assert key(options(**{**GPU, name: GPU_VALUES[name]})) != key(options(**GPU))


def test_the_build_key_moves_with_plugins() -> None:
    assert key(options(**INDUCTOR, plugins=True)) != key(options(**INDUCTOR))


def test_the_rest_is_part_of_the_build() -> None:
    assert options().build_fields().keys() >= BY_HAND
    assert key(options(**GPU)) != key(options())


def test_the_order_of_compute_capabilities_does_not_matter() -> None:
    assert key(options(**{**GPU, "sm": (121, 120)})) == key(options(**{**GPU, "sm": (120, 121)}))


def test_the_build_key_moves_with_checkpoint_and_versions_but_not_with_the_order_of_modes() -> None:
    plain = options()
    assert build_key("other", plain, VERSIONS) != key(plain)
    assert build_key("identity", plain, {"torch": "2.14.0"}) != key(plain)
    assert key(options(modes=tuple(reversed(plain.modes)))) == key(plain)


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"checkpoint": None}, "checkpoint", "exactly one of checkpoint and config"),
        ({"config": "nemotron-labs-diffusion-8b"}, "checkpoint", "exactly one of checkpoint and config"),
        ({"checkpoint": None, "config": "nemotron-9b"}, "config", "nemotron-labs-diffusion-3b"),
        ({"checkpoint": None, "config": "nemotron-labs-diffusion-8b"}, "config", "a checkpoint instead"),
        ({"target": Target.INDUCTOR, "precision": Precision.FP16}, "precision", "fp32, bf16"),
        ({"plugins": True}, "plugins", "off for target onnxruntime"),
        ({**GPU, "plugins": True}, "plugins", "off for target tensorrt-rtx"),
        ({**GPU, "precision": Precision.FP32}, "precision", "bf16, fp16, fp8, nvfp4 for target tensorrt-rtx"),
        ({**GPU, "sm": ()}, "sm", "one or more of 75, 80, 86, 89, 120, 121"),
        ({**GPU, "sm": (100,)}, "sm", "one or more of 75, 80, 86, 89, 120, 121"),
        ({**GPU, "sm": (120, 120)}, "sm", "each once"),
        ({**GPU, "target": Target.TENSORRT}, "sm", "compiles for the GPU it finds"),
        (
            {**GPU, "checkpoint": None, "config": "nemotron-labs-diffusion-8b", "weights": WeightStorage.EMBEDDED},
            "weights",
            "shared for a build without a checkpoint",
        ),
        ({"target": Target.INDUCTOR, "precision": Precision.NVFP4}, "precision", "fp32, bf16"),
        ({"draft_precision": Precision.FP16}, "draft_precision", "fp32, fp8, nvfp4 beside precision fp32"),
        ({"precision": Precision.FP16, "draft_precision": Precision.FP8}, "draft_precision", "fp16 beside precision fp16"),
        ({"draft_precision": Precision.FP8, "modes": (Mode.AR,)}, "draft_precision", "nothing without mode self_speculation"),
        ({"precision": Precision.FP8, "draft_adapter": AdapterForm.MERGED}, "draft_adapter", "low_rank or none"),
        ({**GPU, "precision": Precision.FP8, "weights": WeightStorage.EMBEDDED}, "weights", "shared for quantised precisions"),
        (
            {
                **GPU,
                "checkpoint": None,
                "config": "nemotron-labs-diffusion-8b",
                "precision": Precision.NVFP4,
                "calibration": Path("x"),
            },
            "calibration",
            "nothing for a build without a checkpoint",
        ),
        ({"recipe": Path("recipe.yaml")}, "recipe", "nothing for precision fp32"),
        ({"quadratic_block_length": 1, "modes": (Mode.QUADRATIC,)}, "quadratic_block_length", "at least 2"),
        ({"modes": ()}, "modes", "at least one"),
        ({"modes": (Mode.AR, Mode.AR)}, "modes", "once"),
        ({"sm": (120,)}, "sm", "nothing for target onnxruntime"),
        ({"weights": "embedded"}, "weights", "shared"),
        ({"calibration": Path("amax.json")}, "calibration", "nothing for precision fp32"),
        ({"block_length": 0}, "block_length", "at least 1"),
    ],
)
def test_unusable_options_are_refused_by_name(changes: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InvalidInputError, match=allowed) as error:
        options(**changes)
    assert error.value.field == field


@pytest.mark.parametrize("name", ["calibration", "recipe"])
def test_files_of_a_quantised_build_move_its_key(name: str) -> None:
    plain = options(precision=Precision.FP8)
    assert key(plain) != key(options(precision=Precision.FP8, **{name: Path("file.json")}))


def test_sequences_longer_than_the_model_was_made_for_are_refused() -> None:
    options(max_seq_len=512).check_model(tiny_config())
    with pytest.raises(InvalidInputError, match="max_position_embeddings = 512"):
        options(max_seq_len=513).check_model(tiny_config())


def test_roles_follow_from_modes() -> None:
    assert options(modes=(Mode.AR,)).roles == (Role.PREFILL, Role.DECODE)
    assert options().roles == (Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DENOISE, Role.DRAFT)
