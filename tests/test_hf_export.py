"""`export-hf`: `transformers` loads what is written and computes what the eager decoder computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Ministral3ForCausalLM

from nemodiff_trt.bundle.safetensors_layout import plan_spans
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.checkpoint.layout import decoder_shapes
from nemodiff_trt.checkpoint.ministral3 import from_ministral3_config, to_decoder_name, to_ministral3_name
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import CheckpointError, ExportError, InvalidInputError
from nemodiff_trt.hf_export import ExportReport, ExportSource, export_hf
from nemodiff_trt.hf_export.tensor_groups import TensorGroup, write_groups
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.model.rotary_tables import query_scale
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode
from support.checkpoints import random_checkpoint, tiny_config
from support.damage import edit_json, edit_tensors
from support.ministral3 import random_step, relative_error

# Slots before the step and its tokens. The random checkpoint's original context ends at 32, that of nemodiff-tiny at 16,384.
CASES = {
    "random, across the original context": ("random", 0, 100),
    "nemodiff-tiny, start": ("nemodiff-tiny", 0, 65),
    "nemodiff-tiny, across 16384": ("nemodiff-tiny", 16_380, 40),
}
# In standard deviations of the logits: fp32 round-off.
TOLERANCE = 2e-5
# At 16,384 the reference's fp32 angles are off by up to 1e-3 rad, ours are not: its own angles have to give its logits, ours
# logits that are as close as that lets them be. Without query scale, or without YaRN, they are 0.3 and more away.
FAR_TOLERANCE = 3e-3
PROMPTS = ("Count up from 3 to 60 in steps of 3.", "Sort from small to large: 42, 17, 88, 23")


def export(checkpoint_dir: Path, output: Path, **options: Any) -> ExportReport:
    return export_hf(ExportSource.from_checkpoint(Checkpoint.open(checkpoint_dir)), output, **options)


def load_exported(directory: Path) -> Ministral3ForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    assert isinstance(model, Ministral3ForCausalLM)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoint folder and exported folder by name."""
    made = {}
    for name, source in (("random", tiny_checkpoint_dir), ("nemodiff-tiny", resolve_checkpoint("nemodiff-tiny"))):
        made[name] = source, tmp_path_factory.mktemp("exported") / name
        export(*made[name])
    return made


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_logits_of_the_eager_decoder(case: str, exported: dict[str, tuple[Path, Path]]) -> None:
    name, num_cached, step_tokens = CASES[case]
    source, folder = exported[name]
    checkpoint = Checkpoint.open(source)
    step = random_step(checkpoint.config, 1, num_cached, step_tokens)
    decoder = checkpoint.load_decoder(step.num_positions, torch.float32, adapter=False)
    reference = load_exported(folder)
    expected = step.reference_logits(reference)
    if num_cached:
        assert relative_error(step.decoder_logits(decoder), expected) < FAR_TOLERANCE
        use_fp32_angles(decoder, reference.model.rotary_emb.inv_freq, step.num_positions)
    assert relative_error(step.decoder_logits(decoder), expected) < TOLERANCE


def use_fp32_angles(decoder: TriModeDecoder, inverse_frequencies: torch.Tensor, num_positions: int) -> None:
    """Give the decoder tables of angles as `transformers` computes them."""
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse_frequencies[None, :]
    scale = query_scale(decoder.config.rope_parameters, torch.arange(num_positions)).to(torch.float32)[:, None]
    decoder.key_cos, decoder.key_sin = angles.cos(), angles.sin()
    decoder.query_cos, decoder.query_sin = angles.cos() * scale, angles.sin() * scale


def test_transformers_generates_the_tokens_of_ar_from_the_same_prompt(exported: dict[str, tuple[Path, Path]]) -> None:
    source, folder = exported["nemodiff-tiny"]
    limits = Limits(max_batch_size=1, max_seq_len=256, block_length=8, prefill_chunk=128)
    decoder = Checkpoint.open(source).load_decoder(limits.cache_capacity, torch.float32, adapter=False)
    ours = TriModeLM(EagerSession(decoder, limits), Tokenizer.from_dir(source))
    reference, tokenizer = load_exported(folder), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = ours.tokenizer.apply_chat_template(chat)
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        assert ids[0].tolist() == ours.tokenizer.encode(text)
        generated = reference.generate(ids, max_new_tokens=96, do_sample=False)[0, ids.shape[1] :].tolist()
        expected = list(ours.generate(chat, GenerationOptions(mode=Mode.AR, max_new_tokens=96))[0].token_ids)
        assert generated == expected
        assert generated[-1] == tokenizer.eos_token_id, "both end by themselves"


