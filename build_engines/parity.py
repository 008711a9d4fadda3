"""Before a bundle is published, every engine runs one random step and is compared with the eager decoder.

The decoder gets its weights from the bundle's own weight file, as views: the check costs no second copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemodiff_trt import contract
from nemodiff_trt.build_engines.targets.onnxruntime import EngineFile, open_engine
from nemodiff_trt.bundle import AdapterFacts, WeightLayout, mapped_tensors
from nemodiff_trt.bundle.manifest import WEIGHTS_FILE
from nemodiff_trt.bundle.weights import input_scales, split_sources
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import ParityError
from nemodiff_trt.model import LayoutTensors, TriModeDecoder, assemble_decoder
from nemodiff_trt.quantization.eager import input_formats, quantize_inputs
from nemodiff_trt.vocabulary import LinearFormat, Role

# Small whatever the bundle's limits are; smaller still where these are.
_LONGEST_CACHE = 5
_STEP = 3
_CAPACITY = 16
# About ten roundings per layer lie on the path of a value; independent ones add up as a square root. Four standard deviations
# of that are allowed, and four times as much in fp32, where sums over many terms round in the same format.
_ROUNDINGS_PER_LAYER = 10
_DEVIATIONS = {torch.float32: 16, torch.float16: 4, torch.bfloat16: 4}

# A sum in another order may bring an input of a quantised layer to the other side of a rounding: from there on values differ by
# a share of a step of the format, which is 1/8 (fp8) or up to 1/2 (nvfp4) of one of many inputs.
_SIDES = {LinearFormat.FP8: 0.05, LinearFormat.NVFP4: 0.2}


# One step of an engine: inputs by contract name, whose content it keeps, to outputs by contract name.
StepRunner = Callable[[dict[str, Tensor]], dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class ParityResult:
    """Largest differences of one role from the eager decoder: keys and values relative to the largest, confidence absolute."""

    role: Role
    cache_error: float
    confidence_error: float
    tolerance: float

    def errors(self) -> dict[str, float]:
        """For the report, which names the role itself."""
        return {
            "cache_error": self.cache_error,
            "confidence_error": self.confidence_error,
            "tolerance": self.tolerance,
        }


def load_stored_decoder(
    bundle_dir: Path, model: ModelConfig, layouts: dict[str, WeightLayout], adapter: AdapterFacts | None, cache_capacity: int
) -> TriModeDecoder:
    """Eager decoder over the mapped weight file in `bundle_dir`, for the few positions the check needs."""
    stored = mapped_tensors(bundle_dir / WEIGHTS_FILE)
    facts = (adapter.rank, adapter.scale) if adapter else None
    decoder = assemble_decoder(model, split_sources(model, layouts, stored), min(_CAPACITY, cache_capacity), facts)
    quantize_inputs(decoder, input_scales(layouts, stored))
    return decoder


def check_parity(bundle_dir: Path, engine: EngineFile, decoder: TriModeDecoder) -> list[ParityResult]:
    """Compare every role of `engine` with `decoder` on one random step over ragged random caches.

    Raises:
        ParityError: names the role, the output and by how much it is off.
    """
    session = open_engine(bundle_dir, engine.file)
    names = [output.name for output in session.get_outputs()]

    def run(feed: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {name: tensor.numpy() for name, tensor in feed.items()}), strict=True))

    return check_roles(engine.roles, decoder, run)


def check_roles(roles: tuple[Role, ...], decoder: TriModeDecoder, run: StepRunner) -> list[ParityResult]:
    """Compare `run`, an engine that serves `roles`, with `decoder`, as `check_parity` does.

    Raises:
        ParityError: names the role, the output and by how much it is off.
    """
    steps = {role: _random_step(role, decoder) for role in roles}
    return [_compare(role, decoder, feed, run(feed)) for role, feed in steps.items()]


def _random_step(role: Role, decoder: TriModeDecoder) -> dict[str, Tensor]:
    """Inputs of one step: two sequences of different length over random caches."""
    config, dtype = decoder.config, decoder.diffusion_head.weight.dtype
    generator = torch.Generator().manual_seed(0)
    capacity = decoder.key_cos.shape[0]
    lengths = (0, min(_LONGEST_CACHE, capacity - _STEP))
    batch, step = len(lengths), 1 if role is Role.DECODE else _STEP
    feed = {
        contract.INPUT_IDS: torch.randint(config.vocab_size, (batch, step), generator=generator),
        contract.CACHE_LENGTH: torch.tensor(lengths),
    }
    if role is Role.PREFILL:
        feed[contract.LAST_INDEX] = torch.arange(batch) % step
    if role.takes_layout:
        # Nothing of the causal or the bidirectional order: positions run backwards, and tokens see each other at random.
        sees = torch.rand((batch, step, step), generator=generator) < 0.5
        feed[contract.POSITION_OFFSET] = torch.arange(step).flip(0).repeat(batch, 1)
        feed[contract.STEP_MASK] = sees | torch.eye(step, dtype=torch.bool)
        feed[contract.ADAPTER_ROWS] = torch.randint(2, (batch, step), generator=generator).float()
    shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
    for layer in range(config.num_hidden_layers):
        for name in (contract.past_key(layer), contract.past_value(layer)):
            feed[name] = torch.randn(shape, generator=generator).to(dtype)
    return feed


def _compare(role: Role, decoder: TriModeDecoder, feed: dict[str, Tensor], actual: dict[str, np.ndarray]) -> ParityResult:
    layers = range(decoder.config.num_hidden_layers)
    with torch.inference_mode():
        logits, keys, values = decoder(
            feed[contract.INPUT_IDS],
            feed[contract.CACHE_LENGTH],
            [feed[contract.past_key(layer)] for layer in layers],
            [feed[contract.past_value(layer)] for layer in layers],
            causal=role.is_causal,
            use_adapter=role.uses_adapter and decoder.has_adapter,
            layout=LayoutTensors(*(feed[name] for name in contract.LAYOUT)) if role.takes_layout else None,
        )
    if role is Role.PREFILL:
        logits = logits[torch.arange(logits.shape[0]), feed[contract.LAST_INDEX]][:, None]
    unit_roundoff = torch.finfo(logits.dtype).eps / 2
    tight = _DEVIATIONS[logits.dtype] * unit_roundoff * math.sqrt(_ROUNDINGS_PER_LAYER * len(layers))
    rounding = max((_SIDES[form] for form in input_formats(decoder)), default=0.0)
    if rounding:
        _check_first_layer(role, actual, keys[0], tight)
    tolerance = max(tight, rounding)
    cache_error = 0.0
    for layer in layers:
        for name, wanted in ((contract.present_key(layer), keys[layer]), (contract.present_value(layer), values[layer])):
            error = _relative_error(actual[name], wanted.float().numpy())
            if not error <= tolerance:
                raise ParityError(f"role {role}: {name} is off by {error:.2e} of its largest value, allowed: {tolerance:.2e}")
            cache_error = max(cache_error, error)
    return ParityResult(role, cache_error, _check_decision(role, decoder, logits.float(), actual, tolerance), tolerance)


def _check_first_layer(role: Role, actual: dict[str, np.ndarray], wanted: Tensor, tolerance: float) -> None:
    """Most of the first layer's keys of quantised layers differ by rounding in fp32 and no more."""
    found = torch.as_tensor(actual[contract.present_key(0)]).float()
    error = float(((found - wanted.float()).abs() / wanted.abs().max()).median())
    if not error <= tolerance:
        raise ParityError(f"role {role}: half of the first layer's keys are off by {error:.2e}, allowed: {tolerance:.2e}")


def _relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(actual.astype(np.float32) - wanted).max() / np.abs(wanted).max())


def _check_decision(
    role: Role, decoder: TriModeDecoder, logits: Tensor, actual: dict[str, np.ndarray], tolerance: float
) -> float:
    """Confidence, and tokens where the eager choice is clear of the runner-up by more than rounding."""
    token, confidence = torch.ops.nemodiff.decision_head(logits, decoder.config.mask_token_id)
    # A relative error of the logits moves the probability by at most the same error times the largest logit.
    allowed = tolerance * max(1.0, float(logits.abs().max()))
    error = float(np.abs(actual[contract.CONFIDENCE] - confidence.numpy()).max())
    if not error <= allowed:
        raise ParityError(f"role {role}: confidence is off by {error:.2e}, allowed: {allowed:.2e}")
    chosen = torch.from_numpy(actual[contract.TOKEN])
    gap = logits.gather(-1, token[..., None]) - logits.gather(-1, chosen[..., None])
    is_mask = bool((chosen == decoder.config.mask_token_id).any())
    if is_mask or float(gap.max()) > 2 * allowed:
        raise ParityError(f"role {role}: decides for tokens {chosen.tolist()}, the eager decoder for {token.tolist()}")
    return error
