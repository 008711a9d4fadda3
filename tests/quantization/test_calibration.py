"""Calibration: what ModelOpt finds on the whole decoder, in all roles, from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization.calibration import calibrate
from nemodiff_trt.quantization.calibration_text import (
    CalibrationSequence,
    generated_samples,
    plan_sequences,
    read_samples,
)
from nemodiff_trt.quantization.ranges import find_ranges
from nemodiff_trt.quantization.recipe import HEAD, ActivationRange, linear_names
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role

LIMITS = Limits(max_batch_size=1, max_seq_len=64, block_length=8, prefill_chunk=16)
Q_PROJ = "encoder.layers.1.self_attn.q_proj"
ROLES = (Role.PREFILL, Role.VERIFY, Role.DENOISE, Role.DRAFT)


@pytest.fixture(scope="module")
def sequences(tiny_checkpoint: Checkpoint) -> list[CalibrationSequence]:
    tokenizer = Tokenizer.from_dir(tiny_checkpoint.path)
    samples = generated_samples(tokenizer, tiny_checkpoint.config, 4)
    return plan_sequences(samples, tiny_checkpoint.config, 8, 60, ROLES)


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Checkpoint, sequences: list[CalibrationSequence]) -> ActivationStatistics:
    return calibrate(tiny_checkpoint, sequences)


def test_every_layer_in_every_role(tiny_checkpoint: Checkpoint, found: ActivationStatistics) -> None:
    assert set(found.amax) == set(linear_names(tiny_checkpoint.config))
    for name, roles in found.amax.items():
        assert set(roles) == ({Role.DRAFT} if "lora" in name else set(ROLES))
        assert found.input_amax(name) == max(roles.values()) > 0
    # A block of masks is no ordinary text.
    layers = [found.amax[name] for name in found.amax if name.endswith("o_proj")]
    assert all(roles[Role.DRAFT] != roles[Role.PREFILL] for roles in layers)


def test_equals_modelopt_on_the_whole_decoder(
    tiny_checkpoint: Checkpoint, sequences: list[CalibrationSequence], found: ActivationStatistics
) -> None:
    import modelopt.torch.quantization as mtq

    decoder = tiny_checkpoint.load_decoder(128, torch.float32, adapter=True)
    config = tiny_checkpoint.config
    shape = (1, config.num_key_value_heads, 128, config.head_dim)

    def run(model: torch.nn.Module) -> None:
        for sequence in sequences:
            caches = [[torch.zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2)]
            start = torch.tensor([0])
            _, keys, values = model(torch.tensor([sequence.token_ids]), start, *caches)
            for step in sequence.steps:
                causal, adapter = step.role.is_causal, step.role.uses_adapter
                model(torch.tensor([step.token_ids]), torch.tensor([step.start]), keys, values, causal, adapter)

    inputs = {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}}
    off = {"quantizer_name": "*", "enable": False}
    mtq.quantize(decoder, {"quant_cfg": [off, inputs], "algorithm": "max"}, run)
    for name in found.amax:
        # Attention covers caches of another capacity, so sums run in another order.
        assert float(decoder.get_submodule(name).input_quantizer.amax) == pytest.approx(found.input_amax(name), rel=1e-5), name


def test_a_percentile_leaves_out_the_largest(
    tiny_checkpoint: Checkpoint, sequences: list[CalibrationSequence], found: ActivationStatistics
) -> None:
    cut = calibrate(tiny_checkpoint, sequences, ActivationRange.PERCENTILE)
    shares = [cut.input_amax(name) / found.input_amax(name) for name in found.amax]
    # A range is the edge of one of 2048 bins.
    assert max(shares) < 1 + 1e-3
    assert min(shares) < 0.999
    assert min(shares) > 0.3


def test_steps_lie_behind_text_that_was_read(tiny_checkpoint: Checkpoint, sequences: list[CalibrationSequence]) -> None:
    mask = tiny_checkpoint.config.mask_token_id
    for sequence in sequences:
        for step in sequence.steps:
            assert step.start < len(sequence.token_ids)
            assert len(step.token_ids) == 8
            assert step.token_ids[0] == sequence.token_ids[step.start]
            if step.role is Role.DRAFT:
                assert set(step.token_ids[1:]) == {mask}


def test_statistics_survive_their_file(tmp_path: Path, tiny_checkpoint: Checkpoint, found: ActivationStatistics) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(found.to_bytes())
    assert find_ranges(tiny_checkpoint, path, LIMITS, ActivationRange.MAX) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(kind="other"), "a file with kind"),
        (lambda raw: raw.pop("num_tokens"), "a file with kind"),
        (lambda raw: raw["amax"][Q_PROJ].update(verify=0.0), f"{Q_PROJ}: 0.0 is not a positive number"),
        (lambda raw: raw["amax"][Q_PROJ].update(other=1.0), "'other' is not a valid Role"),
        (lambda raw: raw.update(checkpoint="elsewhere"), "ranges of this checkpoint"),
    ],
)
def test_altered_statistics(
    tmp_path: Path, tiny_checkpoint: Checkpoint, found: ActivationStatistics, change: object, message: str
) -> None:
    raw = json.loads(found.to_bytes())
    change(raw)  # type: ignore[operator]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InvalidInputError, match=message):
        find_ranges(tiny_checkpoint, path, LIMITS, ActivationRange.MAX)


def test_a_layer_that_was_not_calibrated(found: ActivationStatistics) -> None:
    with pytest.raises(InvalidInputError, match="one of the 19 layers"):
        found.input_amax("encoder.layers.9.mlp.up_proj")


class TestPromptFiles:
    @pytest.fixture
    def tokenizer(self, tiny_checkpoint: Checkpoint) -> Tokenizer:
        return Tokenizer.from_dir(tiny_checkpoint.path)

    def test_one_prompt_a_line(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        path = tmp_path / "prompts.txt"
        path.write_text("What is 2 + 2?\n\nName a colour.\n")
        samples = read_samples(path, tokenizer)
        assert len(samples) == 2
        assert "What is 2 + 2?" in tokenizer.decode(samples[0].prompt)
        assert samples[0].answer == []

    def test_json_lines_with_answers(self, tmp_path: Path, tokenizer: Tokenizer, tiny_checkpoint: Checkpoint) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text('{"prompt": "2 + 2?", "answer": "4, of course"}\n{"prompt": "Hi"}\n')
        samples = read_samples(path, tokenizer)
        assert tokenizer.decode(samples[0].answer) == "4, of course"
        found = find_ranges(tiny_checkpoint, path, LIMITS, ActivationRange.MAX)
        assert (found.num_sequences, set(found.amax[HEAD])) == (2, set(ROLES))

    @pytest.mark.parametrize(
        ("name", "content", "allowed"),
        [
            ("p.txt", b"\n \n", "at least one prompt"),
            ("p.txt", b"\xff\xfe", "a readable text file"),
            ("p.jsonl", b"{", "a JSON object"),
            ("p.jsonl", b'{"text": "x"}', "an object with prompt"),
            ("p.jsonl", b'{"prompt": "x", "answer": 4}', "an object with prompt"),
        ],
    )
    def test_unusable(self, tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes, allowed: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=allowed):
            read_samples(path, tokenizer)


def test_without_modelopt_one_line_says_what_to_install(
    tiny_checkpoint: Checkpoint, sequences: list[CalibrationSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization.calib", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'nemodiff_trt\[quantization\]'"):
        calibrate(tiny_checkpoint, sequences)
