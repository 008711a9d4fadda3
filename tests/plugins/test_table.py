"""The table of operators: what it declares exists, what exists it declares, and `list` shows it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemodiff_trt import plugins
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.plugins import OPS, Form, find_op
from nemodiff_trt.plugins.cli import list_operators, parse_sms
from nemodiff_trt.plugins.network_forms import NETWORK_FORMS
from nemodiff_trt.plugins.onnx_forms import ONNX_FORMS
from nemodiff_trt.plugins.realisations import COLUMNS, realisations
from nemodiff_trt.vocabulary import Target

FOLDER = Path(plugins.__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "nemodiff_trt.plugins", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [op.name for op in OPS])
def test_forms_are_declared_and_load(name: str) -> None:
    op = find_op(name)
    written = {form for form in Form if (FOLDER / name / f"{form}.py").exists()}
    assert op.forms == written
    for form in op.forms:
        assert op.load(form) is not None
    modules = [importlib.import_module(f"{plugins.__name__}.{name}.{form}") for form in op.forms]
    assert all(str(module.__doc__).startswith("`nemodiff::") for module in modules)


def test_every_folder_is_in_the_table() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/reference.py")} == {op.name for op in OPS}


def test_every_operator_has_the_forms_that_engines_need() -> None:
    # Rounding is emulated on a CPU, where TensorRT multiplies quantised operands: an operator of the one or of the other.
    assert ONNX_FORMS.keys() == {op.name for op in OPS if Form.ONNX in op.forms}
    assert NETWORK_FORMS.keys() == {op.name for op in OPS if Form.NETWORK in op.forms}
    one_sided = ONNX_FORMS.keys() ^ NETWORK_FORMS.keys()
    assert one_sided == {"round_to_fp8", "round_to_nvfp4", "fp8_linear", "nvfp4_linear"}
    for op in OPS:
        assert realisations(op).keys() == COLUMNS.keys()
        assert set(map(str, Target)) <= COLUMNS.keys()


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(LookupError, match="step_positions has no triton_form"):
        find_op("step_positions").load(Form.TRITON)
    with pytest.raises(LookupError, match="no operator 'nothing'"):
        find_op("nothing")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    list_operators(as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [entry["operator"] for entry in listed["operators"]] == [op.name for op in OPS]
    head = next(entry for entry in listed["operators"] if entry["operator"] == "decision_head")
    assert head["targets"]["eager-kernels"] == "Triton kernel"
    assert head["forms"] == ["network_form", "onnx_form", "plugin_form", "triton_form"]
    assert head["targets"]["tensorrt"] == "native layers or plugin"


def test_list_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    list_operators()
    shown = capsys.readouterr().out
    assert all(op.name in shown for op in OPS)


@pytest.mark.parametrize("text", ["", "90,91", "sm90", "9 0", "120,"])
def test_unknown_gpus_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="90,100,120,121"):
        parse_sms(text)
    assert parse_sms("120, 90,120") == (120, 90)


def test_compile_refuses_in_one_line(tmp_path: Path) -> None:
    result = run("compile", "--sm", "91", "--output", str(tmp_path / "kernels"))
    assert result.returncode == 2
    assert result.stderr == "nemodiff_trt.plugins: error: --sm: got '91', allowed: some of 90,100,120,121\n"
    assert not (tmp_path / "kernels").exists()
