"""A checkpoint that ModelOpt has quantised brings formats, codes and scales along: nothing is calibrated."""

from __future__ import annotations

from nemodiff_trt.build_engines.quantize import Quantization
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint
from nemodiff_trt.quantization.recipe import ActivationRange
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.vocabulary import Role


def imported_quantization(checkpoint: QuantizedCheckpoint, options: CompileOptions) -> Quantization:
    """What the build needs, all of it from the checkpoint.

    Raises:
        InvalidInputError: an option asks for another precision than the checkpoint has, or for calibration; layers that are one
            matrix in an engine have different formats.
    """
    recipe = checkpoint.recipe()
    if options.precision.linear_format is not recipe.format:
        raise InvalidInputError("precision", str(options.precision), f"{recipe.format}, which the checkpoint is quantised to")
    for name in ("draft_precision", "recipe", "calibration"):
        if getattr(options, name) is not None:
            raise InvalidInputError(name, str(getattr(options, name)), "nothing for a checkpoint that is quantised already")
    recipe.check(checkpoint.config)
    # One range for all roles: the file does not tell them apart.
    amax = {name: {Role.VERIFY: checkpoint.input_amax(name)} for name in checkpoint.formats}
    statistics = ActivationStatistics(checkpoint.identity, ActivationRange.MAX, 0, 0, amax)
    return Quantization(recipe, recipe, statistics, checkpoint.linear)
