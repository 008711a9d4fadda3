"""`nemodiff export-hf` from the command line: checkpoints, bundles, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.command_line import run_app
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.hf_export import ExportSource
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.vocabulary import LinearFormat, Precision
from support.bundles import copy_bundle, rewrite_manifest
from support.quantized_exports import made_up_statistics


def run(*arguments: object) -> int:
    return run_app(build_app(), "nemodiff", ["export-hf", *map(str, arguments)])


def test_a_bundle_gives_back_the_checkpoint_it_was_built_from(
    tiny_checkpoint_dir: Path, tiny_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", tiny_checkpoint_dir, "--output", tmp_path / "a", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "Ministral3ForCausalLM"
    assert (facts["dtype"], facts["num_tensors"]) == ("bfloat16", 21)
    assert facts["files"] == {path.name: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    # The bundle is fp32, transposed and fused; the weights were bfloat16.
    assert run("--bundle", tiny_bundle_dir, "--output", tmp_path / "b", "--dtype", "bfloat16") == 0
    assert "21 tensors" in capsys.readouterr().out
    for name in facts["files"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_bad_input_is_one_line(tiny_checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run("--output", output) == 2
    assert run("--output", output, "--checkpoint", tiny_checkpoint_dir, "--bundle", output) == 2
    assert run("--output", output, "--checkpoint", tiny_checkpoint_dir, "--dtype", "int8") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "either a checkpoint or a bundle" in lines[0]
    assert "bfloat16" in lines[2]
    assert not output.exists()


@pytest.mark.parametrize(
    "changes",
    [{"has_weights": False}, {"weight_storage": WeightStorage.EMBEDDED}, {"precision": Precision.NVFP4}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_bundle_without_plain_weights_is_refused(changes: dict[str, object], tiny_bundle_dir: Path, tmp_path: Path) -> None:
    copy = copy_bundle(tiny_bundle_dir, tmp_path / "bundle")
    rewrite_manifest(copy, **changes)
    with pytest.raises(InvalidInputError, match="bundle"):
        ExportSource.from_bundle(Bundle.open(copy))


class TestQuantised:
    @pytest.fixture
    def calibration(self, tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
        path = tmp_path / "calibration.json"
        path.write_bytes(made_up_statistics(tiny_checkpoint).to_bytes())
        return path

    def test_formats_come_from_precision_and_recipe(
        self, calibration: Path, tiny_checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text('overrides:\n  "*.down_proj": fp8\n  "encoder.layers.0.self_attn.*": none\n')
        options = ("--precision", "nvfp4", "--recipe", recipe, "--calibration", calibration)
        assert run("--checkpoint", tiny_checkpoint_dir, "--output", tmp_path / "out", "--json", *options) == 0
        assert json.loads(capsys.readouterr().out)["num_quantized"] == {"fp8": 2, "nvfp4": 8}
        formats = QuantizedCheckpoint.open(tmp_path / "out").formats
        assert formats["encoder.layers.0.mlp.down_proj"] is LinearFormat.FP8
        assert "encoder.layers.0.self_attn.q_proj" not in formats

    def test_bad_input_is_one_line(
        self, calibration: Path, tiny_checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, output = ("--checkpoint", tiny_checkpoint_dir), ("--output", tmp_path / "out")
        assert run(*source, *output, "--precision", "fp16", "--calibration", calibration) == 2
        assert run(*source, *output, "--precision", "fp8", "--calibration", tmp_path / "none.json") == 2
        assert run("--checkpoint", "nemodiff-tiny", *output, "--precision", "fp8", "--calibration", calibration) == 2
        assert run("--bundle", tmp_path, *output, "--precision", "fp8") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 4
        for line, text in zip(lines, ("fp8, nvfp4", "none.json", "this checkpoint", "give its checkpoint"), strict=True):
            assert text in line
        assert not (tmp_path / "out").exists()
