"""The `nemodiff` program: by its JSON, its exit codes and what it shows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.command_line import run_app
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.cli.chat_state import ChatState, run_command
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.vocabulary import Mode, Role
from support.bundles import build_bundle, copy_bundle, swap_engine

MODES = ("ar", "diffusion", "self_speculation")
RESULT_FIELDS = ["prompt", "text", "token_ids", "finish_reason", "mode", "stats"]
STATS_FIELDS = [
    "new_tokens", "forward_passes", "prefill_passes", "tokens_per_forward", "mean_accepted", "prefill_ms", "decode_ms",
    "tokens_per_second",
]  # fmt: skip
BACKENDS = ("torch", "onnx", "onnxruntime", "numpy", "tokenizers")


@dataclass
class Outcome:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Standard output as JSON, which every line of it must be."""
        return [json.loads(line) for line in self.out.splitlines()]


class Program:
    """Runs `nemodiff` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        code = run_app(build_app(), "nemodiff", [str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Outcome(code, out, err)


@pytest.fixture
def nemodiff(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture(scope="module")
def model(tiny_bundle_dir: Path) -> TriModeLM:
    return TriModeLM.from_bundle(tiny_bundle_dir, num_threads=1)


class TestGenerate:
    @pytest.mark.parametrize("mode", MODES)
    def test_json_has_exactly_the_documented_fields(self, nemodiff: Program, tiny_bundle_dir: Path, mode: str) -> None:
        result = nemodiff(
            "generate", "--bundle", tiny_bundle_dir, "--prompt", "hello", "--mode", mode, "--max-new-tokens", 9, "--json"
        )
        assert (result.code, result.err) == (0, "")
        (content,) = result.objects
        assert list(content) == RESULT_FIELDS
        assert list(content["stats"]) == STATS_FIELDS
        assert (content["mode"], content["finish_reason"], len(content["token_ids"])) == (mode, "length", 9)
        assert content["stats"]["new_tokens"] == 9
        # 8 tokens came after prefill, one for each pass in ar.
        assert content["stats"]["tokens_per_forward"] == 8 / content["stats"]["forward_passes"]
        assert content["stats"]["forward_passes"] == 8 or mode != "ar"

    def test_prompts_file_of_all_forms_keeps_its_order(
        self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path, model: TriModeLM
    ) -> None:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "third"}]
        lines = ["first, and the longest of all", '{"prompt": "second\\u2028line"}', "", json.dumps({"messages": messages})]
        (tmp_path / "prompts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        result = nemodiff(
            "generate", "--bundle", tiny_bundle_dir, "--prompts-file", tmp_path / "prompts", "--max-new-tokens", 3, "--json"
        )
        chats = [[{"role": "user", "content": lines[0]}], [{"role": "user", "content": "second\u2028line"}], messages]
        assert [content["prompt"] for content in result.objects] == [model.tokenizer.apply_chat_template(c) for c in chats]

    def test_without_chat_the_prompt_is_the_text(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        options = ("--bundle", tiny_bundle_dir, "--prompt", "as it is", "--max-new-tokens", 2, "--json")
        assert nemodiff("generate", *options, "--no-chat").objects[0]["prompt"] == "as it is"

    def test_thinking_opens_a_section_and_its_budget_closes_it(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        options = ("--prompt", "hm", "--max-new-tokens", 12, "--thinking", "--max-thinking-tokens", 3, "--ignore-eos", "--json")
        content = nemodiff("generate", "--bundle", tiny_bundle_dir, *options).objects[0]
        assert content["prompt"].endswith("<think>\n")
        assert 13 in content["token_ids"][:4]

    def test_stop_ends_the_text_before_it(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        options = ("--bundle", tiny_bundle_dir, "--prompt", "hello", "--max-new-tokens", 24, "--json")
        whole = nemodiff("generate", *options).objects[0]["text"]
        stop = whole[5:7]
        content = nemodiff("generate", *options, "--stop", stop).objects[0]
        assert (content["finish_reason"], content["text"]) == ("stop", whole[: whole.index(stop)])

    def test_stream_prints_the_text_and_nothing_else_on_stdout(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        options = ("--bundle", tiny_bundle_dir, "--prompt", "hello", "--max-new-tokens", 16)
        whole = nemodiff("generate", *options, "--json").objects[0]["text"]
        streamed, plain = nemodiff("generate", *options, "--stream"), nemodiff("generate", *options)
        assert streamed.out == plain.out == whole + "\n"
        assert "16 tokens" in streamed.err
        assert "16 tokens" in plain.err

    def test_standard_input_in_a_process_of_its_own(self, tiny_bundle_dir: Path) -> None:
        command = [sys.executable, "-c", "from nemodiff_trt.runtime.cli import main; main()", "generate", "-", "--json"]
        options = ["--bundle", str(tiny_bundle_dir), "--max-new-tokens", "2", "--no-chat", "--num-threads", "1"]
        result = subprocess.run([*command, *options], input='{"prompt": "é"}\nb\n'.encode(), capture_output=True, check=True)
        assert [json.loads(line)["prompt"] for line in result.stdout.decode().splitlines()] == ["é", "b"]
        assert result.stderr == b""


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--prompt", "a", "--mode", "fast"], ["mode", "'fast'", "self_speculation"]),
            (["--prompt", "a", "--mode", "quadratic"], ["mode", "'quadratic'", "diffusion"]),
            (["--prompt", "a", "--max-new-tokens", "0"], ["max_new_tokens", "0", "at least 1"]),
            (["--prompt", "a", "--max-new-tokens", "many"], ["--max-new-tokens", "'many'", "integer"]),
            (["--prompt", "a", "--block-length", "9"], ["block_length", "9", "2 to 8"]),
            (["--prompt", "a", "--threshold", "1.5", "--mode", "diffusion"], ["threshold", "1.5", "0 to 1"]),
            (["--prompt", "a", "--threshold", "0.5", "--steps", "2", "--mode", "diffusion"], ["steps", "2"]),
            (["--prompt", "a", "--stop", ""], ["stop", "at least one character"]),
            (["--prompt", "a", "--stream", "--json"], ["stream"]),
            (["--prompt", "a", "--temperature", "-1"], ["temperature", "-1", "at least"]),
            (["--prompt", "a", "--temperature", "0.5"], ["temperature", "0.5", "--sampling"]),
            (["--prompt", "a", "--logprobs", "2", "--json"], ["logprobs", "2", "--sampling"]),
            (["--prompt", "a", "--logprobs", "2"], ["logprobs", "json"]),
            (["--prompt", "a", "--logit-bias", "42"], ["logit_bias", "'42'", "42=-1.5"]),
            (["--prompt", "a", "--logit-bias", "42=200"], ["logit_bias", "200", "-100 to 100"]),
            (["--prompt", "a", "--mode", "ar", "--acceptance", "rejection"], ["acceptance", "self_speculation"]),
            (["--prompt", "a", "--thinking", "--no-chat"], ["thinking"]),
            (["--prompt", "a", "--num-threads", "0"], ["num_threads", "0", "at least 1"]),
            (["--prompt", "a" * 200], ["prompt", "tokens", "127"]),
            (["--prompt", "a", "-"], ["prompt", "2 sources", "exactly one"]),
            ([], ["prompt", "0 sources"]),
            (["what"], ["prompt", "'what'"]),
            (["--prompts-file", "no/such/file"], ["prompts-file", "'no/such/file'", "readable"]),
            (["--prompt", "a", "--colour"], ["--colour"]),
        ],
    )
    def test_bad_input_is_one_line_and_exit_2(
        self, nemodiff: Program, tiny_bundle_dir: Path, arguments: list[str], named: list[str]
    ) -> None:
        result = nemodiff("generate", "--bundle", tiny_bundle_dir, *arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("nemodiff: error: ")
        assert result.err.count("\n") == 1
        assert [text for text in named if text not in result.err] == []

    @pytest.mark.parametrize("line", ['{"prompt": 3}', '{"messages": []}', '{"prompt": "a", "messages": [1]}', "{nonsense"])
    def test_a_bad_line_of_a_prompts_file_is_named(
        self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path, line: str
    ) -> None:
        (tmp_path / "prompts").write_text(f"good\n{line}\n")
        result = nemodiff("generate", "--bundle", tiny_bundle_dir, "--prompts-file", tmp_path / "prompts")
        assert (result.code, result.out) == (2, "")
        assert "prompts-file line 2" in result.err

    @pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
    def test_an_unusable_prompts_file(self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "prompts").write_bytes(content)
        result = nemodiff("generate", "--bundle", tiny_bundle_dir, "--prompts-file", tmp_path / "prompts")
        assert result.code == 2
        assert "prompts-file" in result.err

    @pytest.mark.parametrize("command", ["generate", "chat", "inspect"])
    def test_a_missing_bundle_is_exit_1(self, nemodiff: Program, tmp_path: Path, command: str) -> None:
        extra = ["--prompt", "a"] if command == "generate" else []
        result = nemodiff(command, "--bundle", tmp_path / "none", *extra)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert str(tmp_path / "none") in result.err

    def test_an_altered_bundle_is_exit_1_and_names_the_file(
        self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path
    ) -> None:
        copy = damaged(tiny_bundle_dir, tmp_path)
        result = nemodiff("generate", "--bundle", copy, "--prompt", "a")
        assert result.code == 1
        assert "weights/shared.safetensors" in result.err


def damaged(bundle_dir: Path, folder: Path) -> Path:
    """Copy of a bundle with one bit of a weight flipped."""
    copy = copy_bundle(bundle_dir, folder / "damaged")
    path = copy / "weights/shared.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    return copy


class TestInspect:
    def test_json(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        (facts,) = nemodiff("inspect", "--bundle", tiny_bundle_dir, "--json").objects
        assert list(facts["roles"]) == ["prefill", "decode", "verify", "denoise", "draft"]
        assert facts["modes"] == list(MODES)
        assert facts["limits"]["cache_capacity"] == 136
        # Two layers of keys and values, 136 slots, 2 heads of 16, 4 bytes each.
        assert facts["cache_bytes_per_sequence"] == 2 * 2 * 136 * 2 * 16 * 4
        assert facts["roles"]["verify"]["shared_with"] == ["decode"]
        token = next(tensor for tensor in facts["roles"]["prefill"]["outputs"] if tensor["name"] == "token")
        assert token == {"name": "token", "dtype": "int64", "shape": ["B", 1], "alias_of": None}
        on_disk = sum(path.stat().st_size for path in tiny_bundle_dir.rglob("*") if path.is_file())
        assert facts["num_bytes"] + (tiny_bundle_dir / "manifest.json").stat().st_size == on_disk
        assert facts["report"]["passes"]["draft"]

    def test_tables(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        shown = nemodiff("inspect", "--bundle", tiny_bundle_dir).out
        for text in ("prefill", "apply_draft_adapter", "rank 4", "136 slots", "weights/shared.safetensors"):
            assert text in shown


class TestCheck:
    def test_a_good_bundle(self, nemodiff: Program, tiny_bundle_dir: Path) -> None:
        result = nemodiff("check", "--bundle", tiny_bundle_dir, "--prompt", "hello", "--max-new-tokens", 20, "--json")
        (findings,) = result.objects
        assert (result.code, result.err, findings["ok"]) == (0, "", True)
        assert findings["checksums"]["num_files"] == 9
        assert list(findings["parity"]["roles"]) == ["prefill", "decode", "verify", "denoise", "draft"]
        assert all(0 <= role["max_cache_error"] < 1e-5 for role in findings["parity"]["roles"].values())
        lossless = findings["losslessness"]
        assert (lossless["num_prompts"], lossless["num_tokens"], lossless["differing_prompts"]) == (1, 20, [])

    def test_an_altered_file(self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path) -> None:
        result = nemodiff("check", "--bundle", damaged(tiny_bundle_dir, tmp_path), "--json")
        (findings,) = result.objects
        assert (result.code, findings["ok"], findings["parity"]) == (1, False, None)
        assert "weights/shared.safetensors" in findings["checksums"]["error"]

    def test_an_engine_that_computes_something_else(self, nemodiff: Program, tiny_bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(tiny_bundle_dir, tmp_path / "copy")
        # A verifier that looks ahead: the file is intact, the results are wrong.
        swap_engine(copy, Role.VERIFY, by=Role.DENOISE)
        options = ("check", "--bundle", copy, "--max-new-tokens", 40)
        result = nemodiff(*options, "--json")
        (findings,) = result.objects
        assert (result.code, findings["ok"], findings["checksums"]["ok"]) == (1, False, True)
        assert [name for name, role in findings["parity"]["roles"].items() if not role["ok"]] == ["verify"]
        assert findings["losslessness"]["differing_prompts"]
        shown = nemodiff(*options)
        assert shown.code == 1
        assert "FAILED verify" in shown.out

    def test_without_both_modes_losslessness_is_not_tested(
        self, nemodiff: Program, tiny_checkpoint_dir: Path, tmp_path: Path
    ) -> None:
        bundle_dir = build_bundle(tiny_checkpoint_dir, tmp_path / "ar", modes=(Mode.AR,))
        result = nemodiff("check", "--bundle", bundle_dir, "--json")
        assert (result.code, result.objects[0]["losslessness"]) == (0, None)


class TestChat:
    @pytest.mark.parametrize("show", [False, True])
    def test_a_conversation(
        self, nemodiff: Program, tiny_bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, model: TriModeLM, show: bool
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/mode ar\n/block 40\n/nothing\n/quit\nnever asked\n"))
        extra = ["--show"] if show else []
        result = nemodiff("chat", "--bundle", tiny_bundle_dir, "--max-new-tokens", 8, "--mode", "self_speculation", *extra)
        (answer,) = model.generate([{"role": "user", "content": "hi"}], max_new_tokens=8)
        assert result.code == 0
        assert "".join(answer.text.split()) in "".join(result.out.split())
        for text in ("8 tokens", "mode ar", "block_length: got 40", "command: got '/nothing'"):
            assert text in result.out
        assert "never asked" not in result.out

    def test_history_is_kept_and_fits_the_context(self, model: TriModeLM) -> None:
        state = ChatState(model, GenerationOptions(max_new_tokens=20))
        state.messages = [{"role": "system", "content": "short"}]
        for turn in range(6):
            state.messages.append({"role": "user", "content": f"question {turn}"})
            num_before = len(state.messages)
            assert state.fit_messages() == num_before - len(state.messages)
            text = model.tokenizer.apply_chat_template(state.messages)
            assert len(model.tokenizer.encode(text)) + 20 <= model.session.limits.max_seq_len
            state.messages.append({"role": "assistant", "content": f"answer {turn}"})
        assert state.messages[0]["role"] == "system"
        assert [message["role"] for message in state.messages[1:3]] == ["user", "assistant"]
        assert 3 < len(state.messages) < 13
        run_command(state, "/clear")
        assert state.messages == [{"role": "system", "content": "short"}]

    def test_commands_change_options_or_nothing(self, model: TriModeLM) -> None:
        state = ChatState(model, GenerationOptions())
        for line in ("/mode diffusion", "/block 4", "/threshold 0.5", "/tokens 7", "/thinking on", "/show"):
            run_command(state, line)
        options = state.options
        assert (options.mode, options.block_length, options.threshold) == (Mode.DIFFUSION, 4, 0.5)
        assert (options.max_new_tokens, options.enable_thinking, state.is_shown) == (7, True, True)
        for line in ("/threshold 2", "/block x", "/mode", "/tokens 0", "/show maybe", "/slow 99", "/clear now"):
            with pytest.raises(ValueError, match="allowed"):
                run_command(state, line)
        assert state.options == options
        run_command(state, "/mode ar")
        assert state.options.threshold is None


class TestTrainAndHelp:
    def test_train_hands_over(self, nemodiff: Program) -> None:
        result = nemodiff("train", "--help")
        assert result.code == 0
        assert "drafter" in result.out
        refused = nemodiff("train", "model", "--steps", "0", "--output", "x")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "--steps" in refused.err

    def test_no_arguments_ask_for_help(self, nemodiff: Program) -> None:
        result = nemodiff()
        assert result.code == 0
        for command in ("generate", "chat", "inspect", "check", "train"):
            assert command in result.out

    def test_help_loads_no_backend(self) -> None:
        script = (
            "import sys\nfrom nemodiff_trt.command_line import run_app\nfrom nemodiff_trt.runtime.cli.app import build_app\n"
            "run_app(build_app(), 'nemodiff', ['generate', '--help'])\n"
            f"print('loaded', [name for name in {BACKENDS!r} if name in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "loaded []"


def test_the_bundle_of_these_tests_has_all_modes(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.modes == (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION)
