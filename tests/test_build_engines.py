"""`build_engines` as a user runs it: a checkpoint in, a checked bundle out, or one line that says why not."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemodiff_trt.build_engines import parity
from nemodiff_trt.build_engines.cli import PROGRAM, build_app
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.bundle import Bundle, Combine, mapped_tensors, source_tensors
from nemodiff_trt.bundle.reader import list_files
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.command_line import run_app
from nemodiff_trt.errors import BundleError, ParityError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.options import AdapterForm, CompileOptions
from nemodiff_trt.vocabulary import Mode, Precision, Role
from support.checkpoints import random_checkpoint

SIZES = ("--max-seq-len", "128", "--block-length", "8", "--prefill-chunk", "16", "--max-batch-size", "2")


def arguments(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--target", "onnxruntime", "--output", str(output), *SIZES, *more]


def small_options(checkpoint: Path, output: Path, **changes: Any) -> CompileOptions:
    sizes = {"max_seq_len": 128, "block_length": 8, "prefill_chunk": 16, "max_batch_size": 2}
    return CompileOptions(**({"checkpoint": str(checkpoint), "output": output} | sizes | changes))


@pytest.fixture(scope="module")
def built(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle of the tiny random checkpoint. Shared: copy it before changing it."""
    output = tmp_path_factory.mktemp("built") / "b"
    return compile_bundle(small_options(tiny_checkpoint_dir, output))