def test_the_mask_id_is_never_generated(exported: dict[str, tuple[Path, Path]]) -> None:
    settings = json.loads((exported["random"][1] / "generation_config.json").read_text())
    assert settings == {"eos_token_id": 11, "bos_token_id": 1, "suppress_tokens": [100]}
    model = load_exported(exported["random"][1])
    with torch.no_grad():
        model.lm_head.weight[100] = 100 * model.model.norm.weight
    ids = torch.randint(128, 300, (4, 20), generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits[:, -1]
    assert (logits.argmax(-1) == 100).any(), "the head now prefers the mask"
    assert not (model.generate(ids, max_new_tokens=8, do_sample=False)[:, 20:] == 100).any()


def test_every_tensor_is_there_bit_for_bit_and_no_other(exported: dict[str, tuple[Path, Path]]) -> None:
    source, folder = exported["random"]
    checkpoint, stored = Checkpoint.open(source), load_file(folder / "model.safetensors")
    assert {to_decoder_name(name) for name in stored} == set(decoder_shapes(checkpoint.config))
    for name, tensor in stored.items():
        original = checkpoint.tensor(to_decoder_name(name))
        assert to_ministral3_name(to_decoder_name(name)) == name
        assert tensor.dtype == original.dtype == torch.bfloat16
        assert torch.equal(tensor, original), name
    assert to_ministral3_name("encoder.layers.3.mlp.up_proj") == "model.layers.3.mlp.up_proj"
    assert (to_ministral3_name("diffusion_head"), to_decoder_name("lm_head")) == ("lm_head", "diffusion_head")


def test_servers_find_yarn_and_the_query_scale_where_they_look(exported: dict[str, tuple[Path, Path]]) -> None:
    content = json.loads((exported["nemodiff-tiny"][1] / "config.json").read_text())
    assert content["architectures"] == ["Ministral3ForCausalLM"]
    assert (content["pad_token_id"], content["eos_token_id"], content["tie_word_embeddings"]) == (None, 11, False)
    assert content["llama_4_scaling"] == {"original_max_position_embeddings": 16384, "beta": 0.1}
    assert content["original_max_position_embeddings"] == 16384
    assert content["rope_parameters"]["apply_yarn_scaling"] is False
    assert ModelConfig.from_dict(from_ministral3_config(content)) == Checkpoint.open(exported["nemodiff-tiny"][0]).config


def test_another_yarn_magnitude_is_not_declared_neutral(tmp_path: Path) -> None:
    rope = tiny_config().rope_parameters
    config = tiny_config(rope_parameters=type(rope)(**{**rope_fields(rope), "mscale_all_dim": 0.0}))
    checkpoint_dir = random_checkpoint(tmp_path / "checkpoint", config)
    export(checkpoint_dir, tmp_path / "out")
    assert "apply_yarn_scaling" not in json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    step = random_step(config, 1, 0, 80)
    decoder = Checkpoint.open(checkpoint_dir).load_decoder(80, torch.float32, adapter=False)
    assert relative_error(step.decoder_logits(decoder), step.reference_logits(load_exported(tmp_path / "out"))) < TOLERANCE


def rope_fields(rope: Any) -> dict[str, Any]:
    return {name: getattr(rope, name) for name in rope.__slots__}


def test_settings_of_the_source_are_kept(checkpoint_copy: Path, tmp_path: Path) -> None:
    (checkpoint_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [11, 2], "temperature": 0.7}))
    export(checkpoint_copy, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [11, 2], "temperature": 0.7, "bos_token_id": 1, "suppress_tokens": [100]}


def test_another_dtype_and_numbers_it_cannot_hold(checkpoint_copy: Path, tmp_path: Path) -> None:
    report = export(checkpoint_copy, tmp_path / "half", dtype="float16")
    assert report.dtype == json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    edit_tensors(checkpoint_copy / "model.safetensors", lambda tensors: tensors["encoder.norm.weight"].fill_(1e6))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*float16") as caught:
        export(checkpoint_copy, tmp_path / "again", dtype="float16")
    assert caught.value.field == "model.norm.weight"
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == [], "nothing is left of it"


