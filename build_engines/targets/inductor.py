"""Target inductor: one AOTInductor package per distinct step program, all over one weight file. Runs on the CPU.

Weights are inputs of a package, bound once by the session to views of the mapped file. The other way to keep them outside,
constants that the caller manages, runs the same kernels: measured on 5 M parameters in 6 layers, 2 cores, fp32, a step of one
token takes 0.82 ms with inputs and 0.80 ms with constants, one of 32 tokens 2.9 ms with both. As inputs, a program is compiled
from shapes alone, before the weight file exists, and cannot make a copy of it.

A package is machine code for the instruction sets of the machine that builds it: `tool_versions` names them, and a session
compares them with those of its own machine.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt import contract
from nemodiff_trt.build_engines.lowering.torch_program import lower_to_torch
from nemodiff_trt.build_engines.targets.build_target import BuildInput, BuiltEngines
from nemodiff_trt.bundle import RoleEngine, mapped_tensors, tensor_over
from nemodiff_trt.bundle.manifest import ENGINES_DIR, WEIGHTS_FILE
from nemodiff_trt.bundle.package_metadata import INPUTS_KEY, OUTPUTS_KEY
from nemodiff_trt.errors import InvalidInputError, LoweringError
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.vocabulary import Role, Target

_CONFIG: dict[str, Any] = {
    # As many threads as the process that runs a step has, not the one that compiled it.
    "cpp.dynamic_threads": True,
    # Two thirds of a package would be debug information.
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.enable_frame_pointer": False,
}


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled program: its file, the roles it serves, its inputs (then `weights`) and outputs, and what it was made of."""

    file: str
    roles: tuple[Role, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    num_nodes: dict[str, int]
    seconds: float


def build_inductor(build: BuildInput) -> BuiltEngines:
    """Compile the programs of all roles and compare each with the eager decoder.

    Raises:
        LoweringError: see `write_engines`.
        ParityError: a program disagrees with the decoder.
    """
    from nemodiff_trt.build_engines.parity import check_roles, load_stored_decoder

    clock, folder, capacity = build.clock, build.bundle_dir, build.options.limits.cache_capacity
    with clock.stage("compile programs", total=len(build.graphs)):
        packages = write_engines(folder, build.graphs, capacity, clock.listener.advance)
    with clock.stage("check parity", total=len(packages)):
        decoder = load_stored_decoder(folder, build.model, build.stored.layouts, build.adapter, capacity)
        arrays = mapped_tensors(folder / WEIGHTS_FILE)
        stored = {name: tensor_over(arrays[name], layout.dtype) for name, layout in build.stored.layouts.items()}
        parity = []
        for done, package in enumerate(packages, start=1):
            parity += check_roles(package.roles, decoder, step_runner(folder, package, stored, capacity))
            clock.listener.advance(done)
    report = {
        "engines": {package.file: _package_report(package) for package in packages},
        "parity": {result.role: result.errors() for result in parity},
    }
    return BuiltEngines(role_engines(packages), report)


def check_compiler() -> None:
    """Look for the C++ compiler, before anything costly starts.

    Raises:
        InvalidInputError: there is none.
    """
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        names = ", ".join(str(name) for name in config.cpp.cxx if name is not None)
        allowed = f"a C++ compiler that can be started; tried {names}. Install g++, or name one in the variable CXX"
        raise InvalidInputError("target", str(Target.INDUCTOR), allowed) from error


def write_engines(
    bundle_dir: Path, graphs: Mapping[Role, StepGraph], cache_capacity: int, on_done: Callable[[int], None] = lambda _: None
) -> list[Package]:
    """Compile every distinct program once: roles whose graphs are equal share a package.

    Args:
        bundle_dir: folder of the bundle that is being written. The weight file need not exist.
        graphs: after their pipelines.
        cache_capacity: K.
        on_done: told how many of the roles are finished.

    Raises:
        InvalidInputError: there is no C++ compiler.
        LoweringError: a graph cannot be exported or compiled.
    """
    check_compiler()
    (bundle_dir / ENGINES_DIR).mkdir(exist_ok=True)
    sharing: dict[str, list[Role]] = {}
    for role, graph in graphs.items():
        sharing.setdefault(f"{graph.graph}{graph.output_names}{sorted(graph.weights.items())}", []).append(role)
    packages, done = [], 0
    for roles in sharing.values():
        packages.append(_compile(bundle_dir, tuple(roles), graphs[roles[0]], cache_capacity))
        done += len(roles)
        on_done(done)
    return packages


def _compile(bundle_dir: Path, roles: tuple[Role, ...], graph: StepGraph, cache_capacity: int) -> Package:
    started = time.perf_counter()
    file = f"{ENGINES_DIR}/{'-'.join(roles)}.pt2"
    try:
        step = lower_to_torch(graph, cache_capacity)
        metadata = {INPUTS_KEY: " ".join((*step.inputs, *step.weights)), OUTPUTS_KEY: " ".join(step.outputs)}
        with warnings.catch_warnings():
            # torch calls a deprecated function of its own.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the public name of a package with a private one
                step.program,
                package_path=str(bundle_dir / file),
                inductor_configs={**_CONFIG, "aot_inductor.metadata": metadata},
            )
    # Exporter, Inductor and the C++ build have no narrower base in common.
    except RuntimeError as error:
        raise LoweringError(f"role {roles[0]}: {str(error).strip().splitlines()[0]}") from error
    counts = Counter(str(node.target) for node in step.program.graph.nodes if node.op == "call_function")
    seconds = time.perf_counter() - started
    return Package(file, roles, step.inputs, step.weights, step.outputs, dict(sorted(counts.items())), seconds)


