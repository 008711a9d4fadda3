"""A checkpoint is opened from its headers alone, and each way it can be wrong has its own error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemodiff_trt.checkpoint import AdapterSettings, Checkpoint, resolve_checkpoint, write_checkpoint
from nemodiff_trt.checkpoint import tensor_file as tensor_file_module
from nemodiff_trt.checkpoint.packaged import PACKAGED_CHECKPOINTS
from nemodiff_trt.errors import CheckpointError, InvalidInputError
from support.checkpoints import random_checkpoint, random_decoder, tiny_config
from support.damage import edit_json, shard

HEAD = "diffusion_head.weight"
LORA_B = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_B.weight"


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

    def test_sharded_equals_single_file(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint) -> None:
        shard(checkpoint_copy)
        sharded = Checkpoint.open(checkpoint_copy)
        assert sharded.names() == tiny_checkpoint.names()
        assert all(torch.equal(sharded.tensor(name), tiny_checkpoint.tensor(name)) for name in sharded.names())

    def test_unknown_tensor_names_are_refused(self, tiny_checkpoint: Checkpoint) -> None:
        assert tiny_checkpoint.adapter is not None
        with pytest.raises(CheckpointError, match=r"no\.such\.tensor"):
            tiny_checkpoint.tensor("no.such.tensor")
        with pytest.raises(CheckpointError, match=r"no\.such\.tensor"):
            tiny_checkpoint.adapter.tensor("no.such.tensor")

    def test_writing_to_a_tensor_does_not_change_the_file(self, checkpoint_copy: Path) -> None:
        before = (checkpoint_copy / "model.safetensors").read_bytes()
        Checkpoint.open(checkpoint_copy).tensor(HEAD).zero_()
        assert (checkpoint_copy / "model.safetensors").read_bytes() == before

    def test_misaligned_data_is_read_right(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint) -> None:
        path = checkpoint_copy / "model.safetensors"
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        # One more blank in the header moves all data to odd addresses.
        path.write_bytes((size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :])
        assert torch.equal(Checkpoint.open(checkpoint_copy).tensor(HEAD), tiny_checkpoint.tensor(HEAD))


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


class TestIdentity:
    def test_changes_with_content_only(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint) -> None:
        assert Checkpoint.open(checkpoint_copy).identity == tiny_checkpoint.identity
        (checkpoint_copy / "README.md").write_text("a note")
        assert Checkpoint.open(checkpoint_copy).identity == tiny_checkpoint.identity

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "linear_spec_lora/adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"]
    )
    def test_one_changed_byte(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint, name: str) -> None:
        content = bytearray((checkpoint_copy / name).read_bytes())
        content[-2] ^= 1
        (checkpoint_copy / name).write_bytes(content)
        assert Checkpoint.open(checkpoint_copy).identity != tiny_checkpoint.identity

    def test_configuration_and_scale(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint) -> None:
        edit_json(checkpoint_copy / "linear_spec_lora" / "adapter_config.json", lora_alpha=8)
        other_scale = Checkpoint.open(checkpoint_copy).identity
        edit_json(checkpoint_copy / "config.json", rms_norm_eps=1e-6)
        assert len({tiny_checkpoint.identity, other_scale, Checkpoint.open(checkpoint_copy).identity}) == 3

    def test_large_files_are_sampled_to_the_end(self, checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensor_file_module, "_FULL_FINGERPRINT_BYTES", 0)
        before = Checkpoint.open(checkpoint_copy).identity
        content = bytearray((checkpoint_copy / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (checkpoint_copy / "model.safetensors").write_bytes(content)
        assert Checkpoint.open(checkpoint_copy).identity != before


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

    def test_replacing_a_checkpoint_while_it_is_open(self, checkpoint_copy: Path) -> None:
        checkpoint = Checkpoint.open(checkpoint_copy)
        decoder = checkpoint.load_decoder(8, torch.bfloat16, adapter=True)
        write_checkpoint(checkpoint_copy, checkpoint.config, decoder.state_dict(), AdapterSettings(4, 16.0))
        assert Checkpoint.open(checkpoint_copy).identity == checkpoint.identity

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

    def test_weights_are_not_mixed_with_another_adapter(self, checkpoint_copy: Path, tiny_checkpoint: Checkpoint) -> None:
        state = random_decoder(tiny_checkpoint.config, 8).state_dict()
        with pytest.raises(InvalidInputError, match="linear_spec_lora"):
            write_checkpoint(checkpoint_copy, tiny_checkpoint.config, state)


class TestResolving:
    def test_folder_and_name(self, checkpoint_copy: Path) -> None:
        assert resolve_checkpoint(checkpoint_copy) == checkpoint_copy
        assert resolve_checkpoint(str(checkpoint_copy)) == checkpoint_copy
        with pytest.raises(CheckpointError, match="nemodiff-tiny"):
            resolve_checkpoint("nemodiff-huge")

    def test_packaged_checkpoints_open(self) -> None:
        for name in PACKAGED_CHECKPOINTS:
            assert Checkpoint.open(resolve_checkpoint(name)).adapter is not None


# Peak memory in MiB before and after building a decoder, after reading every weight once, and after a cast copy.
MEMORY_SCRIPT = """
import sys
import torch
from nemodiff_trt.checkpoint import Checkpoint
import nemodiff_trt.plugins

def peak_mib():
    # Not getrusage: its peak is at least that of the process this one was forked from.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

torch.set_num_threads(1)
# What torch imports when it is first needed is not counted.
Checkpoint.open(sys.argv[1]).load_decoder(16, torch.float16, adapter=True)
start = peak_mib()
checkpoint = Checkpoint.open(sys.argv[2])
decoder = checkpoint.load_decoder(16, torch.bfloat16, adapter=True)
loaded = peak_mib()
for parameter in decoder.parameters():
    parameter.view(torch.int16).amax()
read = peak_mib()
cast = checkpoint.load_decoder(16, torch.float16, adapter=True)
print(loaded - start, read - start, peak_mib() - start)
"""


def test_loading_never_doubles_memory(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=2, vocab_size=64_000)
    random_checkpoint(tmp_path / "large", config)
    size_mib = (tmp_path / "large" / "model.safetensors").stat().st_size / 2**20
    assert size_mib > 130
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tiny_checkpoint_dir), str(tmp_path / "large")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, read, cast = map(float, result.stdout.split())
    assert loaded < 0.2 * size_mib
    assert read < 1.2 * size_mib
    assert cast < 2.2 * size_mib
