"""What a build needs to quantise: recipes from the options, ranges of activations from calibration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from nemodiff_trt.build_engines.stages import StageClock
from nemodiff_trt.bundle.encoding import QuantizedScales
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.quantization.facts import NOT_CALIBRATED, QuantizationFacts
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear
from nemodiff_trt.quantization.ranges import find_ranges
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.vocabulary import Precision, Role


@dataclass(frozen=True, slots=True)
class Quantization:
    """Recipes of a build and, once known, the ranges of activations; `statistics` stays None without a checkpoint.

    `packed` gives layers of a checkpoint that came quantised.
    """

    recipe: Recipe
    draft_recipe: Recipe
    statistics: ActivationStatistics | None = None
    packed: Callable[[str], QuantizedLinear] | None = None

    def recipe_of(self, role: Role) -> Recipe:
        return self.draft_recipe if role is Role.DRAFT else self.recipe

    @property
    def scales(self) -> QuantizedScales:
        """For the weight file.

        Raises:
            InvalidInputError: there was no calibration.
        """
        if self.statistics is None:
            raise InvalidInputError("calibration", None, "a checkpoint to calibrate")
        return QuantizedScales(self.statistics.input_amax, self.recipe.weights, self.packed)

    def facts(self, is_rehearsal: bool) -> QuantizationFacts:
        """For the manifest."""
        text = self.statistics.describe() if self.statistics is not None else NOT_CALIBRATED
        if self.packed is not None:
            text = "that of the quantised checkpoint"
        return QuantizationFacts(self.recipe, self.draft_recipe, text, is_rehearsal)

    def digest(self) -> str:
        """SHA-256 of everything that shapes the scales, for the build key."""
        recipes = json.dumps([self.recipe.to_dict(), self.draft_recipe.to_dict()], sort_keys=True).encode()
        return hashlib.sha256(recipes + (self.statistics.to_bytes() if self.statistics else b"")).hexdigest()


def read_recipes(options: CompileOptions, model: ModelConfig) -> Quantization | None:
    """Recipes of a build, None where nothing is quantised.

    Raises:
        InvalidInputError: the recipe file is not usable or does not fit the model.
    """
    form = Precision(options.precision).linear_format
    draft_form = form if options.draft_precision is None else Precision(options.draft_precision).linear_format
    if form is None and draft_form is None:
        return None
    recipe = Recipe.from_file(options.recipe, form) if options.recipe else Recipe(form)
    draft = recipe if options.draft_precision is None else recipe.with_format(draft_form)
    for each in (recipe, draft):
        each.check(model)
    return Quantization(recipe, draft)


def calibrated(
    quantization: Quantization, checkpoint: Checkpoint | None, options: CompileOptions, clock: StageClock
) -> Quantization:
    """The same with ranges of activations; without a checkpoint there are none.

    Raises:
        InvalidInputError: the file of `options` is not usable, belongs to another checkpoint, or ModelOpt is not installed.
    """
    if checkpoint is None:
        return quantization
    with clock.stage("calibrate", total=checkpoint.config.num_hidden_layers):
        activations, on_layer = quantization.recipe.activations, clock.listener.advance
        statistics = find_ranges(checkpoint, options.calibration, options.limits, activations, on_layer)
    return Quantization(quantization.recipe, quantization.draft_recipe, statistics)
