"""Ranges of activations, found by ModelOpt's calibrators on the eager layers in all roles, one layer at a time.

Bidirectional steps over masked blocks see other activations than causal ones, and drafting adds the adapter: every role runs,
and each has a range of its own before they are merged. One layer's weights are in memory at a time, beside the hidden states
of all steps: a checkpoint larger than memory can be calibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemodiff_trt.bundle.weight_writer import checkpoint_source
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model.decoder import DecoderLayer, RMSNorm, Step, TriModeDecoder
from nemodiff_trt.quantization.calibration_text import CalibrationSequence
from nemodiff_trt.quantization.modelopt_backend import import_modelopt
from nemodiff_trt.quantization.recipe import HEAD, ActivationRange
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.vocabulary import Role

# Of weights and activations while calibrating.
_DTYPE = torch.float32
# ModelOpt's own default.
_PERCENTILE = 99.99


@dataclass(slots=True)
class _Run:
    """One step in progress: `x` [1,S,hidden] is its state between two layers."""

    role: Role
    start: int
    x: Tensor


def calibrate(
    checkpoint: Checkpoint,
    sequences: list[CalibrationSequence],
    activations: ActivationRange = ActivationRange.MAX,
    on_layer: Callable[[int], None] = lambda _: None,
) -> ActivationStatistics:
    """Run `sequences` through the model, layer by layer.

    Args:
        checkpoint: its adapter is used in drafting steps, if it has one.
        sequences: see `calibration_text`.
        activations: how ranges are taken.
        on_layer: told how many layers are finished.

    Raises:
        InvalidInputError: ModelOpt is not installed, or there are no sequences.
    """
    if not sequences:
        raise InvalidInputError("calibration", "no sequences", "at least one prompt")
    recorder = _Recorder(activations)
    runner = _LayerRunner(checkpoint, sequences)
    amax: dict[str, dict[Role, float]] = {}
    with torch.inference_mode():
        for index in range(checkpoint.config.num_hidden_layers):
            layer = runner.load_layer(index)
            recorder.watch(layer, f"encoder.layers.{index}.")
            for runs in runner.runs:
                runner.step(layer, runs, recorder)
            amax |= recorder.take()
            # Before the next one is loaded.
            del layer
            on_layer(index + 1)
        runner.finish(recorder)
        amax |= recorder.take()
    num_tokens = sum(len(sequence.token_ids) for sequence in sequences)
    return ActivationStatistics(checkpoint.identity, activations, len(sequences), num_tokens, amax)


class _Recorder:
    """A calibrator of ModelOpt for every linear layer that is watched and every role it runs in."""

    def __init__(self, activations: ActivationRange) -> None:
        self._activations = activations
        self._calib = import_modelopt("modelopt.torch.quantization.calib")
        self._calibrators: dict[str, dict[Role, Any]] = {}
        self.role = Role.PREFILL

    def watch(self, module: nn.Module, prefix: str) -> None:
        """Collect the inputs of all linear layers of `module` as long as it lives."""
        for name, linear in module.named_modules():
            if isinstance(linear, nn.Linear):
                linear.register_forward_pre_hook(lambda _, args, name=prefix + name: self.collect(name, args[0]))

    def collect(self, linear: str, x: Tensor) -> None:
        """Take note of one input."""
        roles = self._calibrators.setdefault(linear, {})
        if self.role not in roles:
            is_max = self._activations is ActivationRange.MAX
            roles[self.role] = self._calib.MaxCalibrator() if is_max else self._calib.HistogramCalibrator()
        roles[self.role].collect(x)

    def take(self) -> dict[str, dict[Role, float]]:
        """Ranges by layer and role; the recorder is empty again."""
        options = {} if self._activations is ActivationRange.MAX else {"method": "percentile", "percentile": _PERCENTILE}
        found = {
            linear: {role: float(calibrator.compute_amax(**options)) for role, calibrator in roles.items()}
            for linear, roles in self._calibrators.items()
        }
        self._calibrators = {}
        return found


class _LayerRunner:
    """Hidden states of all steps. `runs` holds those of each sequence, its causal pass first."""

    def __init__(self, checkpoint: Checkpoint, sequences: list[CalibrationSequence]) -> None:
        self._config, self._adapter = checkpoint.config, checkpoint.adapter
        self._source = checkpoint_source(checkpoint)
        ends = [step.start + len(step.token_ids) for sequence in sequences for step in sequence.steps]
        self._capacity = max([*ends, *(len(sequence.token_ids) for sequence in sequences)])
        with torch.device("meta"):
            # Only its rotary tables are used.
            self._decoder = TriModeDecoder(self._config, 1)
        with torch.device("cpu"):
            self._decoder.set_rotary_tables(self._capacity, _DTYPE)
        self.runs = [self._embedded(sequence) for sequence in sequences]

    def _embedded(self, sequence: CalibrationSequence) -> list[_Run]:
        embedding = self._source("encoder.embed_tokens.weight")
        steps = [(Role.PREFILL, 0, sequence.token_ids), *((step.role, step.start, step.token_ids) for step in sequence.steps)]
        return [_Run(role, start, embedding[torch.tensor(ids)].to(_DTYPE)[None]) for role, start, ids in steps]

    def load_layer(self, index: int) -> DecoderLayer:
        """One layer with its weights in memory."""
        with torch.device("meta"):
            layer = DecoderLayer(self._config)
            if self._adapter is not None:
                layer.self_attn.attach_adapter(self._adapter.rank, self._adapter.scale)
        names = [name for name, _ in layer.named_parameters()]
        state = {name: self._source(f"encoder.layers.{index}.{name}").to(_DTYPE) for name in names}
        layer.load_state_dict(state, assign=True)
        return layer

    def step(self, layer: DecoderLayer, runs: list[_Run], recorder: _Recorder) -> None:
        """Take the steps of one sequence through `layer`; all but the first read the keys and values of the first."""
        shape = (1, self._config.num_key_value_heads, self._capacity, self._config.head_dim)
        past = (torch.zeros(shape, dtype=_DTYPE), torch.zeros(shape, dtype=_DTYPE))
        for run in runs:
            recorder.role = run.role
            ids = torch.zeros(1, run.x.shape[1], dtype=torch.int64)
            use_adapter = run.role.uses_adapter and self._adapter is not None
            shared = Step(self._decoder, ids, torch.tensor([run.start]), run.role.is_causal, use_adapter, None)
            run.x, keys, values = layer(run.x, shared, *past)
            if run is runs[0]:
                past = (keys, values)

    def finish(self, recorder: _Recorder) -> None:
        """What the head reads; the head itself is not needed for that."""
        norm = RMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
        norm.load_state_dict({"weight": self._source("encoder.norm.weight").to(_DTYPE)}, assign=True)
        for runs in self.runs:
            for run in runs:
                recorder.role = run.role
                recorder.collect(HEAD, norm(run.x))
