"""`Checkpoint`: a folder of the published layout, opened by reading its headers and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nemodiff_trt.checkpoint import layout
from nemodiff_trt.checkpoint.adapter import DraftAdapter
from nemodiff_trt.checkpoint.checks import check_names, check_one_dtype, check_shapes
from nemodiff_trt.checkpoint.fingerprint import checkpoint_identity
from nemodiff_trt.checkpoint.tensor_file import FLOAT_DTYPES, TensorFile
from nemodiff_trt.config import ModelConfig, read_json_object
from nemodiff_trt.errors import CheckpointError, InvalidInputError
from nemodiff_trt.model import TriModeDecoder, assemble_decoder


class Checkpoint:
    """An opened checkpoint: every tensor named, shape- and dtype-checked, none of them read."""

    __slots__ = ("_files", "_identity", "adapter", "config", "dtype", "path")

    def __init__(self, path: Path, config: ModelConfig, files: dict[str, TensorFile], adapter: DraftAdapter | None) -> None:
        """Use `open`. `files` says which file holds each tensor."""
        self.path = path
        self.config = config
        self.adapter = adapter
        self._files = files
        self._identity: str | None = None
        first = next(iter(files))
        self.dtype: torch.dtype = FLOAT_DTYPES[files[first].entries[first].dtype]

    @classmethod
    def open(cls, directory: Path | str) -> Checkpoint:
        """Read the configuration and the headers of all weight files.

        Raises:
            CheckpointError: names the field, file or tensor that is missing, left over, truncated, or of another shape or
                dtype than the configuration asks for.
        """
        path = Path(directory)
        if not path.is_dir():
            raise CheckpointError("checkpoint", str(path), "an existing folder")
        config = ModelConfig.from_file(path)
        files = open_weight_files(path)
        wanted = layout.decoder_shapes(config)
        check_names(files, wanted, layout.WEIGHTS_FILE)
        check_shapes({name: file.entries[name].shape for name, file in files.items()}, wanted)
        check_one_dtype({name: files[name].entries[name].dtype for name in wanted})
        adapter_dir = path / layout.ADAPTER_DIR
        adapter = DraftAdapter.open(adapter_dir, config) if adapter_dir.exists() else None
        return cls(path, config, {name: files[name] for name in wanted}, adapter)

    def names(self) -> tuple[str, ...]:
        """Tensor names, embedding first, head last; the adapter's are in `adapter.names()`."""
        return tuple(self._files)

    def tensor(self, name: str) -> Tensor:
        """Memory-mapped view in the stored dtype.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._files:
            raise CheckpointError(name, "missing", f"one of the {len(self._files)} tensors of the checkpoint")
        return self._files[name].tensor(name)

    @property
    def identity(self) -> str:
        """SHA-256 that changes with the configuration, the weights, the adapter and the tokenizer: `checkpoint_identity`."""
        # Once: it reads the weight files.
        if self._identity is None:
            self._identity = checkpoint_identity(self.config.to_dict(), self._files.values(), self.adapter, self.path)
        return self._identity

    def load_decoder(self, max_positions: int, dtype: torch.dtype, adapter: bool) -> TriModeDecoder:
        """Eager decoder on the CPU, frozen and in evaluation mode.

        Args:
            max_positions: rows of the rotary tables, at least the cache capacity K.
            dtype: of weights and activations. Parameters are views of the mapped files where it equals the stored one.
            adapter: attach the draft adapter, cast to `dtype`.

        Raises:
            CheckpointError: `adapter` was asked of a checkpoint without one.
            InvalidInputError: `max_positions` is not positive or `dtype` is no float.
        """
        if max_positions < 1:
            raise InvalidInputError("max_positions", max_positions, "a positive integer")
        if not dtype.is_floating_point:
            raise InvalidInputError("dtype", str(dtype), "a float dtype")
        draft = self._required_adapter() if adapter else None
        state = {name: self.tensor(name).to(dtype) for name in self._files}
        if adapter:
            state |= self._adapter_state(dtype)
        return assemble_decoder(self.config, state, max_positions, (draft.rank, draft.scale) if draft else None)

    def _required_adapter(self) -> DraftAdapter:
        if self.adapter is None:
            raise CheckpointError(layout.ADAPTER_DIR, "missing", f"a folder with the draft adapter in {self.path}")
        return self.adapter

    def _adapter_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        draft = self._required_adapter()
        return {
            layout.adapter_decoder_name(layer, matrix): draft.tensor(layout.adapter_tensor_name(layer, matrix)).to(dtype)
            for layer in range(self.config.num_hidden_layers)
            for matrix in ("A", "B")
        }


def open_weight_files(directory: Path, dtypes: Mapping[str, torch.dtype] = FLOAT_DTYPES) -> dict[str, TensorFile]:
    """The file of each tensor. A single file goes before an index, as in other loaders of this layout.

    Raises:
        CheckpointError: a file or the index is missing, damaged, or holds a tensor of a dtype not in `dtypes`.
    """
    index_path = directory / layout.INDEX_FILE
    if (directory / layout.WEIGHTS_FILE).exists() or not index_path.exists():
        file = TensorFile.open(directory / layout.WEIGHTS_FILE, dtypes)
        return dict.fromkeys(file.entries, file)
    weight_map = read_json_object(index_path, layout.INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{layout.INDEX_FILE} weight_map", weight_map, "a dictionary of tensor name to file name")
    shards: dict[str, TensorFile] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(name, file_name, f"the name of a file beside {layout.INDEX_FILE}")
        if file_name not in shards:
            shards[file_name] = TensorFile.open(directory / file_name, dtypes)
        if name not in shards[file_name].entries:
            raise CheckpointError(name, "missing", f"a tensor in {file_name}, as {layout.INDEX_FILE} says")
    for file_name, shard in shards.items():
        for name in shard.entries:
            if weight_map.get(name) != file_name:
                raise CheckpointError(name, f"left over in {file_name}", f"only the tensors {layout.INDEX_FILE} places there")
    return {name: shards[file_name] for name, file_name in weight_map.items()}
