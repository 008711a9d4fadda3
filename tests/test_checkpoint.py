"""A checkpoint is opened from its headers alone, and each way it can be wrong has its own error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemodiff_trt.checkpoint import AdapterSettings, Checkpoint, resolve_checkpoint, write_checkpoint
from nemodiff_trt.checkpoint import tensor_file as tensor_file_module
from nemodiff_trt.checkpoint.packaged import PACKAGED_CHECKPOINTS
from nemodiff_trt.checkpoint.tensor_file import TensorFile
from nemodiff_trt.errors import CheckpointError, InvalidInputError
from support.checkpoints import random_checkpoint, random_decoder, tiny_config

HEAD = "diffusion_head.weight"
O_PROJ = "encoder.layers.1.self_attn.o_proj.weight"
LORA_B = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_B.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "copy"))


def edit_tensors(path: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(directory: Path) -> Path:
    """Split the weights of a checkpoint over two files and an index, which is returned."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file_name, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / file_name)
    (directory / "model.safetensors").unlink()
    weight_map = {name: file_name for file_name, part in parts.items() for name in part}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def refusal(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert "\n" not in str(caught.value)
    return caught.value


class TestReading:
    def test_tensors_names_and_adapter(self, tiny_checkpoint_dir: Path, tiny_checkpoint: Checkpoint) -> None:
        stored = load_file(tiny_checkpoint_dir / "model.safetensors")
        assert set(tiny_checkpoint.names()) == set(stored)
        assert (tiny_checkpoint.names()[0], tiny_checkpoint.names()[-1]) == ("encoder.embed_tokens.weight", HEAD)
        assert len(stored) == 9 * tiny_checkpoint.config.num_hidden_layers + 3
        for name, tensor in stored.items():
            assert torch.equal(tiny_checkpoint.tensor(name), tensor)
        adapter = tiny_checkpoint.adapter
        assert adapter is not None
        assert (adapter.rank, adapter.alpha, adapter.scale) == (4, 16.0, 4.0)
        matrices = load_file(tiny_checkpoint_dir / "linear_spec_lora" / "adapter_model.safetensors")
        assert set(adapter.names()) == set(matrices)
        assert all(torch.equal(adapter.tensor(name), tensor) for name, tensor in matrices.items())
        assert adapter.tensor(LORA_B).dtype == torch.float32

    def test_sharded_equals_single_file(self, copy: Path, tiny_checkpoint: Checkpoint) -> None:
        shard(copy)
        sharded = Checkpoint.open(copy)
        assert sharded.names() == tiny_checkpoint.names()
        assert all(torch.equal(sharded.tensor(name), tiny_checkpoint.tensor(name)) for name in sharded.names())

    def test_unknown_tensor_names_are_refused(self, tiny_checkpoint: Checkpoint) -> None:
        assert tiny_checkpoint.adapter is not None
        with pytest.raises(CheckpointError, match=r"no\.such\.tensor"):
            tiny_checkpoint.tensor("no.such.tensor")
        with pytest.raises(CheckpointError, match=r"no\.such\.tensor"):
            tiny_checkpoint.adapter.tensor("no.such.tensor")

    def test_writing_to_a_tensor_does_not_change_the_file(self, copy: Path) -> None:
        before = (copy / "model.safetensors").read_bytes()
        Checkpoint.open(copy).tensor(HEAD).zero_()
        assert (copy / "model.safetensors").read_bytes() == before

    def test_misaligned_data_is_read_right(self, copy: Path, tiny_checkpoint: Checkpoint) -> None:
        path = copy / "model.safetensors"
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        # One more blank in the header moves all data to odd addresses.
        path.write_bytes((size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :])
        assert torch.equal(Checkpoint.open(copy).tensor(HEAD), tiny_checkpoint.tensor(HEAD))


class TestDecoder:
    def test_parameters_are_views_in_the_stored_dtype(self, tiny_checkpoint: Checkpoint) -> None:
        decoder = tiny_checkpoint.load_decoder(32, torch.bfloat16, adapter=False)
        for name, parameter in decoder.named_parameters():
            assert parameter.data_ptr() == tiny_checkpoint.tensor(name).data_ptr()
            assert not parameter.requires_grad
        assert not decoder.has_adapter
        assert not decoder.training
        assert decoder.query_cos.dtype == torch.bfloat16
        assert decoder.query_cos.shape == (32, tiny_checkpoint.config.head_dim // 2)

    def test_cast_with_adapter_equals_the_written_model(self, tiny_checkpoint: Checkpoint) -> None:
        config = tiny_checkpoint.config
        loaded = tiny_checkpoint.load_decoder(32, torch.float32, adapter=True)
        original = random_decoder(config, 32)
        for name, parameter in original.named_parameters():
            stored = parameter if ".adapter." in name else parameter.bfloat16().float()
            assert torch.equal(loaded.get_parameter(name), stored), name
        assert torch.equal(loaded.query_cos, original.query_cos)
        assert loaded.decoder_layers[0].self_attn.adapter is not None
        assert loaded.decoder_layers[0].self_attn.adapter.scale == 4.0
        ids = torch.arange(6)[None] + 200
        caches = [torch.zeros(1, config.num_key_value_heads, 32, config.head_dim) for _ in range(2)]
        logits, _, _ = loaded(ids, torch.tensor([0]), caches, caches, False, True)
        assert logits.isfinite().all()

    def test_bad_arguments_are_refused(self, tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
        bare = Checkpoint.open(random_checkpoint(tmp_path / "bare", adapter_rank=0))
        assert bare.adapter is None
        with pytest.raises(CheckpointError, match="linear_spec_lora"):
            bare.load_decoder(32, torch.float32, adapter=True)
        with pytest.raises(InvalidInputError, match="max_positions"):
            tiny_checkpoint.load_decoder(0, torch.float32, adapter=False)
        with pytest.raises(InvalidInputError, match="dtype"):
            tiny_checkpoint.load_decoder(32, torch.int8, adapter=False)


class TestRefusedWeights:
    def test_missing(self, copy: Path) -> None:
        edit_tensors(copy / "model.safetensors", lambda tensors: tensors.pop(O_PROJ))
        error = refusal(copy)
        assert (error.field, error.value) == (O_PROJ, "missing")

    def test_left_over(self, copy: Path) -> None:
        edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(2)}))
        error = refusal(copy)
        assert (error.field, error.value) == ("lm_head.weight", "left over")

    def test_wrong_shape(self, copy: Path) -> None:
        edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].T.contiguous()}))
        error = refusal(copy)
        assert (error.field, error.value) == (O_PROJ, "shape [64, 48]")
        assert "[48, 64]" in error.allowed

    def test_configuration_of_another_size(self, copy: Path) -> None:
        edit_json(copy / "config.json", num_hidden_layers=1)
        assert refusal(copy).field.startswith("encoder.layers.1.")

    def test_mixed_dtypes(self, copy: Path) -> None:
        edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].float()}))
        error = refusal(copy)
        assert (error.field, error.value) == (O_PROJ, "dtype F32")
        assert "BF16" in error.allowed

    def test_unreadable_dtype(self, copy: Path) -> None:
        edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].to(torch.int8)}))
        error = refusal(copy)
        assert (error.field, error.value) == (O_PROJ, "dtype I8")

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
    def test_truncated(self, copy: Path, keep: int) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        error = refusal(copy)
        assert error.field == "model.safetensors"
        assert "truncated" in error.allowed

    def test_longer_than_its_header_says(self, copy: Path) -> None:
        with (copy / "model.safetensors").open("ab") as file:
            file.write(b"\0")
        assert "longer" in refusal(copy).allowed

    @pytest.mark.parametrize("content", [b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{]"])
    def test_no_safetensors_file(self, copy: Path, content: bytes) -> None:
        (copy / "model.safetensors").write_bytes(content)
        assert refusal(copy).field == "model.safetensors"

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [2], "data_offsets": [0]},
            {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
            [],
        ],
    )
    def test_malformed_header_entries(self, tmp_path: Path, entry: object) -> None:
        header = json.dumps({"x": entry}).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
        with pytest.raises(CheckpointError, match="^x: "):
            TensorFile.open(path)

    def test_a_name_given_twice(self, tmp_path: Path) -> None:
        entry = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        header = b"{" + entry + b"," + entry + b"}"
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(CheckpointError, match="given twice"):
            TensorFile.open(path)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_missing_file(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        assert refusal(copy).field == name

    def test_no_folder(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none").field == "checkpoint"


class TestRefusedShards:
    def change_map(self, index: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    def test_shard_missing(self, copy: Path) -> None:
        shard(copy)
        (copy / "model-00002-of-00002.safetensors").unlink()
        assert refusal(copy).field == "model-00002-of-00002.safetensors"

    def test_tensor_in_another_shard(self, copy: Path) -> None:
        index = shard(copy)
        self.change_map(index, lambda names: names.update({HEAD: "model-00002-of-00002.safetensors"}))
        error = refusal(copy)
        assert (error.field, error.value) == (HEAD, "missing")

    def test_tensor_not_in_the_index(self, copy: Path) -> None:
        index = shard(copy)
        self.change_map(index, lambda names: names.pop(HEAD))
        assert refusal(copy).field == HEAD

    @pytest.mark.parametrize("file_name", ["../model.safetensors", "/etc/passwd", 3])
    def test_path_out_of_the_folder(self, copy: Path, file_name: object) -> None:
        index = shard(copy)
        self.change_map(index, lambda names: names.update({HEAD: file_name}))
        error = refusal(copy)
        assert (error.field, error.value) == (HEAD, file_name)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
    def test_empty_index(self, copy: Path, content: str) -> None:
        shard(copy).write_text(content)
        assert "weight_map" in refusal(copy).field


class TestRefusedAdapters:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("target_modules", ["o_proj", "q_proj"]),
            ("target_modules", ["q_proj"]),
            ("target_modules", "all-linear"),
            ("target_modules", None),
            ("peft_type", "IA3"),
            ("bias", "all"),
            ("use_rslora", True),
            ("use_dora", True),
            ("fan_in_fan_out", True),
            ("lora_bias", True),
            ("modules_to_save", ["diffusion_head"]),
            ("rank_pattern", {"o_proj": 8}),
            ("alpha_pattern", {"o_proj": 8}),
            ("layers_to_transform", [0]),
            ("layer_replication", [[0, 2]]),
            ("exclude_modules", "encoder.layers.0"),
            ("init_lora_weights", "pissa"),
            ("a_switch_of_the_future", True),
            ("r", 0),
            ("r", True),
            ("r", "4"),
            ("lora_alpha", 0),
            ("lora_alpha", float("nan")),
            ("lora_alpha", float("inf")),
            ("lora_alpha", None),
        ],
    )
    def test_another_computation(self, copy: Path, name: str, value: object) -> None:
        edit_json(copy / "linear_spec_lora" / "adapter_config.json", **{name: value})
        error = refusal(copy)
        assert error.field == f"adapter {name}"

    def test_switches_without_effect_pass(self, copy: Path) -> None:
        edit_json(
            copy / "linear_spec_lora" / "adapter_config.json",
            target_modules="o_proj", use_rslora=False, rank_pattern={}, lora_dropout=0.1, base_model_name_or_path="x",
            init_lora_weights=True, qalora_group_size=16, peft_version="0.18.0", layers_to_transform=None,
        )  # fmt: skip
        assert Checkpoint.open(copy).adapter is not None

    def test_rank_of_another_file(self, copy: Path) -> None:
        edit_json(copy / "linear_spec_lora" / "adapter_config.json", r=8)
        assert ".lora_A." in refusal(copy).field

    def test_missing_left_over_and_wrong_dtype(self, copy: Path) -> None:
        path = copy / "linear_spec_lora" / "adapter_model.safetensors"
        whole = path.read_bytes()
        edit_tensors(path, lambda tensors: tensors.pop(LORA_B))
        assert (refusal(copy).field, refusal(copy).value) == (LORA_B, "missing")
        path.write_bytes(whole)
        other = LORA_B.replace("o_proj", "q_proj")
        edit_tensors(path, lambda tensors: tensors.update({other: tensors[LORA_B]}))
        assert (refusal(copy).field, refusal(copy).value) == (other, "left over")
        path.write_bytes(whole)
        edit_tensors(path, lambda tensors: tensors.update({LORA_B: tensors[LORA_B].half()}))
        assert (refusal(copy).field, refusal(copy).value) == (LORA_B, "dtype F16")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_missing_file(self, copy: Path, name: str) -> None:
        (copy / "linear_spec_lora" / name).unlink()
        assert refusal(copy).field == name


class TestIdentity:
    def test_changes_with_content_only(self, copy: Path, tiny_checkpoint: Checkpoint) -> None:
        assert Checkpoint.open(copy).identity == tiny_checkpoint.identity
        (copy / "README.md").write_text("a note")
        assert Checkpoint.open(copy).identity == tiny_checkpoint.identity

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "linear_spec_lora/adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"]
    )
    def test_one_changed_byte(self, copy: Path, tiny_checkpoint: Checkpoint, name: str) -> None:
        content = bytearray((copy / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(content)
        assert Checkpoint.open(copy).identity != tiny_checkpoint.identity

    def test_configuration_and_scale(self, copy: Path, tiny_checkpoint: Checkpoint) -> None:
        edit_json(copy / "linear_spec_lora" / "adapter_config.json", lora_alpha=8)
        other_scale = Checkpoint.open(copy).identity
        edit_json(copy / "config.json", rms_norm_eps=1e-6)
        assert len({tiny_checkpoint.identity, other_scale, Checkpoint.open(copy).identity}) == 3

    def test_large_files_are_sampled_to_the_end(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensor_file_module, "_FULL_FINGERPRINT_BYTES", 0)
        before = Checkpoint.open(copy).identity
        content = bytearray((copy / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (copy / "model.safetensors").write_bytes(content)
        assert Checkpoint.open(copy).identity != before


class TestWriting:
    def test_round_trip(self, tmp_path: Path) -> None:
        config = tiny_config(num_hidden_layers=1)
        decoder = random_decoder(config, 8, seed=3, adapter_rank=2)
        write_checkpoint(tmp_path / "new", config, decoder.state_dict(), AdapterSettings(2, 8.0))
        checkpoint = Checkpoint.open(tmp_path / "new")
        assert checkpoint.config == config
        assert checkpoint.dtype == torch.bfloat16
        assert torch.equal(checkpoint.tensor(HEAD), decoder.diffusion_head.weight.bfloat16())
        assert not list((tmp_path / "new").rglob("*.partial"))

    def test_replacing_a_checkpoint_while_it_is_open(self, copy: Path) -> None:
        checkpoint = Checkpoint.open(copy)
        decoder = checkpoint.load_decoder(8, torch.bfloat16, adapter=True)
        write_checkpoint(copy, checkpoint.config, decoder.state_dict(), AdapterSettings(4, 16.0))
        assert Checkpoint.open(copy).identity == checkpoint.identity

    def test_incomplete_states_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        config = tiny_config()
        state = random_decoder(config, 8).state_dict()
        cases: list[tuple[dict[str, torch.Tensor], AdapterSettings | None, str]] = [
            ({name: tensor for name, tensor in state.items() if name != HEAD}, None, HEAD),
            (state | {"extra": state[HEAD]}, None, "extra"),
            (state | {HEAD: state[HEAD][:-1]}, None, HEAD),
            ({name: tensor for name, tensor in state.items() if "lora_A" not in name}, AdapterSettings(4, 16), "lora_A"),
            (state, AdapterSettings(8, 16), "lora_A"),
        ]
        for content, adapter, name in cases:
            with pytest.raises(CheckpointError, match=name):
                write_checkpoint(tmp_path / "new", config, content, adapter)
        assert not (tmp_path / "new").exists()

    def test_weights_are_not_mixed_with_another_adapter(self, copy: Path, tiny_checkpoint: Checkpoint) -> None:
        state = random_decoder(tiny_checkpoint.config, 8).state_dict()
        with pytest.raises(InvalidInputError, match="linear_spec_lora"):
            write_checkpoint(copy, tiny_checkpoint.config, state)


class TestResolving:
    def test_folder_and_name(self, copy: Path) -> None:
        assert resolve_checkpoint(copy) == copy
        assert resolve_checkpoint(str(copy)) == copy
        with pytest.raises(CheckpointError, match="nemodiff-tiny"):
            resolve_checkpoint("nemodiff-huge")

    def test_packaged_checkpoints_open(self) -> None:
        for name in PACKAGED_CHECKPOINTS:
            assert Checkpoint.open(resolve_checkpoint(name)).adapter is not None


# Peak memory in MiB before and after building a decoder, after reading every weight once, and after a cast copy.
MEMORY_SCRIPT = """
import resource, sys
import torch
from nemodiff_trt.checkpoint import Checkpoint
import nemodiff_trt.plugins

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
start = peak_mib()
checkpoint = Checkpoint.open(sys.argv[1])
decoder = checkpoint.load_decoder(16, torch.bfloat16, adapter=True)
loaded = peak_mib()
for parameter in decoder.parameters():
    parameter.view(torch.int16).amax()
read = peak_mib()
cast = checkpoint.load_decoder(16, torch.float16, adapter=True)
print(loaded - start, read - start, peak_mib() - start)
"""


def test_loading_never_doubles_memory(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=2, vocab_size=64_000)
    random_checkpoint(tmp_path / "large", config)
    size_mib = (tmp_path / "large" / "model.safetensors").stat().st_size / 2**20
    assert size_mib > 130
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "large")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, read, cast = map(float, result.stdout.split())
    assert loaded < 0.2 * size_mib
    assert read < 1.2 * size_mib
    assert cast < 2.2 * size_mib
