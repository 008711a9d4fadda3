"""How each operator is realised on each target: the content of `python -m nemodiff_trt.plugins list`."""

from __future__ import annotations

from nemodiff_trt.plugins import OPS, Form, Op

TORCH, COMPILED, TRITON = "torch", "compiled torch", "Triton kernel"
STANDARD, LAYERS, NONE = "standard operators", "native layers", "-"
# Column -> what it is about, in the order of the table.
COLUMNS = {
    "eager": "the eager decoder on any device, the oracle",
    "eager-kernels": "the same on CUDA after nemodiff_trt.plugins.kernels.register_kernels()",
    "onnxruntime": "opset-24 ONNX",
    "tensorrt-rtx": "TensorRT network",
    "tensorrt": "TensorRT network",
    "inductor": "the reference, inlined by the pass decompose_plugins",
}


def realisations(op: Op) -> dict[str, str]:
    """Column -> how `op` is realised there."""
    network = LAYERS if Form.NETWORK in op.forms else NONE
    return {
        "eager": TORCH,
        "eager-kernels": TRITON if Form.TRITON in op.forms else TORCH,
        "onnxruntime": STANDARD if Form.ONNX in op.forms else NONE,
        "tensorrt-rtx": network,
        "tensorrt": network,
        "inductor": COMPILED,
    }


def summaries(op: Op) -> dict[str, str]:
    """Form -> the first sentence its module says about it. Loads the forms."""
    import importlib

    found = {}
    for form in sorted(op.forms):
        module = importlib.import_module(f"nemodiff_trt.plugins.{op.name}.{form}")
        found[str(form)] = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return found


def table() -> list[dict[str, object]]:
    """One entry an operator, as JSON values."""
    return [{"operator": op.name, "targets": realisations(op), "forms": sorted(map(str, op.forms))} for op in OPS]
