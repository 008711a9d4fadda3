"""Each way a checkpoint can be wrong has one error that names the file or tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.tensor_file import TensorFile
from nemodiff_trt.errors import CheckpointError
from support.damage import edit_json, edit_tensors, shard

HEAD = "diffusion_head.weight"
O_PROJ = "encoder.layers.1.self_attn.o_proj.weight"
LORA_B = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_B.weight"


def refusal(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert "\n" not in str(caught.value)
    return caught.value


class TestRefusedWeights:
    def test_missing(self, checkpoint_copy: Path) -> None:
        edit_tensors(checkpoint_copy / "model.safetensors", lambda tensors: tensors.pop(O_PROJ))
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (O_PROJ, "missing")

    def test_left_over(self, checkpoint_copy: Path) -> None:
        edit_tensors(checkpoint_copy / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(2)}))
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == ("lm_head.weight", "left over")

    def test_wrong_shape(self, checkpoint_copy: Path) -> None:
        edit_tensors(
            checkpoint_copy / "model.safetensors", lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].T.contiguous()})
        )
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (O_PROJ, "shape [64, 48]")
        assert "[48, 64]" in error.allowed

    def test_configuration_of_another_size(self, checkpoint_copy: Path) -> None:
        edit_json(checkpoint_copy / "config.json", num_hidden_layers=1)
        assert refusal(checkpoint_copy).field.startswith("encoder.layers.1.")

    def test_mixed_dtypes(self, checkpoint_copy: Path) -> None:
        edit_tensors(checkpoint_copy / "model.safetensors", lambda held: held.update({O_PROJ: held[O_PROJ].float()}))
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (O_PROJ, "dtype F32")
        assert "BF16" in error.allowed

    def test_unreadable_dtype(self, checkpoint_copy: Path) -> None:
        edit_tensors(
            checkpoint_copy / "model.safetensors", lambda tensors: tensors.update({O_PROJ: tensors[O_PROJ].to(torch.int8)})
        )
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (O_PROJ, "dtype I8")

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
    def test_truncated(self, checkpoint_copy: Path, keep: int) -> None:
        path = checkpoint_copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        error = refusal(checkpoint_copy)
        assert error.field == "model.safetensors"
        assert "truncated" in error.allowed

    def test_longer_than_its_header_says(self, checkpoint_copy: Path) -> None:
        with (checkpoint_copy / "model.safetensors").open("ab") as file:
            file.write(b"\0")
        assert "longer" in refusal(checkpoint_copy).allowed

    @pytest.mark.parametrize("content", [b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{]"])
    def test_no_safetensors_file(self, checkpoint_copy: Path, content: bytes) -> None:
        (checkpoint_copy / "model.safetensors").write_bytes(content)
        assert refusal(checkpoint_copy).field == "model.safetensors"

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
        with pytest.raises(CheckpointError, match=r"^x: "):
            TensorFile.open(path)

    def test_a_name_given_twice(self, tmp_path: Path) -> None:
        entry = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        header = b"{" + entry + b"," + entry + b"}"
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(CheckpointError, match="given twice"):
            TensorFile.open(path)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_missing_file(self, checkpoint_copy: Path, name: str) -> None:
        (checkpoint_copy / name).unlink()
        assert refusal(checkpoint_copy).field == name

    def test_no_folder(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none").field == "checkpoint"


class TestRefusedShards:
    def change_map(self, index: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    def test_shard_missing(self, checkpoint_copy: Path) -> None:
        shard(checkpoint_copy)
        (checkpoint_copy / "model-00002-of-00002.safetensors").unlink()
        assert refusal(checkpoint_copy).field == "model-00002-of-00002.safetensors"

    def test_tensor_in_another_shard(self, checkpoint_copy: Path) -> None:
        index = shard(checkpoint_copy)
        self.change_map(index, lambda names: names.update({HEAD: "model-00002-of-00002.safetensors"}))
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (HEAD, "missing")

    def test_tensor_not_in_the_index(self, checkpoint_copy: Path) -> None:
        index = shard(checkpoint_copy)
        self.change_map(index, lambda names: names.pop(HEAD))
        assert refusal(checkpoint_copy).field == HEAD

    @pytest.mark.parametrize("file_name", ["../model.safetensors", "/etc/passwd", 3])
    def test_path_out_of_the_folder(self, checkpoint_copy: Path, file_name: object) -> None:
        index = shard(checkpoint_copy)
        self.change_map(index, lambda names: names.update({HEAD: file_name}))
        error = refusal(checkpoint_copy)
        assert (error.field, error.value) == (HEAD, file_name)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
    def test_empty_index(self, checkpoint_copy: Path, content: str) -> None:
        shard(checkpoint_copy).write_text(content)
        assert "weight_map" in refusal(checkpoint_copy).field


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
    def test_another_computation(self, checkpoint_copy: Path, name: str, value: object) -> None:
        edit_json(checkpoint_copy / "linear_spec_lora" / "adapter_config.json", **{name: value})
        error = refusal(checkpoint_copy)
        assert error.field == f"adapter {name}"

    def test_switches_without_effect_pass(self, checkpoint_copy: Path) -> None:
        edit_json(
            checkpoint_copy / "linear_spec_lora" / "adapter_config.json",
            target_modules="o_proj", use_rslora=False, rank_pattern={}, lora_dropout=0.1, base_model_name_or_path="x",
            init_lora_weights=True, qalora_group_size=16, peft_version="0.18.0", layers_to_transform=None,
        )  # fmt: skip
        assert Checkpoint.open(checkpoint_copy).adapter is not None

    def test_rank_of_another_file(self, checkpoint_copy: Path) -> None:
        edit_json(checkpoint_copy / "linear_spec_lora" / "adapter_config.json", r=8)
        assert ".lora_A." in refusal(checkpoint_copy).field

    def test_missing_left_over_and_wrong_dtype(self, checkpoint_copy: Path) -> None:
        path = checkpoint_copy / "linear_spec_lora" / "adapter_model.safetensors"
        whole = path.read_bytes()
        edit_tensors(path, lambda tensors: tensors.pop(LORA_B))
        assert (refusal(checkpoint_copy).field, refusal(checkpoint_copy).value) == (LORA_B, "missing")
        path.write_bytes(whole)
        other = LORA_B.replace("o_proj", "q_proj")
        edit_tensors(path, lambda tensors: tensors.update({other: tensors[LORA_B].clone()}))
        assert (refusal(checkpoint_copy).field, refusal(checkpoint_copy).value) == (other, "left over")
        path.write_bytes(whole)
        edit_tensors(path, lambda tensors: tensors.update({LORA_B: tensors[LORA_B].half()}))
        assert (refusal(checkpoint_copy).field, refusal(checkpoint_copy).value) == (LORA_B, "dtype F16")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_missing_file(self, checkpoint_copy: Path, name: str) -> None:
        (checkpoint_copy / "linear_spec_lora" / name).unlink()
        assert refusal(checkpoint_copy).field == name
