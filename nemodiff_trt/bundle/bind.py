"""Give a bundle the weights of a checkpoint: engines are compiled once per geometry and serve base, instruct and fine-tunes.

Apart from the package's names: it loads torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nemodiff_trt.bundle.encoding import QuantizedScales
from nemodiff_trt.bundle.manifest import CALIBRATION_FILE, ENGINES_DIR, REPORT_FILE, WEIGHTS_FILE, AdapterFacts, Manifest
from nemodiff_trt.bundle.reader import Bundle
from nemodiff_trt.bundle.tokenizer_files import copy_tokenizer
from nemodiff_trt.bundle.weight_writer import Source, WeightLayouter, checkpoint_source, plan_stored, write_weights
from nemodiff_trt.bundle.writer import BundleWriter, check_output
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.layout import adapter_decoder_name, adapter_shapes
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.quantization.ranges import find_ranges
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.vocabulary import Target


def bind_checkpoint(
    bundle_dir: Path,
    checkpoint_dir: Path,
    output: Path,
    *,
    force: bool = False,
    without_adapter: bool = False,
    calibration: Path | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Bundle:
    """Write to `output` the bundle at `bundle_dir` with the weights and the tokenizer of a checkpoint.

    Args:
        bundle_dir: built with shared weights, with or without a checkpoint; it stays as it is.
        checkpoint_dir: of the geometry that the bundle was built for.
        output: folder to write, atomically.
        force: replace a bundle that is there.
        without_adapter: draft with the base weights if the checkpoint has no adapter, instead of refusing it.
        calibration: for quantised engines, see `quantization.ranges.find_ranges`.
        on_bytes: told how much of the weight file is written.

    Raises:
        InvalidInputError: the checkpoint has another geometry or adapter, or the output must not be replaced; nothing was
            written.
        BundleError: the bundle cannot take weights, or the disk refused.
    """
    check_output(output, force)
    bundle = Bundle.open(bundle_dir)
    manifest = bundle.manifest
    _check_takes_weights(bundle)
    checkpoint = Checkpoint.open(checkpoint_dir)
    _check_geometry(manifest, checkpoint)
    tensors = _with_adapter(manifest, checkpoint, without_adapter)
    statistics = _ranges(manifest, checkpoint, calibration)
    try:
        with BundleWriter(output, force) as writer:
            shutil.copytree(bundle.path / ENGINES_DIR, writer.path / ENGINES_DIR, copy_function=_link)
            stored = plan_stored(manifest.weights, manifest.weight_shapes)
            scales, facts = None, manifest.quantization
            if facts is not None and statistics is not None:
                scales = QuantizedScales(statistics.input_amax, facts.recipe.weights)
                facts = dataclasses.replace(facts, calibration=statistics.describe())
                (writer.path / CALIBRATION_FILE).write_bytes(statistics.to_bytes())
            layouter = WeightLayouter(manifest.model, tensors, manifest.limits.cache_capacity, manifest.adapter, scales)
            for size in write_weights(writer.path / WEIGHTS_FILE, stored, layouter):
                on_bytes(size)
            copy_tokenizer(checkpoint.path, writer.path)
            bound = {"checkpoint": checkpoint.identity, "has_adapter": checkpoint.adapter is not None}
            report = {**bundle.report(), "bound": bound}
            (writer.path / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            identity = checkpoint.identity.encode() + (statistics.to_bytes() if statistics else b"")
            key = hashlib.sha256(f"{manifest.build_key} ".encode() + identity).hexdigest()
            files = writer.file_entries()
            writer.publish(dataclasses.replace(manifest, has_weights=True, quantization=facts, build_key=key, files=files))
    except OSError as error:
        raise BundleError(f"cannot write {output}: {error.strerror or error}") from error
    return Bundle.open(output, verify=False)


def _link(source: str, destination: str) -> None:
    """A second name for the same file, or a copy where the file system has no such thing: engines do not change."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _check_takes_weights(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.target is Target.ONNXRUNTIME:
        raise BundleError(
            f"{bundle.path}: engines for {manifest.target} refer to their own weight file; build them again instead"
        )
    if manifest.weight_storage is not WeightStorage.SHARED:
        raise BundleError(f"{bundle.path}: weights are inside the engines; build with --weights shared to bind them later")

    if manifest.has_baked_scales:
        raise BundleError(
            f"{bundle.path}: its engines hold scales of nvfp4 layers; compile them for the checkpoint with `nemodiff bind`"
        )


def _ranges(manifest: Manifest, checkpoint: Checkpoint, calibration: Path | None) -> ActivationStatistics | None:
    """Ranges of activations, which quantised engines take as inputs beside their weights."""
    if manifest.quantization is None:
        if calibration is not None:
            raise InvalidInputError("calibration", str(calibration), f"nothing for precision {manifest.precision}")
        return None
    return find_ranges(checkpoint, calibration, manifest.limits, manifest.quantization.recipe.activations)


def _check_geometry(manifest: Manifest, checkpoint: Checkpoint) -> None:
    wanted, found = manifest.model.to_dict(), checkpoint.config.to_dict()
    for field, value in wanted.items():
        if found[field] != value:
            raise InvalidInputError(f"checkpoint {field}", found[field], f"{value}, which the bundle was built for")


def _with_adapter(manifest: Manifest, checkpoint: Checkpoint, without_adapter: bool) -> Source:
    """Tensors of the checkpoint, with a zero adapter where the engines want one and the user goes without."""
    wanted, source = manifest.adapter, checkpoint_source(checkpoint)
    if wanted is None:
        return source
    if checkpoint.adapter is not None:
        found = AdapterFacts(checkpoint.adapter.rank, checkpoint.adapter.scale)
        if found != wanted:
            allowed = f"rank {wanted.rank}, scale {wanted.scale:g}, which the draft engine was built for"
            raise InvalidInputError("draft adapter", f"rank {found.rank}, scale {found.scale:g}", allowed)
        return source
    if not without_adapter:
        raise InvalidInputError(
            "draft adapter", None, "a checkpoint with linear_spec_lora/, or --without-adapter to draft with its base weights"
        )
    zeros = adapter_shapes(manifest.model, wanted.rank, adapter_decoder_name)

    def tensors(name: str) -> Tensor:
        return torch.zeros(zeros[name]) if name in zeros else source(name)

    return tensors
