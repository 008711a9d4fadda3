"""How each operator is realised on each target: the content of `python -m nemodiff_trt.plugins list`, and of a manifest."""

from __future__ import annotations

from nemodiff_trt.plugins import OPS, Form, Op
from nemodiff_trt.vocabulary import Target

TORCH, COMPILED, TRITON = "torch", "compiled torch", "Triton kernel"
STANDARD, LAYERS, NONE = "standard operators", "native layers", "-"
PLUGIN = "plugin"
# Column -> what it is about, in the order of the table.
COLUMNS = {
    "eager": "the eager decoder on any device, the oracle",
    "eager-kernels": "the same on CUDA after nemodiff_trt.plugins.kernels.register_kernels()",
    "onnxruntime": "opset-24 ONNX",
    "tensorrt-rtx": "TensorRT network",
    "tensorrt": "TensorRT network; plugins with build_engines --plugins: kernels inside the engine",
    "inductor": "the reference, inlined by the pass decompose_plugins; plugins with --plugins: calls of torch.ops.nemodiff",
}
# Target that can have plugins -> form that an operator needs for it.
_PLUGIN_FORMS = {Target.TENSORRT: Form.PLUGIN, Target.INDUCTOR: Form.TRITON}


def plugin_operators(target: Target) -> frozenset[str]:
    """Names of the operators that are plugins on `target` when the build asks for plugins."""
    form = _PLUGIN_FORMS.get(target)
    return frozenset(op.name for op in OPS if form in op.forms)


def realisation(op: Op, target: Target) -> str:
    """How `op` is realised on `target` where it is no plugin."""
    if target is Target.INDUCTOR:
        return COMPILED
    form, name = (Form.ONNX, STANDARD) if target is Target.ONNXRUNTIME else (Form.NETWORK, LAYERS)
    return name if form in op.forms else NONE


def realisations(op: Op) -> dict[str, str]:
    """Column -> how `op` is realised there, with what a build may choose instead."""
    eager = {"eager": TORCH, "eager-kernels": TRITON if Form.TRITON in op.forms else TORCH}
    found = {str(target): realisation(op, target) for target in Target}
    for target in _PLUGIN_FORMS:
        if op.name in plugin_operators(target):
            found[target] += f" or {PLUGIN}"
    return {column: (eager | found)[column] for column in COLUMNS}


def table() -> list[dict[str, object]]:
    """One entry an operator, as JSON values."""
    return [{"operator": op.name, "targets": realisations(op), "forms": sorted(map(str, op.forms))} for op in OPS]
