"""What every target gets and gives: role graphs in, engine files and the target's part of the report out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.build_engines.stages import StageClock
from nemodiff_trt.bundle import AdapterFacts, RoleEngine
from nemodiff_trt.bundle.weight_writer import StoredWeights
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.vocabulary import Role, Target


@dataclass(frozen=True, slots=True)
class BuildInput:
    """One build at the moment its target takes over.

    Args:
        options: of the user.
        model, adapter: facts of the model.
        graphs: one per role, after its pipeline.
        stored: plan of the weight file.
        has_weights: the weight file exists in `bundle_dir`; not in a build without a checkpoint.
        bundle_dir: folder of the bundle that is being written.
        clock: times the target's stages.
        quantization: recipes of the roles; None where nothing is quantised.
    """

    options: CompileOptions
    model: ModelConfig
    adapter: AdapterFacts | None
    graphs: dict[Role, StepGraph]
    stored: StoredWeights
    has_weights: bool
    bundle_dir: Path
    clock: StageClock
    quantization: QuantizationFacts | None = None


@dataclass(frozen=True, slots=True)
class BuiltEngines:
    """Engines as the manifest names them, the target's part of `report.json`, what `--strict` refuses, and GPUs built for.

    `is_rehearsal`: the engines hold random scales in place of a checkpoint's.
    """

    roles: dict[Role, RoleEngine]
    report: dict[str, Any]
    warnings: tuple[str, ...] = ()
    sms: tuple[int, ...] = ()
    is_rehearsal: bool = False


Builder = Callable[[BuildInput], BuiltEngines]


def builder_for(target: Target, plugins: bool = False) -> Builder:
    """The function that compiles for `target`; its toolchain, that of plugins included, is looked for now, before any work.

    Raises:
        InvalidInputError: the toolchain is not installed.
    """
    if target is Target.ONNXRUNTIME:
        from nemodiff_trt.build_engines.targets.onnxruntime import build_onnxruntime

        return build_onnxruntime
    if target is Target.INDUCTOR:
        from nemodiff_trt.build_engines.targets.inductor import build_inductor, check_compiler

        check_compiler()
        return build_inductor
    from nemodiff_trt.build_engines.targets.tensorrt_plans import build_tensorrt, import_api, import_plugins

    import_api(target)
    if plugins:
        import_plugins(target)
    return build_tensorrt
