"""Keep the matrix layout of ONNX Runtime's CPU kernels in the weight file, so that all sessions share one packed copy.

ONNX Runtime rearranges ("prepacks") every constant matrix when a session is made: without it a step of a few tokens is two to
three times slower, with it each session holds its own copy of all weights. When the external data of an initializer also names
packed bytes, the session maps those and drops its copy. It compares a hash first: on a CPU whose kernels want another layout it
keeps a private copy, so the bundle still runs there.

Before: `w` -> location, offset, length.
After:  `w` -> location, offset, length, `prepacked_0` = "MatMul+<hash>|<offset>;<length>;<checksum>", and a tensor `w.packed`
in the weight file. Option `session.save_external_prepacked_constant_initializers`:
https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnxruntime as ort

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.bundle.safetensors_layout import Span, plan_spans, read_header

PACKED_SUFFIX = ".packed"
_COPY_BYTES = 1 << 22
_SAVED_MODEL = "packed.onnx"
_SAVED_DATA = "packed.bin"


@dataclass(frozen=True, slots=True)
class PrepackReport:
    """How many matrices got a packed form, and what the weight file grew by."""

    num_packed: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _PackedMatrix:
    """Packed form of one weight as one kernel wants it; `buffers` are (offset, length) in `file`."""

    key: str
    file: Path
    buffers: tuple[tuple[int, int], ...]


def prepack_weights(bundle_dir: Path, engine_files: Sequence[str], weights_file: str) -> PrepackReport:
    """Add packed matrices to the weight file and refer to them from every engine; all external offsets are written anew.

    Args:
        bundle_dir: folder of a bundle that is being written.
        engine_files: ONNX files, relative to `bundle_dir`, whose weights lie in `weights_file`.
        weights_file: safetensors file, relative to `bundle_dir`. Its tensors keep their names and contents.

    Returns:
        What was added.
    """
    models = {name: onnx.load(bundle_dir / name, load_external_data=False) for name in dict.fromkeys(engine_files)}
    with tempfile.TemporaryDirectory(dir=bundle_dir, prefix="prepack-") as scratch:
        packed: dict[str, list[_PackedMatrix]] = {}
        for index, model in enumerate(models.values()):
            if _constant_matrices(model) - packed.keys():
                folder = Path(scratch) / str(index)
                folder.mkdir()
                for weight, forms in _pack(model, bundle_dir, folder).items():
                    packed.setdefault(weight, forms)
        spans, num_bytes = _extend_weights(bundle_dir / weights_file, packed)
    for name, model in models.items():
        for initializer in model.graph.initializer:
            if initializer.data_location == onnx.TensorProto.EXTERNAL:
                _refer(initializer, weights_file, spans, packed.get(initializer.name, []))
        (bundle_dir / name).write_bytes(model.SerializeToString())
    return PrepackReport(len(packed), num_bytes)


def _constant_matrices(model: onnx.ModelProto) -> set[str]:
    """Names of external weights that a MatMul multiplies with: the ones kernels pack."""
    external = {tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    return {node.input[1] for node in model.graph.node if node.op_type == "MatMul"} & external


def _pack(model: onnx.ModelProto, bundle_dir: Path, folder: Path) -> dict[str, list[_PackedMatrix]]:
    """Let ONNX Runtime pack the weights of `model` and save them below `folder`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Beyond this level the saved graph is tied to the machine, which draws a warning; matrices are packed alike.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / _SAVED_MODEL)
    for key, value in (
        ("session.model_external_initializers_file_folder_path", str(bundle_dir)),
        ("session.optimized_model_external_initializers_file_name", _SAVED_DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = _constant_matrices(model)
    saved = onnx.load(folder / _SAVED_MODEL, load_external_data=False)
    found: dict[str, list[_PackedMatrix]] = {}
    for tensor in saved.graph.initializer:
        entries = [entry.value for entry in tensor.external_data if entry.key.startswith("prepacked_")]
        if tensor.name in wanted and entries:
            found[tensor.name] = [_parse(value, folder / _SAVED_DATA) for value in entries]
    return found


def _parse(value: str, file: Path) -> _PackedMatrix:
    """Read "key|offset;length;checksum;offset;length;checksum..."."""
    key, _, places = value.partition("|")
    numbers = [int(number) for number in places.split(";")]
    return _PackedMatrix(key, file, tuple(zip(numbers[::3], numbers[1::3], strict=True)))


def _packed_name(weight: str, form: int, buffer: int) -> str:
    return weight + PACKED_SUFFIX + (f".{form}.{buffer}" if form or buffer else "")


def _extend_weights(path: Path, packed: dict[str, list[_PackedMatrix]]) -> tuple[dict[str, Span], int]:
    """Write the weight file again with the packed matrices behind their names. Returns all places, and the bytes added."""
    old = read_header(path)
    sources = {name: (path, span.start) for name, span in old.items()}
    tensors = {name: (span.dtype, span.shape) for name, span in old.items()}
    for weight, forms in packed.items():
        item_bytes = np.dtype(old[weight].dtype).itemsize
        for form, matrix in enumerate(forms):
            for buffer, (offset, length) in enumerate(matrix.buffers):
                name = _packed_name(weight, form, buffer)
                tensors[name] = (old[weight].dtype, (length // item_bytes,))
                sources[name] = (matrix.file, offset)
    head, spans = plan_spans(tensors)
    with replaced_file(path) as partial, partial.open("wb") as out:
        out.write(head)
        for name, span in sorted(spans.items(), key=lambda item: item[1].start):
            _append(out, *sources[name], span.num_bytes)
    added = sum(span.num_bytes for name, span in spans.items() if name not in old)
    return spans, added


def _append(out: BinaryIO, source: Path, start: int, num_bytes: int) -> None:
    """Copy a piece of a file in chunks: a whole embedding would not fit a small machine twice."""
    with source.open("rb") as data:
        data.seek(start)
        while num_bytes:
            chunk = data.read(min(num_bytes, _COPY_BYTES))
            if not chunk:
                raise OSError(f"{source.name} ended {num_bytes} bytes early")
            out.write(chunk)
            num_bytes -= len(chunk)


def _refer(initializer: onnx.TensorProto, location: str, spans: dict[str, Span], forms: list[_PackedMatrix]) -> None:
    """Point the external data of one initializer to its place and to its packed forms."""
    name = initializer.name
    values = {"location": location, "offset": str(spans[name].start), "length": str(spans[name].num_bytes)}
    for form, matrix in enumerate(forms):
        places = [spans[_packed_name(name, form, buffer)] for buffer in range(len(matrix.buffers))]
        # ONNX Runtime writes 0 where the format has room for a checksum.
        values[f"prepacked_{form}"] = f"{matrix.key}|" + ";".join(f"{place.start};{place.num_bytes};0" for place in places)
    del initializer.external_data[:]
    for key, value in values.items():
        initializer.external_data.add(key=key, value=value)
