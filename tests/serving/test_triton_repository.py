"""Model repositories: what is written, that it is replaced as a whole, and what the configuration says of requests."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.command_line import run_app
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.engine import EngineOptions
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sampling import SamplingOptions
from nemodiff_trt.runtime.triton_repository.config_pbtxt import config_pbtxt
from nemodiff_trt.runtime.triton_repository.fields import TEXT_OPTIONS, inputs
from nemodiff_trt.runtime.triton_repository.served_model import ServedModel
from nemodiff_trt.runtime.triton_repository.settings import ServingSettings
from nemodiff_trt.runtime.triton_repository.variant import Variant
from nemodiff_trt.vocabulary import Target
from support.bundles import copy_bundle
from support.fake_triton import FakeBackend, Request


@pytest.fixture
def bundle_dir(tiny_bundle_dir: Path) -> Path:
    return tiny_bundle_dir


def write(bundle_dir: Path, output: Path, *options: str) -> int:
    return run_app(build_app(), "nemodiff", ["triton-repo", "--bundle", str(bundle_dir), "--output", str(output), *options])


def arguments_of(repository: Path, name: str) -> dict[str, str]:
    """What Triton makes of a configuration and hands to `initialize`."""
    parameters = {}
    for line in (repository / name / "config.pbtxt").read_text().splitlines():
        if line.startswith("parameters"):
            _, key, _, value, _ = line.split('"')
            parameters[key] = {"string_value": value}
    config = json.dumps({"parameters": parameters})
    return {"model_config": config, "model_repository": str(repository / name), "model_version": "1", "model_name": name}


def test_every_option_is_an_input() -> None:
    named = {field.name: field for field in inputs(Variant.TEXT)}
    own = {field.name for field in dataclasses.fields(GenerationOptions)} - {"sampling"}
    assert named.keys() == own | {field.name for field in dataclasses.fields(SamplingOptions)} | {
        "text_input", "messages", "input_ids", "priority", "timeout_s", "stream"
    }  # fmt: skip
    kinds = {name: (field.kind.triton_type, field.dims) for name, field in named.items()}
    assert kinds["mode"] == ("TYPE_STRING", 1)
    assert kinds["stop"] == ("TYPE_STRING", -1)
    assert kinds["max_new_tokens"] == kinds["block_length"] == ("TYPE_INT64", 1)
    assert kinds["threshold"] == kinds["top_p"] == ("TYPE_FP64", 1)
    assert kinds["ignore_eos"] == ("TYPE_BOOL", 1)
    assert kinds["logit_bias"] == ("TYPE_STRING", 1)
    tokens = {field.name for field in inputs(Variant.TOKENS)}
    assert named.keys() - tokens == TEXT_OPTIONS | {"text_input", "messages"}


def test_configuration(bundle_dir: Path) -> None:
    manifest = Bundle.open(bundle_dir).manifest
    text = config_pbtxt("m", manifest, ServingSettings())
    assert "decoupled: true" in text
    assert "kind: KIND_CPU count: 1" in text
    gpu = config_pbtxt("m", dataclasses.replace(manifest, target=Target.TENSORRT_RTX), ServingSettings())
    assert "kind: KIND_GPU count: 1 gpus: [ 0 ]" in gpu
    for character in "{}[]":
        assert text.count(character) == text.count({"{": "}", "}": "{", "[": "]", "]": "["}[character])


def test_settings_survive_the_configuration() -> None:
    settings = ServingSettings(
        bundle='/a "quoted"\\path', variant=Variant.TOKENS, engine=EngineOptions(max_active=3, prefix_rows=0), num_threads=2,
        warm_up=False, metrics_s=0.0, end_think_token_id=13,
    )  # fmt: skip
    assert ServingSettings.from_parameters(settings.to_parameters()) == settings
    assert ServingSettings.from_parameters({}) == ServingSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_activ", "3"),
        ("max_active", "three"),
        ("max_active", "0"),
        ("max_active", "1.5"),
        ("prefix_rows", "null"),
        ("warm_up", "1"),
        ("metrics_s", "-1"),
        ("metrics_s", "NaN"),
        ("cancel_poll_s", "0"),
        ("variant", "speech"),
    ],
)
def test_unusable_settings_are_named(name: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        ServingSettings.from_parameters({name: value})


def test_a_repository_is_complete_and_serves(bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(bundle_dir, tmp_path / "repo", "--variant", "both", "--num-threads", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["nemodiff", "nemodiff_tokens"]
    # Elsewhere, and without the bundle it was made from: nothing outside is needed.
    repository = Path(shutil.move(tmp_path / "repo", tmp_path / "moved"))
    first, second = (repository / name / "1/bundle/weights/shared.safetensors" for name in ("nemodiff", "nemodiff_tokens"))
    assert first.samefile(second)
    answers = []
    for name, prompt, output in (
        ("nemodiff", {"text_input": "a"}, "text_output"),
        ("nemodiff_tokens", {"input_ids": [5]}, "token_ids"),
    ):
        model = ServedModel.open(FakeBackend(), arguments_of(repository, name))
        request = Request({**prompt, "max_new_tokens": 3, "ignore_eos": True}, ["token_ids", "finish_reason", "stats", output])
        model.execute([request])
        answers.append(request.sender.wait().responses)
        model.close()
    assert all(sum(len(response.values["token_ids"]) for response in responses) == 3 for responses in answers)
    assert answers[1][-1].values["finish_reason"] == [b"length"]


def test_model_file_has_what_triton_calls(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bundle_dir, tmp_path / "repo", "--link", "--no-warm-up")
    monkeypatch.setitem(__import__("sys").modules, "triton_python_backend_utils", FakeBackend())
    namespace: dict[str, Any] = {}
    source = (tmp_path / "repo/nemodiff/1/model.py").read_text()
    exec(compile(source, "model.py", "exec"), namespace)
    model = namespace["TritonPythonModel"]()
    model.initialize(arguments_of(tmp_path / "repo", "nemodiff"))
    assert not (tmp_path / "repo/nemodiff/1/bundle").exists()
    request = Request({"text_input": "a", "max_new_tokens": 2}, ["token_ids"])
    model.execute([request])
    assert request.sender.token_ids
    model.finalize()


def test_a_damaged_bundle_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    write(bundle_dir, tmp_path / "repo")
    weights = tmp_path / "repo/nemodiff/1/bundle/weights/shared.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights/shared\.safetensors"):
        ServedModel.open(FakeBackend(), arguments_of(tmp_path / "repo", "nemodiff"))


def test_replacing(bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repo"
    assert write(bundle_dir, output) == 0
    assert write(bundle_dir, output) == 2
    assert "--force" in capsys.readouterr().err.replace("force option", "--force")
    assert write(bundle_dir, output, "--force", "--name", "other") == 0
    assert [path.name for path in output.iterdir()] == ["other"]
    (output / "mine").mkdir()
    assert write(bundle_dir, output, "--force") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_nothing_is_left_of_a_failed_write(bundle_dir: Path, tmp_path: Path) -> None:
    damaged = copy_bundle(bundle_dir, tmp_path / "damaged")
    (damaged / "manifest.json").write_text("{}")
    assert write(damaged, tmp_path / "repo") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize(
    "options",
    [("--variant", "speech"), ("--name", "../up"), ("--max-active", "99"), ("--num-threads", "0"), ("--max-waiting", "-1")],
)
def test_bad_options(bundle_dir: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert write(bundle_dir, tmp_path / "repo", *options) == 2
    assert not (tmp_path / "repo").exists()
