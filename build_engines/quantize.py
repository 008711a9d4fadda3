"""What a build needs to quantise: recipes from the options, ranges of activations from calibration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from nemodiff_trt.build_engines.stages import StageClock
from nemodiff_trt.bundle.encoding import QuantizedScales
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear
from nemodiff_trt.quantization.recipe import ActivationRange, Recipe
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role

# In the bundle: ranges by layer and role, in the form that --calibration takes.
CALIBRATION_FILE = "calibration.json"
_STATISTICS_SUFFIX = ".json"
# Longer texts are cut: ranges of activations hardly grow with position, and a step behind more tokens costs more.
_MAX_TOKENS = 512


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
        text = "none, ranges are random"
        if self.statistics is not None:
            counts = f"{self.statistics.num_sequences} sequences, {self.statistics.num_tokens} tokens"
            text = f"{self.statistics.activations} over {counts}" if self.packed is None else "that of the quantised checkpoint"
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
    form = options.precision.linear_format
    draft_form = form if options.draft_precision is None else options.draft_precision.linear_format
    if form is None and draft_form is None:
        return None
    recipe = Recipe.from_file(options.recipe, form) if options.recipe else Recipe(form)
    draft = recipe if options.draft_precision is None else recipe.with_format(draft_form)
    for each in (recipe, draft):
        each.check(model)
    return Quantization(recipe, draft)


def calibrated(quantization: Quantization, options: CompileOptions, clock: StageClock) -> Quantization:
    """The same with ranges: read from the file of `options`, or found by running its prompts or generated ones.

    Raises:
        InvalidInputError: the file is not usable, belongs to another checkpoint, or ModelOpt is not installed.
    """
    if options.checkpoint is None:
        return quantization
    checkpoint = Checkpoint.open(resolve_checkpoint(options.checkpoint))
    path = options.calibration
    if path is not None and path.suffix == _STATISTICS_SUFFIX:
        statistics = ActivationStatistics.from_file(path)
        if statistics.checkpoint != checkpoint.identity:
            raise InvalidInputError("calibration", str(path), f"ranges of this checkpoint ({checkpoint.identity[:12]}...)")
        return Quantization(quantization.recipe, quantization.draft_recipe, statistics)
    with clock.stage("calibrate", total=checkpoint.config.num_hidden_layers):
        activations = quantization.recipe.activations
        statistics = run_calibration(checkpoint, options, activations, clock)
    return Quantization(quantization.recipe, quantization.draft_recipe, statistics)


def run_calibration(
    checkpoint: Checkpoint, options: CompileOptions, activations: ActivationRange, clock: StageClock
) -> ActivationStatistics:
    """Ranges over the prompts of `options.calibration`, or over generated problems."""
    from nemodiff_trt.quantization.calibration import calibrate
    from nemodiff_trt.quantization.calibration_text import generated_samples, plan_sequences, read_samples

    tokenizer, model = Tokenizer.from_dir(checkpoint.path), checkpoint.config
    path = options.calibration
    samples = generated_samples(tokenizer, model) if path is None else read_samples(path, tokenizer)
    block, longest = options.block_length, min(_MAX_TOKENS, options.max_seq_len)
    # Every role whatever the modes: the ranges serve other builds of the checkpoint too.
    sequences = plan_sequences(samples, model, block, longest, tuple(Role))
    return calibrate(checkpoint, sequences, activations, on_layer=clock.listener.advance)
