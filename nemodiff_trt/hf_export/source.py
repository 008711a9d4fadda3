"""Where exported weights come from: a checkpoint, or a bundle that holds them unquantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nemodiff_trt.bundle import Bundle, source_tensors
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.layout import decoder_shapes
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.vocabulary import Precision

_PLAIN = (Precision.FP32, Precision.FP16, Precision.BF16)


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A model to export.

    Args:
        path: folder it is read from.
        config: its facts.
        dtype: of the weights, as torch spells it.
        tensor: decoder tensor by name, [out,in] for matrices, in `dtype`; a view of mapped data where possible.
        tokenizer_dir: folder with the tokenizer's files.
    """

    path: Path
    config: ModelConfig
    dtype: str
    tensor: Callable[[str], Tensor]
    tokenizer_dir: Path

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> ExportSource:
        """All of an opened checkpoint but its draft adapter."""
        dtype = str(checkpoint.dtype).removeprefix("torch.")
        return cls(checkpoint.path, checkpoint.config, dtype, checkpoint.tensor, checkpoint.path)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ExportSource:
        """The weights inside an opened bundle, in the dtype they were stored in.

        Raises:
            InvalidInputError: the bundle has no weights, only inside its engines, or only quantised ones.
        """
        manifest = bundle.manifest
        if not manifest.has_weights:
            raise InvalidInputError("bundle", str(bundle.path), "a bundle with weights; bind a checkpoint to it first")
        if manifest.weight_storage is not WeightStorage.SHARED or manifest.precision not in _PLAIN:
            found = f"{manifest.precision}, weights {manifest.weight_storage}"
            raise InvalidInputError("bundle", found, "shared weights in fp32, fp16 or bf16; give the checkpoint instead")
        tensors = source_tensors(bundle)
        dtypes = {str(tensors[name].dtype).removeprefix("torch.") for name in decoder_shapes(manifest.model)}
        if len(dtypes) != 1:
            raise InvalidInputError("bundle", f"weights in {', '.join(sorted(dtypes))}", "one dtype")
        return cls(bundle.path, manifest.model, dtypes.pop(), tensors.__getitem__, bundle.tokenizer_dir)
