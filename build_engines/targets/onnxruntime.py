"""Target onnxruntime: one ONNX file per distinct step graph, all over one weight file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from nemodiff_trt.build_engines.lowering import lower_to_onnx
from nemodiff_trt.build_engines.targets.build_target import BuildInput, BuiltEngines
from nemodiff_trt.bundle import RoleEngine
from nemodiff_trt.bundle.manifest import ENGINES_DIR, WEIGHTS_FILE
from nemodiff_trt.bundle.safetensors_layout import Span
from nemodiff_trt.bundle.weights import role_layouts
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.vocabulary import Role

_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine file, the roles it serves, and how many nodes of each operator it holds."""

    file: str
    roles: tuple[Role, ...]
    num_nodes: dict[str, int]


def build_onnxruntime(build: BuildInput) -> BuiltEngines:
    """Write the ONNX files of all roles, pack their matrices, and compare each with the eager decoder.

    Raises:
        LoweringError: see `write_engines`.
        ParityError: an engine disagrees with the decoder.
    """
    # Here, because both modules open engines through this one.
    from nemodiff_trt.build_engines.parity import check_parity, load_stored_decoder
    from nemodiff_trt.build_engines.prepack import prepack_weights

    clock, folder = build.clock, build.bundle_dir
    with clock.stage("lower to ONNX"):
        engines = write_engines(folder, build.graphs, build.stored.spans)
    with clock.stage("pack matrices"):
        packed = prepack_weights(folder, [engine.file for engine in engines], WEIGHTS_FILE)
    with clock.stage("check parity", total=len(engines)):
        capacity = build.options.limits.cache_capacity
        parity, decoders = [], {}
        for done, engine in enumerate(engines, start=1):
            role = engine.roles[0]
            recipe = build.quantization.recipe_of(role) if build.quantization else None
            if recipe not in decoders:
                layouts = role_layouts(build.stored.layouts, build.quantization, role)
                decoders[recipe] = load_stored_decoder(folder, build.model, layouts, build.adapter, capacity)
            parity += check_parity(folder, engine, decoders[recipe])
            clock.listener.advance(done)
    report = {
        "engines": {engine.file: _engine_report(engine) for engine in engines},
        "packed_matrices": dataclasses.asdict(packed),
        "parity": {result.role: result.errors() for result in parity},
    }
    return BuiltEngines(role_engines(engines), report)


def _engine_report(engine: EngineFile) -> dict[str, Any]:
    return {
        "roles": list(engine.roles),
        "num_nodes": sum(engine.num_nodes.values()),
        "num_nodes_per_op": engine.num_nodes,
    }


def write_engines(bundle_dir: Path, graphs: Mapping[Role, StepGraph], spans: Mapping[str, Span]) -> list[EngineFile]:
    """Lower every role and write each distinct model once: roles whose programs are equal share a file.

    Raises:
        LoweringError: a graph holds something ONNX has no form for here, or the model is not valid.
    """
    roles_of: dict[bytes, list[Role]] = {}
    counts: dict[bytes, dict[str, int]] = {}
    for role, graph in graphs.items():
        model = lower_to_onnx(graph, spans, WEIGHTS_FILE)
        _check(role, model)
        content = model.SerializeToString(deterministic=True)
        roles_of.setdefault(content, []).append(role)
        counts[content] = dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
    (bundle_dir / ENGINES_DIR).mkdir(exist_ok=True)
    written = []
    for content, roles in roles_of.items():
        file = f"{ENGINES_DIR}/{'-'.join(roles)}.onnx"
        (bundle_dir / file).write_bytes(content)
        written.append(EngineFile(file, tuple(roles), counts[content]))
    return written


def role_engines(engines: list[EngineFile]) -> dict[Role, RoleEngine]:
    """The manifest's view: role -> its file and who else uses it."""
    return {
        role: RoleEngine(engine.file, tuple(other for other in engine.roles if other is not role))
        for engine in engines
        for role in engine.roles
    }


def open_engine(bundle_dir: Path, file: str, num_threads: int = 1) -> Any:
    """`InferenceSession` of one engine of the bundle in `bundle_dir`, its weights mapped from there."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle_dir))
    return ort.InferenceSession((bundle_dir / file).read_bytes(), options, providers=["CPUExecutionProvider"])


def _check(role: Role, model: onnx.ModelProto) -> None:
    """Let onnx validate the model; it cannot check weights that are not written yet, so it gets them as inputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    external = [tensor for tensor in bare.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        bare.graph.initializer.remove(tensor)
    try:
        onnx.checker.check_model(bare, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"role {role}: not a valid ONNX model: {error}") from error
