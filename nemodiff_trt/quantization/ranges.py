"""Ranges of a checkpoint's activations: from a file that has them, from prompts, or from generated problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization.recipe import ActivationRange
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role

_STATISTICS_SUFFIX = ".json"
# Longer texts are cut: ranges of activations hardly grow with position, and a step behind more tokens costs more.
_MAX_TOKENS = 512


def find_ranges(
    checkpoint: Checkpoint,
    path: Path | None,
    limits: Limits,
    activations: ActivationRange,
    on_layer: Callable[[int], None] = lambda _: None,
) -> ActivationStatistics:
    """Ranges of all layers in all roles.

    Args:
        checkpoint: to calibrate.
        path: `calibration.json` of a bundle, or prompts; None for generated problems.
        limits: give the length of a block and of a sequence.
        activations: how ranges are taken, unless the file has them.
        on_layer: told how many layers are finished.

    Raises:
        InvalidInputError: the file is not usable, belongs to another checkpoint, or ModelOpt is not installed.
    """
    if path is not None and path.suffix == _STATISTICS_SUFFIX:
        statistics = ActivationStatistics.from_file(path)
        if statistics.checkpoint != checkpoint.identity:
            raise InvalidInputError("calibration", str(path), f"ranges of this checkpoint ({checkpoint.identity[:12]}...)")
        return statistics
    from nemodiff_trt.quantization.calibration import calibrate
    from nemodiff_trt.quantization.calibration_text import generated_samples, plan_sequences, read_samples

    tokenizer, model = Tokenizer.from_dir(checkpoint.path), checkpoint.config
    samples = generated_samples(tokenizer, model) if path is None else read_samples(path, tokenizer)
    # Every role whatever the modes: the ranges serve other builds of the checkpoint too.
    sequences = plan_sequences(samples, model, limits.block_length, min(_MAX_TOKENS, limits.max_seq_len), tuple(Role))
    return calibrate(checkpoint, sequences, activations, on_layer=on_layer)
