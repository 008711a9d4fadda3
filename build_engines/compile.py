"""The story of a build in one function: model -> capture -> passes -> weights -> engines -> checked bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.model_source import ModelSource, open_source
from nemodiff_trt.build_engines.quantize import calibrated, read_recipes
from nemodiff_trt.build_engines.report import RoleGraph, realised_operators, report_content
from nemodiff_trt.build_engines.stages import ProgressListener, SilentListener, StageClock
from nemodiff_trt.build_engines.stored_weights import plan_weights
from nemodiff_trt.build_engines.targets.build_target import BuildInput, BuiltEngines, builder_for
from nemodiff_trt.bundle import Bundle, BundleWriter, Manifest, build_key, check_output, tool_versions
from nemodiff_trt.bundle.manifest import CALIBRATION_FILE, REPORT_FILE, WEIGHTS_FILE
from nemodiff_trt.bundle.tokenizer_files import copy_tokenizer
from nemodiff_trt.bundle.weight_writer import StoredWeights, WeightLayouter, write_weights
from nemodiff_trt.contract import ENGINE_FLOAT
from nemodiff_trt.errors import AuditError, BundleError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.passes.base import PassOptions, run_pipeline
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plugins.realisations import plugin_operators
from nemodiff_trt.vocabulary import Role


def compile_bundle(options: CompileOptions, listener: ProgressListener | None = None) -> Bundle:
    """Compile the model named in `options` and write the bundle to `options.output`.

    Raises:
        InvalidInputError: an option does not fit the model, or the output must not be replaced. Nothing was written.
        NemodiffError: a pass, the lowering, the compiler, the parity check or a strict audit failed. Nothing is left behind.
    """
    check_output(options.output, options.force)
    build = builder_for(options.target, options.plugins)
    clock = StageClock(listener or SilentListener())
    with clock.stage("open model"):
        source = open_source(options)
        options.check_model(source.model)
        quantization = read_recipes(options, source.model) if source.quantization is None else None
    if quantization is not None:
        source = source.quantized(calibrated(quantization, source.checkpoint, options, clock))
    key = build_key(source.identity, options, tool_versions(options.target, options.plugins))
    with _disk_errors(options.output), BundleWriter(options.output, options.force) as writer:
        with clock.stage("capture"):
            dtype = getattr(torch, ENGINE_FLOAT[options.compute_precision])
            captured = capture_step(source.model, dtype, options.limits.cache_capacity)
        with clock.stage("passes", total=len(options.roles)):
            roles = _run_passes(captured, source, options, clock)
        graphs = {role: entry.graph for role, entry in roles.items()}
        stored = plan_weights(graphs, source.model, source.adapter)
        if source.tensors is not None:
            _write_weights(writer.path, source, stored, options, clock)
        has_weights = source.tensors is not None
        facts = source.quantization.facts(is_rehearsal=False) if source.quantization else None
        built = build(BuildInput(options, source.model, source.adapter, graphs, stored, has_weights, writer.path, clock, facts))
        if options.strict and built.warnings:
            raise AuditError(f"{len(built.warnings)} findings, the first: {built.warnings[0]}")
        with clock.stage("publish"):
            if source.tokenizer_dir is not None:
                copy_tokenizer(source.tokenizer_dir, writer.path)
            report = report_content(roles, built, key, clock.seconds, writer.path)
            (writer.path / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            if source.quantization is not None and source.quantization.statistics is not None:
                (writer.path / CALIBRATION_FILE).write_bytes(source.quantization.statistics.to_bytes())
            realised = realised_operators(graphs.values(), options.target)
            writer.publish(_manifest(source, built, stored, writer, BuildFacts(options, key, realised)))
    return Bundle.open(options.output, verify=False)


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What was asked for, the build key, and how operators came to be realised."""

    options: CompileOptions
    key: str
    operators: dict[str, str]


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """A full disk is a failure to report in one line, not a defect."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"cannot write {output}: {error.strerror or error}") from error


def _run_passes(captured: StepGraph, source: ModelSource, options: CompileOptions, clock: StageClock) -> dict[Role, RoleGraph]:
    """Specialise the one capture for every role."""
    roles = {}
    for done, role in enumerate(options.roles, start=1):
        graph = captured.copy()
        pass_options = PassOptions(
            role=role,
            model=source.model,
            precision=options.compute_precision,
            adapter=source.adapter,
            adapter_form=options.draft_adapter,
            keep_logits=options.sampling,
            cache_capacity=options.limits.cache_capacity,
            recipe=source.quantization.recipe_of(role) if source.quantization else None,
            plugins=plugin_operators(options.target) if options.plugins else frozenset(),
        )
        reports = run_pipeline(graph, PIPELINES[options.target][role], pass_options)
        roles[role] = RoleGraph(graph, reports)
        clock.listener.advance(done)
    return roles


def _write_weights(
    bundle_dir: Path, source: ModelSource, stored: StoredWeights, options: CompileOptions, clock: StageClock
) -> None:
    assert source.tensors is not None, "checked by the caller"
    with clock.stage("write weights", total=stored.num_bytes):
        scales = source.quantization.scales if source.quantization else None
        layouter = WeightLayouter(source.model, source.tensors, options.limits.cache_capacity, source.adapter, scales)
        for size in write_weights(bundle_dir / WEIGHTS_FILE, stored, layouter):
            clock.listener.advance(size)


def _manifest(
    source: ModelSource, built: BuiltEngines, stored: StoredWeights, writer: BundleWriter, facts: BuildFacts
) -> Manifest:
    options = facts.options
    return Manifest(
        model=source.model,
        target=options.target,
        precision=options.precision,
        modes=options.modes,
        limits=options.limits,
        keep_logits=options.sampling,
        adapter=source.adapter,
        roles=built.roles,
        operators=facts.operators,
        weights=stored.layouts,
        weight_shapes=stored.shapes,
        weight_storage=options.weights,
        has_weights=source.tensors is not None,
        sms=built.sms,
        quantization=source.quantization.facts(built.is_rehearsal) if source.quantization else None,
        build_key=facts.key,
        tool_versions=tool_versions(options.target, options.plugins),
        files=writer.file_entries(),
    )