def role_engines(packages: list[Package]) -> dict[Role, RoleEngine]:
    """The manifest's view: role -> its file, who else uses it, and the weights to bind behind the inputs of the contract."""
    return {
        role: RoleEngine(package.file, tuple(other for other in package.roles if other is not role), weights=package.weights)
        for package in packages
        for role in package.roles
    }


def step_runner(
    bundle_dir: Path, package: Package, stored: Mapping[str, Tensor], cache_capacity: int
) -> Callable[[dict[str, Tensor]], dict[str, np.ndarray]]:
    """A function from the inputs of a step to its outputs by contract name, for checks; the inputs keep their content.

    Args:
        bundle_dir: folder of the bundle.
        package: one of its engines.
        stored: tensors of the weight file.
        cache_capacity: K of the package. Caches given to the function may be shorter.
    """
    loaded = torch._inductor.aoti_load_package(str(bundle_dir / package.file))  # noqa: SLF001
    layers = range(sum(name.startswith("past_key") for name in package.inputs))
    pairs = ((contract.past_key, contract.present_key), (contract.past_value, contract.present_value))
    caches = {past(layer): present(layer) for layer in layers for past, present in pairs}

    def run(feed: dict[str, Tensor]) -> dict[str, np.ndarray]:
        inputs = dict(feed)
        for name in caches:
            inputs[name] = functional.pad(feed[name], (0, 0, 0, cache_capacity - feed[name].shape[2])).contiguous()
        results = loaded(*(inputs[name] for name in package.inputs), *(stored[name] for name in package.weights))
        found = {name: value.numpy() for name, value in zip(package.outputs, results, strict=True)}
        for name, present in caches.items():
            written = inputs[name][:, :, : feed[name].shape[2]]
            found[present] = written.float().numpy()
        return found

    return run


def _package_report(package: Package) -> dict[str, Any]:
    return {
        "roles": list(package.roles),
        "num_nodes": sum(package.num_nodes.values()),
        "num_nodes_per_op": package.num_nodes,
        "seconds": round(package.seconds, 3),
    }
