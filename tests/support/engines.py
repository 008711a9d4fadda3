"""Engines of a decoder in memory, without a checkpoint: one capture, the role's pipeline, weights, ONNX files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.stored_weights import plan_weights
from nemodiff_trt.build_engines.targets.onnxruntime import open_engine, role_engines, write_engines
from nemodiff_trt.bundle import AdapterFacts, RoleEngine
from nemodiff_trt.bundle.manifest import WEIGHTS_FILE
from nemodiff_trt.bundle.weight_writer import StoredWeights, WeightLayouter, write_weights
from nemodiff_trt.contract import ENGINE_FLOAT
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.passes.base import PassOptions, run_pipeline
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.vocabulary import BUILT_MODES, Precision, Role, Target, roles_for

ALL_ROLES = roles_for(BUILT_MODES)


@dataclass(frozen=True, slots=True)
class Engines:
    """ONNX files of some roles below `folder`, and the plan of their weight file."""

    folder: Path
    roles: dict[Role, RoleEngine]
    stored: StoredWeights

    def model(self, role: Role) -> onnx.ModelProto:
        return onnx.load(self.folder / self.roles[role].file, load_external_data=False)

    def run(self, role: Role, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step in ONNX Runtime; inputs the role does not take are left out."""
        session = open_engine(self.folder, self.roles[role].file)
        feed = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, session.run(None, feed), strict=True)}


def compile_decoder(
    decoder: TriModeDecoder,
    folder: Path,
    precision: Precision = Precision.FP32,
    target: Target = Target.ONNXRUNTIME,
    **changes: Any,
) -> Engines:
    """Compile every role of `decoder`, which has an adapter, into ONNX files of the graphs that `target` gets.

    `changes` are fields of `PassOptions`.
    """
    capacity = decoder.key_cos.shape[0]
    branch = decoder.encoder.layers[0].self_attn.adapter
    adapter = AdapterFacts(branch.lora_A.weight.shape[0], branch.scale)
    captured = capture_step(decoder.config, getattr(torch, ENGINE_FLOAT[precision]), capacity)
    facts = {"model": decoder.config, "cache_capacity": capacity, "precision": precision, "adapter": adapter}
    plain = PassOptions(role=Role.PREFILL, **facts, **changes)
    graphs = {}
    for role in ALL_ROLES:
        graphs[role] = captured.copy()
        run_pipeline(graphs[role], PIPELINES[target][role], dataclasses.replace(plain, role=role))
    stored = plan_weights(graphs, decoder.config, adapter)
    layouter = WeightLayouter(decoder.config, decoder.state_dict().__getitem__, capacity, adapter)
    folder.mkdir(exist_ok=True)
    for _ in write_weights(folder / WEIGHTS_FILE, stored, layouter):
        pass
    return Engines(folder, role_engines(write_engines(folder, graphs, stored.spans)), stored)