class TestOutput:
    def test_force_replaces_an_exported_checkpoint_only(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        export(tiny_checkpoint_dir, output)
        with pytest.raises(InvalidInputError, match="force"):
            export(tiny_checkpoint_dir, output)
        report = export(tiny_checkpoint_dir, output, force=True)
        assert report.files == {path.name: path.stat().st_size for path in output.iterdir()}
        (output / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(InvalidInputError, match="not a Ministral3 checkpoint"):
            export(tiny_checkpoint_dir, output, force=True)

    def test_the_source_is_never_the_output(self, checkpoint_copy: Path) -> None:
        with pytest.raises(InvalidInputError, match="another folder"):
            export(checkpoint_copy, checkpoint_copy / ".." / checkpoint_copy.name, force=True)

    def test_an_interrupted_export_leaves_the_old_one_and_nothing_else(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        export(tiny_checkpoint_dir, output)
        before = (output / "model.safetensors").read_bytes()

        def interrupt(_: int) -> None:
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(tiny_checkpoint_dir, output, force=True, dtype="float32", on_bytes=interrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (output / "model.safetensors").read_bytes() == before


class TestRefusals:
    def test_unknown_dtype(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="float32, float16, bfloat16"):
            export(tiny_checkpoint_dir, tmp_path / "out", dtype="int8")

    def test_no_tokenizer(self, checkpoint_copy: Path, tmp_path: Path) -> None:
        (checkpoint_copy / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            export(checkpoint_copy, tmp_path / "out")

    def test_unreadable_settings(self, checkpoint_copy: Path, tmp_path: Path) -> None:
        (checkpoint_copy / "generation_config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            export(checkpoint_copy, tmp_path / "out")
        assert list(tmp_path.glob("*out*")) == []

    def test_a_group_that_breaks_its_word(self, tmp_path: Path) -> None:
        group = TensorGroup({"x": ("float32", (4,))}, lambda: iter([("x", torch.zeros(3))]))
        with pytest.raises(ExportError, match="x: 12 bytes produced, 16 announced"):
            write_groups(tmp_path / "file", [group], lambda _: None)


def test_a_config_of_another_model_is_not_ours(tmp_path: Path, checkpoint_copy: Path) -> None:
    edit_json(checkpoint_copy / "config.json", model_type="ministral3")
    with pytest.raises(CheckpointError, match="model_type"):
        export(checkpoint_copy, tmp_path / "out")


MEASURED = """
import sys, threading, time
from pathlib import Path
import torch
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.hf_export import ExportSource, LayerQuantization, export_hf
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.vocabulary import LinearFormat

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
source, output, form = sys.argv[1:]
quantization = LayerQuantization(Recipe(LinearFormat(form)), lambda _: 1.0) if form != "plain" else None
checkpoint = ExportSource.from_checkpoint(Checkpoint.open(source))
before, peak, is_running = anonymous_bytes(), [0], True

def watch():
    while is_running:
        peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
export_hf(checkpoint, Path(output), quantization=quantization)
is_running = False
thread.join()
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("form", "limit_mib"), [("plain", 8), ("nvfp4", 160)])
def test_memory_holds_pieces_of_one_matrix_however_many_there_are(form: str, limit_mib: int, tmp_path: Path) -> None:
    """8 MiB is one matrix; packing takes a piece of four million numbers in six fp32 copies."""
    config = tiny_config(num_hidden_layers=24, hidden_size=1024, intermediate_size=4096, head_dim=128)
    source = tmp_path / "wide"
    write_zeros(config, source)
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(source), str(tmp_path / "out"), form], capture_output=True, text=True, check=True
    )
    assert (source / "model.safetensors").stat().st_size > 600 * 2**20
    assert int(found.stdout) < limit_mib * 2**20


def write_zeros(config: ModelConfig, directory: Path) -> None:
    """A checkpoint without data on disk."""
    directory.mkdir()
    head, spans = plan_spans({name: ("bfloat16", shape) for name, shape in decoder_shapes(config).items()})
    with (directory / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(max(span.start + span.num_bytes for span in spans.values()))
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    (directory / "tokenizer.json").write_text("{}")
