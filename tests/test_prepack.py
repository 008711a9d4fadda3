"""Packed matrices in the weight file: one form for all engines, in the right place, with the values of the originals."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.bundle import Bundle, mapped_tensors
from nemodiff_trt.bundle.safetensors_layout import read_header


def external_data(bundle: Bundle) -> dict[str, dict[str, dict[str, str]]]:
    """Engine file -> weight -> entries of its external data."""
    files = sorted({engine.file for engine in bundle.manifest.roles.values()})
    models = {file: onnx.load(bundle.path / file, load_external_data=False) for file in files}
    return {
        file: {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        for file, model in models.items()
    }


def test_offsets_are_those_of_the_weight_file(tiny_bundle: Bundle) -> None:
    spans = read_header(tiny_bundle.weights_path)
    for weights in external_data(tiny_bundle).values():
        for name, entries in weights.items():
            assert entries["location"] == "weights/shared.safetensors"
            assert (int(entries["offset"]), int(entries["length"])) == (spans[name].start, spans[name].num_bytes)


def test_every_matrix_has_one_packed_form_shared_by_all_engines(tiny_bundle: Bundle) -> None:
    spans = read_header(tiny_bundle.weights_path)
    transposed = {name for name, layout in tiny_bundle.manifest.weights.items() if layout.transposed}
    packed: dict[str, set[str]] = {}
    for weights in external_data(tiny_bundle).values():
        for name, entries in weights.items():
            if "prepacked_0" in entries:
                packed.setdefault(name, set()).add(entries["prepacked_0"])
    assert packed.keys() == transposed
    for name, (place,) in packed.items():
        key, _, numbers = place.partition("|")
        start, num_bytes, _ = map(int, numbers.split(";"))
        assert "MatMul+" in key
        assert (start, num_bytes) == (spans[f"{name}.packed"].start, spans[f"{name}.packed"].num_bytes)


def test_packing_moves_values_and_changes_none(tiny_bundle: Bundle) -> None:
    tensors = mapped_tensors(tiny_bundle.weights_path)
    names = [name for name in tensors if f"{name}.packed" in tensors]
    assert names
    for name in names:
        # Panels are filled up with zeros.
        packed, raw = (np.sort(tensor[tensor != 0]) for tensor in (tensors[f"{name}.packed"], tensors[name]))
        np.testing.assert_array_equal(packed, raw)


def test_report(tiny_bundle: Bundle) -> None:
    tensors = mapped_tensors(tiny_bundle.weights_path)
    packed = [tensor.nbytes for name, tensor in tensors.items() if name.endswith(".packed")]
    assert tiny_bundle.report()["packed_matrices"] == {"num_packed": len(packed), "num_bytes": sum(packed)}
