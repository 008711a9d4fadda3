"""`export_hf`: write the causal mode of a model as a Ministral3 checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemodiff_trt.atomic_folder import AtomicFolder, FolderKind, check_output
from nemodiff_trt.checkpoint.layout import WEIGHTS_FILE, decoder_shapes
from nemodiff_trt.checkpoint.ministral3 import to_ministral3_config, to_ministral3_name
from nemodiff_trt.config import CONFIG_FILE
from nemodiff_trt.errors import ExportError, InvalidInputError
from nemodiff_trt.hf_export.files import (
    GENERATION_CONFIG_FILE,
    check_tokenizer,
    copy_tokenizer_files,
    generation_config,
    is_exported,
    write_json,
)
from nemodiff_trt.hf_export.source import ExportSource
from nemodiff_trt.hf_export.tensor_groups import TensorGroup, plain_group, write_groups

DTYPES = ("float32", "float16", "bfloat16")
_EXPORTED = FolderKind("Ministral3 checkpoint", is_exported, ExportError)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: sizes in bytes by file name, number of stored tensors, dtype of those that are not quantised."""

    files: dict[str, int]
    num_tensors: int
    dtype: str


def export_hf(
    source: ExportSource,
    output: Path,
    *,
    dtype: str | None = None,
    force: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ExportReport:
    """Write `source` to the folder `output`, in one step: it appears when it is whole.

    Args:
        source: the model. Its draft adapter has no place in a causal model and stays behind.
        output: a new or empty folder.
        dtype: of the weights, one of `DTYPES`; as in the source by default.
        force: replace a Ministral3 checkpoint that is there.
        on_bytes: told how much of the weight file is written.

    Raises:
        InvalidInputError: the output must not be replaced, `dtype` is unknown or cannot hold a weight, or the source lacks a
            file; nothing was written.
        ExportError: the disk refused.
    """
    dtype = source.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise InvalidInputError("dtype", dtype, ", ".join(DTYPES))
    if output.resolve() == source.path.resolve():
        raise InvalidInputError("output", str(output), "another folder than the one that is exported")
    check_output(output, force, _EXPORTED)
    check_tokenizer(source.tokenizer_dir)
    settings = generation_config(source.config, source.tokenizer_dir)
    groups = _plain_groups(source, dtype)
    with AtomicFolder(output, force, _EXPORTED) as folder:
        try:
            write_groups(folder.path / WEIGHTS_FILE, groups, on_bytes)
            copy_tokenizer_files(source.tokenizer_dir, folder.path)
            write_json(folder.path / GENERATION_CONFIG_FILE, settings)
            write_json(folder.path / CONFIG_FILE, to_ministral3_config(source.config, dtype))
            sizes = {path.name: path.stat().st_size for path in sorted(folder.path.iterdir())}
        except OSError as error:
            raise ExportError(f"cannot write {output}: {error.strerror or error}") from error
        folder.rename()
    return ExportReport(sizes, sum(len(group.tensors) for group in groups), dtype)


def _plain_groups(source: ExportSource, dtype: str) -> list[TensorGroup]:
    return [
        plain_group(to_ministral3_name(name), shape, dtype, lambda name=name: source.tensor(name))  # type: ignore[misc]
        for name, shape in decoder_shapes(source.config).items()
    ]
