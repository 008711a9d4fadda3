"""The story of a build in one function: checkpoint -> capture -> passes -> weights -> engines -> checked bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.parity import ParityResult, check_parity, load_stored_decoder
from nemodiff_trt.build_engines.prepack import prepack_weights
from nemodiff_trt.build_engines.report import BuiltParts, RoleGraph, report_content
from nemodiff_trt.build_engines.stages import ProgressListener, SilentListener, StageClock
from nemodiff_trt.build_engines.stored_weights import (
    StoredWeights,
    WeightLayouter,
    checkpoint_source,
    plan_weights,
    write_weights,
)
from nemodiff_trt.build_engines.targets.onnxruntime import EngineFile, role_engines, write_engines
from nemodiff_trt.bundle import AdapterFacts, Bundle, BundleWriter, Manifest, build_key, check_output, tool_versions
from nemodiff_trt.bundle.manifest import REPORT_FILE, TOKENIZER_DIR, WEIGHTS_FILE
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.checkpoint.layout import TOKENIZER_FILES
from nemodiff_trt.contract import ENGINE_FLOAT
from nemodiff_trt.errors import BundleError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.options import AdapterForm, CompileOptions
from nemodiff_trt.passes.base import PassOptions, run_pipeline
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.vocabulary import Role

# Beside the files a tokenizer is read from, what other tools write and read there.
_OTHER_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "generation_config.json")


def compile_bundle(options: CompileOptions, listener: ProgressListener | None = None) -> Bundle:
    """Compile the checkpoint named in `options` and write the bundle to `options.output`.

    Raises:
        InvalidInputError: an option does not fit the checkpoint, or the output must not be replaced. Nothing was written.
        NemodiffError: a pass, the lowering or the parity check failed. Nothing is left behind.
    """
    check_output(options.output, options.force)
    clock = StageClock(listener or SilentListener())
    with clock.stage("open checkpoint"):
        checkpoint = Checkpoint.open(resolve_checkpoint(options.checkpoint or ""))
        options.check_model(checkpoint.config)
        adapter = _adapter_facts(checkpoint, options)
        key = build_key(checkpoint.identity, options, tool_versions(options.target))
    with _disk_errors(options.output), BundleWriter(options.output, options.force) as writer:
        with clock.stage("capture"):
            dtype = getattr(torch, ENGINE_FLOAT[options.precision])
            captured = capture_step(checkpoint.config, dtype, options.limits.cache_capacity)
        with clock.stage("passes", total=len(options.roles)):
            roles = _run_passes(captured, checkpoint, options, adapter, clock)
        graphs = {role: entry.graph for role, entry in roles.items()}
        stored = plan_weights(graphs, checkpoint.config, adapter)
        with clock.stage("write weights", total=stored.num_bytes):
            layouter = WeightLayouter(checkpoint.config, checkpoint_source(checkpoint), options.limits.cache_capacity, adapter)
            for size in write_weights(writer.path / WEIGHTS_FILE, stored, layouter):
                clock.listener.advance(size)
        with clock.stage("lower to ONNX"):
            engines = write_engines(writer.path, graphs, stored.spans)
        with clock.stage("pack matrices"):
            packed = prepack_weights(writer.path, [engine.file for engine in engines], WEIGHTS_FILE)
        with clock.stage("check parity", total=len(engines)):
            capacity = options.limits.cache_capacity
            decoder = load_stored_decoder(writer.path, checkpoint.config, stored.layouts, adapter, capacity)
            parity = _check_engines(writer.path, engines, decoder, clock)
        with clock.stage("publish"):
            _copy_tokenizer(checkpoint.path, writer.path)
            report = report_content(BuiltParts(roles, engines, packed, parity), key, clock.seconds, writer.path)
            (writer.path / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            writer.publish(_manifest(options, checkpoint, adapter, engines, stored, key, writer))
    return Bundle.open(options.output, verify=False)


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """A full disk is a failure to report in one line, not a defect."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"cannot write {output}: {error.strerror or error}") from error


def _adapter_facts(checkpoint: Checkpoint, options: CompileOptions) -> AdapterFacts | None:
    """The adapter some role of this build applies, if any."""
    is_wanted = Role.DRAFT in options.roles and options.draft_adapter is not AdapterForm.NONE
    if checkpoint.adapter is None or not is_wanted:
        return None
    return AdapterFacts(checkpoint.adapter.rank, checkpoint.adapter.scale)


def _run_passes(
    captured: StepGraph, checkpoint: Checkpoint, options: CompileOptions, adapter: AdapterFacts | None, clock: StageClock
) -> dict[Role, RoleGraph]:
    """Specialise the one capture for every role."""
    roles = {}
    for done, role in enumerate(options.roles, start=1):
        graph = captured.copy()
        pass_options = PassOptions(
            role=role,
            model=checkpoint.config,
            precision=options.precision,
            adapter=adapter,
            adapter_form=options.draft_adapter,
            keep_logits=options.sampling,
        )
        reports = run_pipeline(graph, PIPELINES[options.target][role], pass_options)
        roles[role] = RoleGraph(graph, reports)
        clock.listener.advance(done)
    return roles


def _check_engines(
    bundle_dir: Path, engines: list[EngineFile], decoder: TriModeDecoder, clock: StageClock
) -> list[ParityResult]:
    results = []
    for done, engine in enumerate(engines, start=1):
        results += check_parity(bundle_dir, engine, decoder)
        clock.listener.advance(done)
    return results


def _copy_tokenizer(checkpoint_dir: Path, bundle_dir: Path) -> None:
    target = bundle_dir / TOKENIZER_DIR
    target.mkdir()
    for name in (*TOKENIZER_FILES, *_OTHER_TOKENIZER_FILES):
        if (checkpoint_dir / name).is_file():
            shutil.copyfile(checkpoint_dir / name, target / name)


def _manifest(
    options: CompileOptions,
    checkpoint: Checkpoint,
    adapter: AdapterFacts | None,
    engines: list[EngineFile],
    stored: StoredWeights,
    key: str,
    writer: BundleWriter,
) -> Manifest:
    return Manifest(
        model=checkpoint.config,
        target=options.target,
        precision=options.precision,
        modes=options.modes,
        limits=options.limits,
        keep_logits=options.sampling,
        adapter=adapter,
        roles=role_engines(engines),
        weights=stored.layouts,
        build_key=key,
        tool_versions=tool_versions(options.target),
        files=writer.file_entries(),
    )