def run(capsys: pytest.CaptureFixture[str], args: list[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_app(build_app(), PROGRAM, args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_second_build_is_the_same_and_json_tells_what_it_is(
    tiny_checkpoint_dir: Path, tmp_path: Path, built: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, arguments(tiny_checkpoint_dir, tmp_path / "b", "--json"))
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert out.count("\n") == 1
    again = Bundle.open(tmp_path / "b").manifest
    # The report holds times and memory.
    assert {**again.files, "report.json": None} == {**built.manifest.files, "report.json": None}
    assert summary["build_key"] == built.manifest.build_key == again.build_key
    assert summary["modes"] == ["ar", "diffusion", "self_speculation"]
    assert summary["roles"]["decode"] == summary["roles"]["verify"]
    assert len(set(summary["roles"].values())) == 4
    assert summary["limits"]["cache_capacity"] == 136
    assert summary["adapter"] == {"rank": 4, "scale": 4.0}
    report = summary["report"]
    counts = {entry["name"]: entry["count"] for entry in report["passes"]["draft"]}
    assert counts["apply_draft_adapter"] == counts["set_attention_direction"] == counts["fuse_qkv"] == 2
    assert report["engines"][summary["roles"]["denoise"]]["num_nodes_per_op"]["Attention"] == 2
    assert set(report["parity"]) == set(summary["roles"])
    assert report["file_bytes"].keys() < set(list_files(tmp_path / "b"))
    assert set(report["stage_seconds"]) >= {"capture", "passes", "write weights", "lower to ONNX", "check parity"}
    assert 0 < report["peak_memory_bytes"] < 2 * 2**30


def test_without_json_one_line_sums_it_up(
    tiny_checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, arguments(tiny_checkpoint_dir, tmp_path / "b", "--modes", "ar", "--precision", "fp16"))
    assert code == 0
    assert out.count("\n") == 1
    assert "ar for onnxruntime in fp16" in out
    assert set(Bundle.open(tmp_path / "b").manifest.roles) == {Role.PREFILL, Role.DECODE}


def test_the_bundle_holds_all_weights_and_the_tokenizer(tiny_checkpoint_dir: Path, built: Bundle) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint_dir)
    decoder = checkpoint.load_decoder(built.manifest.limits.cache_capacity, torch.float32, adapter=True)
    sources = source_tensors(built)
    assert sources.keys() == decoder.state_dict().keys()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(sources[name], tensor), name
    stored = mapped_tensors(built.weights_path)
    tables = [name for name, layout in built.manifest.weights.items() if layout.combine is Combine.ROTARY_TABLE]
    assert len(tables) == 4
    for name in tables:
        np.testing.assert_array_equal(stored[name], getattr(decoder, name).numpy())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (built.tokenizer_dir / name).read_bytes() == (tiny_checkpoint_dir / name).read_bytes()


def test_linear_weights_are_stored_as_rows_of_inputs(built: Bundle) -> None:
    config, stored = built.manifest.model, mapped_tensors(built.weights_path)
    assert stored["encoder.layers.0.self_attn.qkv_proj.weight"].shape == (
        config.hidden_size,
        config.query_width + 2 * config.key_value_width,
    )
    assert stored["encoder.layers.1.mlp.gate_up_proj.weight"].shape == (config.hidden_size, 2 * config.intermediate_size)
    assert stored["diffusion_head.weight"].shape == (config.hidden_size, config.vocab_size)
    assert stored["encoder.embed_tokens.weight"].shape == (config.vocab_size, config.hidden_size)


def test_a_merged_adapter_is_stored_beside_its_parts(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    bundle = compile_bundle(small_options(tiny_checkpoint_dir, tmp_path / "b", draft_adapter=AdapterForm.MERGED))
    manifest = bundle.manifest
    assert manifest.adapter is not None
    sources, stored = source_tensors(bundle), mapped_tensors(bundle.weights_path)
    for layer in range(manifest.model.num_hidden_layers):
        stem = f"encoder.layers.{layer}.self_attn"
        down, up = (sources[f"{stem}.adapter.lora_{matrix}.weight"] for matrix in "AB")
        wanted = sources[f"{stem}.o_proj.weight"] + manifest.adapter.scale * (up @ down)
        # The same fp32 product, added and stored once.
        np.testing.assert_allclose(stored[f"{stem}.o_proj_draft.weight"].T, wanted.numpy(), rtol=1e-6, atol=1e-6)


def test_a_checkpoint_without_adapter_drafts_with_its_base_weights(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "base", adapter_rank=0)
    manifest = compile_bundle(small_options(checkpoint, tmp_path / "b")).manifest
    assert manifest.adapter is None
    assert manifest.roles[Role.DRAFT].file == manifest.roles[Role.DENOISE].file


def test_modes_that_do_not_draft_store_no_adapter(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    bundle = compile_bundle(small_options(tiny_checkpoint_dir, tmp_path / "b", modes=(Mode.AR, Mode.DIFFUSION)))
    assert bundle.manifest.adapter is None
    assert not [name for name in source_tensors(bundle) if "lora" in name]


def test_one_flipped_byte_in_any_file_makes_opening_fail_with_its_name(built: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(built.path, tmp_path / "copy"))
    names = list_files(copy)
    assert {"manifest.json", "report.json", "weights/shared.safetensors", "tokenizer/tokenizer.json"} < set(names)
    for name in names:
        intact = (copy / name).read_bytes()
        damaged = bytearray(intact)
        damaged[random.Random(name).randrange(len(damaged))] ^= 0x10
        (copy / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            Bundle.open(copy)
        (copy / name).write_bytes(intact)
    Bundle.open(copy)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--precision", "bf16"], "--precision: got 'bf16', allowed: fp32, fp16, fp8, nvfp4 for target onnxruntime"),
        (["--modes", "quadratic", "--quadratic-block-length", "1"], "--quadratic-block-length: got 1, allowed: an integer"),
        (["--modes", "ar,chat"], "--modes: got 'ar,chat', allowed: ar, diffusion, self_speculation, quadratic"),
        (["--target", "tensorrt-rtx"], "--precision: got 'fp32', allowed: bf16, fp16, fp8, nvfp4 for target tensorrt-rtx"),
        (["--weights", "embedded"], "--weights: got 'embedded', allowed: shared"),
        (["--sm", "120"], "--sm: got '120', allowed: nothing for target onnxruntime"),
        (["--sm", "blackwell"], "--sm: got 'blackwell', allowed: compute capabilities such as 120"),
        (["--block-length", "1"], "--block-length: got 1, allowed: an integer of at least 2"),
        (["--max-seq-len", "513"], "--max-seq-len: got 513, allowed: at most max_position_embeddings = 512"),
        (["--calibration", "amax.json"], "--calibration: got 'amax.json'"),
        (["--config", "nemotron-labs-diffusion-8b"], "exactly one of checkpoint and config"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--draft-adapter", "many"], "--draft-adapter: got 'many'"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tiny_checkpoint_dir: Path, tmp_path: Path, args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, arguments(tiny_checkpoint_dir, tmp_path / "b", *args))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert line in err
    assert list(tmp_path.iterdir()) == []


def test_target_and_output_are_required(tiny_checkpoint_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for missing in ("--target", "--output"):
        args = arguments(tiny_checkpoint_dir, Path("b"))
        position = args.index(missing)
        code, _, err = run(capsys, args[:position] + args[position + 2 :])
        assert code == 2
        assert missing in err


def test_an_existing_bundle_needs_force(
    tiny_checkpoint_dir: Path, built: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(built.path, tmp_path / "b"))
    fp16 = arguments(tiny_checkpoint_dir, output, "--precision", "fp16", "--modes", "ar")
    code, _, err = run(capsys, fp16)
    assert code == 2
    assert "--output" in err
    assert Bundle.open(output).manifest.precision is Precision.FP32
    assert run(capsys, [*fp16, "--force"])[0] == 0
    assert Bundle.open(output).manifest.precision is Precision.FP16


def test_an_engine_that_disagrees_with_eager_is_not_published(
    tiny_checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = parity.load_stored_decoder

    def altered(*args: Any) -> TriModeDecoder:
        decoder = load(*args)
        weight = decoder.encoder.layers[1].mlp.down_proj.weight
        decoder.encoder.layers[0].mlp.down_proj.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        return decoder

    monkeypatch.setattr(parity, "load_stored_decoder", altered)
    with pytest.raises(ParityError, match="role prefill: present_key_1 is off"):
        compile_bundle(small_options(tiny_checkpoint_dir, tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []
    code, _, err = run(capsys, arguments(tiny_checkpoint_dir, tmp_path / "b"))
    assert code == 1
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tiny_checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nemodiff_trt.build_engines.compile.write_weights", full)
    code, _, err = run(capsys, arguments(tiny_checkpoint_dir, tmp_path / "b"))
    assert code == 1
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_limits_can_be_built(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    smallest = {"max_seq_len": 2, "block_length": 2, "prefill_chunk": 1, "max_batch_size": 1}
    assert compile_bundle(small_options(tiny_checkpoint_dir, tmp_path / "b", **smallest)).manifest.limits.cache_capacity == 4


# Arguments: checkpoint, then pairs of an output and a stage. Each pair is a build in a forked process that kills itself when
# the stage begins. One capture before them does the imports of all, which take longer than a build.
_KILLER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.build_engines.stages import SilentListener
from nemodiff_trt.build_engines.targets import onnxruntime
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.options import CompileOptions

class Killer(SilentListener):
    def start(self, stage, total):
        if stage == self.stage:
            os.kill(os.getpid(), signal.SIGKILL)

checkpoint, *pairs = sys.argv[1:]
capture_step(Checkpoint.open(checkpoint).config, torch.float32, 8)
for output, stage in zip(pairs[::2], pairs[1::2]):
    process = os.fork()
    if not process:
        killer = Killer()
        killer.stage = stage
        compile_bundle(CompileOptions(checkpoint=checkpoint, output=Path(output), max_seq_len=128, force=True,
                                      block_length=8, prefill_chunk=16, sampling=True), killer)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (stage, status)
"""


# Four builds in turn: more than others need where another program has the processors.
@pytest.mark.timeout(400)
def test_a_killed_build_leaves_no_bundle_or_the_old_one(tiny_checkpoint_dir: Path, built: Bundle, tmp_path: Path) -> None:
    fresh, replaced = tmp_path / "fresh" / "b", tmp_path / "replaced" / "b"
    fresh.parent.mkdir()
    shutil.copytree(built.path, replaced)
    builds = [(fresh, "passes"), (fresh, "lower to ONNX"), (fresh, "publish"), (replaced, "publish")]
    pairs = [str(part) for build in builds for part in build]
    subprocess.run([sys.executable, "-c", _KILLER, str(tiny_checkpoint_dir), *pairs], check=True)
    assert Bundle.open(replaced).manifest == built.manifest
    for output in (fresh, replaced):
        # Each build removed what the one before it had left; the last one's is still there.
        left = sorted(path.name for path in output.parent.iterdir() if path != output)
        assert len(left) == 1
        assert left[0].startswith(".b.building-")
        assert output.exists() == (output == replaced)
        compile_bundle(small_options(tiny_checkpoint_dir, output, force=output.exists(), modes=(Mode.AR,)))
        assert [path.name for path in output.parent.iterdir()] == ["b"]
        assert Bundle.open(output).manifest.modes == (Mode.AR,)


@pytest.mark.slow
def test_kill_minus_nine_at_ten_random_moments(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "b"
    command = [sys.executable, "-m", "nemodiff_trt.build_engines", *arguments(tiny_checkpoint_dir, output, "--force")]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - started
    shutil.rmtree(output)
    moments = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.3, 1.05) * duration)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if output.exists():
            Bundle.open(output)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    Bundle.open(output)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
