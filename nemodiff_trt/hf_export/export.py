"""`export_hf`: write the causal mode of a model as a Ministral3 checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from nemodiff_trt.hf_export.quantized import LayerQuantization, quantized_groups
from nemodiff_trt.hf_export.source import ExportSource
from nemodiff_trt.hf_export.tensor_groups import TensorGroup, plain_group, write_groups
from nemodiff_trt.quantization.modelopt_config import QUANT_CONFIG_FILE, quantization_files

DTYPES = ("float32", "float16", "bfloat16")
_EXPORTED = FolderKind("Ministral3 checkpoint", is_exported, ExportError)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Args:
        files: sizes in bytes by name.
        num_tensors: stored in the weight file.
        dtype: of the weights that are not quantised.
        num_quantized: number of quantised layers by format.
    """

    files: dict[str, int]
    num_tensors: int
    dtype: str
    num_quantized: dict[str, int]


def export_hf(
    source: ExportSource,
    output: Path,
    *,
    quantization: LayerQuantization | None = None,
    dtype: str | None = None,
    force: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ExportReport:
    """Write `source` to the folder `output`, in one step: it appears when it is whole.

    Args:
        source: the model. Its draft adapter has no place in a causal model and stays behind.
        output: a new or empty folder.
        quantization: formats and scales of layers; every weight keeps its precision without it.
        dtype: of the weights that are not quantised, one of `DTYPES`; as in the source by default.
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
    if quantization is not None:
        quantization.check(source.config)
    groups = _groups(source, dtype, quantization)
    with AtomicFolder(output, force, _EXPORTED) as folder:
        try:
            write_groups(folder.path / WEIGHTS_FILE, groups, on_bytes)
            copy_tokenizer_files(source.tokenizer_dir, folder.path)
            write_json(folder.path / GENERATION_CONFIG_FILE, settings)
            config = to_ministral3_config(source.config, dtype)
            if quantization is not None:
                separate, config["quantization_config"] = quantization_files(quantization.formats(source.config))
                write_json(folder.path / QUANT_CONFIG_FILE, separate)
            write_json(folder.path / CONFIG_FILE, config)
            sizes = {path.name: path.stat().st_size for path in sorted(folder.path.iterdir())}
        except OSError as error:
            raise ExportError(f"cannot write {output}: {error.strerror or error}") from error
        folder.rename()
    used = [form for form in quantization.formats(source.config).values() if form] if quantization else []
    counts = {str(form): used.count(form) for form in sorted(set(used))}
    return ExportReport(sizes, sum(len(group.tensors) for group in groups), dtype, counts)


def _groups(source: ExportSource, dtype: str, quantization: LayerQuantization | None) -> list[TensorGroup]:
    quantized = quantized_groups(source, quantization) if quantization else []
    done = {name for group in quantized for name in group.tensors}
    plain = [
        plain_group(stored, shape, dtype, partial(source.tensor, name))
        for name, shape in decoder_shapes(source.config).items()
        if (stored := to_ministral3_name(name)) not in done
    ]
    return plain + quantized
