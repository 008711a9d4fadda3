"""`nemodiff bind` of engines that hold scales: the command line that compiles them again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemodiff_trt.build_engines.cli import build_app
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.runtime.cli.bind import BindArguments, build_command
from nemodiff_trt.vocabulary import LinearFormat, Mode, Precision, Role, Target
from support.checkpoints import random_checkpoint

LIMITS = Limits(max_batch_size=2, max_seq_len=64, block_length=8, prefill_chunk=16)


def manifest(**changes: Any) -> Any:
    facts = QuantizationFacts(Recipe(LinearFormat.FP8), Recipe(LinearFormat.NVFP4), "none", is_rehearsal=True)
    values: dict[str, Any] = {
        "quantization": facts,
        "limits": LIMITS,
        "target": Target.TENSORRT_RTX,
        "modes": (Mode.AR, Mode.SELF_SPECULATION),
        "precision": Precision.FP8,
        "sms": (120, 121),
        "adapter": object(),
        "keep_logits": False,
        "roles": dict.fromkeys((Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DRAFT)),
    }
    return SimpleNamespace(**(values | changes))


def parsed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> CompileOptions:
    """Options that `build_engines` makes of the command line."""
    from typer.main import get_command

    from nemodiff_trt.build_engines import cli

    seen: list[CompileOptions] = []
    monkeypatch.setattr(cli, "_build", lambda options, _: seen.append(options))
    assert command[1:3] == ["-m", "nemodiff_trt.build_engines"]
    get_command(build_app()).main(command[3:], standalone_mode=False)
    return seen[0]


def test_the_options_of_the_bundle_are_given_again(
    tiny_checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = BindArguments(
        bundle=tmp_path,
        checkpoint=str(tiny_checkpoint_dir),
        output=tmp_path / "new",
        calibration=tmp_path / "c.json",
        force=True,
    )
    options = parsed(build_command(arguments, manifest(), tmp_path / "recipe.yaml"), monkeypatch)
    assert options == CompileOptions(
        checkpoint=str(tiny_checkpoint_dir),
        target=Target.TENSORRT_RTX,
        output=tmp_path / "new",
        modes=(Mode.AR, Mode.SELF_SPECULATION),
        precision=Precision.FP8,
        draft_precision=Precision.NVFP4,
        recipe=tmp_path / "recipe.yaml",
        calibration=tmp_path / "c.json",
        sm=(120, 121),
        block_length=8,
        max_batch_size=2,
        max_seq_len=64,
        prefill_chunk=16,
        force=True,
    )


def test_an_adapter_that_is_missing_is_refused(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "c", adapter_rank=0)
    arguments = BindArguments(bundle=tmp_path, checkpoint=str(checkpoint), output=tmp_path / "new")
    with pytest.raises(InvalidInputError, match="or --without-adapter"):
        build_command(arguments, manifest(), tmp_path / "recipe.yaml")
