"""Bundles of the TensorRT-RTX target whose plans the fake module runs: the weights of a CPU bundle under another manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle import Bundle, RoleEngine, StepProfile
from nemodiff_trt.contract import TensorSpec, scaled_query
from nemodiff_trt.vocabulary import Role, Target
from support.bundles import copy_bundle, rewrite_manifest
from support.fake_tensorrt import VERSION, Plan

# Limits of `support.bundles.build_bundle`: 4 rows, blocks of 8, prefill chunks of 16. One and several rows apart, as the real
# target does; decode and verify are profiles of one plan; prefill has a narrow profile inside a wide one.
_CAUSAL = (StepProfile(1, 1, 1, 1), StepProfile(2, 4, 1, 1), StepProfile(1, 1, 2, 8), StepProfile(2, 4, 2, 8))
_PROFILES: dict[str, tuple[tuple[Role, ...], tuple[StepProfile, ...]]] = {
    "prefill": ((Role.PREFILL,), (StepProfile(1, 4, 1, 16), StepProfile(1, 1, 16, 16))),
    "causal": ((Role.DECODE, Role.VERIFY), _CAUSAL),
    "denoise": ((Role.DENOISE,), (StepProfile(1, 1, 1, 8), StepProfile(2, 4, 1, 8))),
    "draft": ((Role.DRAFT,), (StepProfile(1, 4, 1, 8),)),
    # Of blocks of 4, if the bundle has the role.
    "quadratic": ((Role.QUADRATIC,), (StepProfile(1, 4, 1, 20),)),
}


def make_gpu_bundle(cpu_bundle: Path, output: Path, **changes: Any) -> Path:
    """Copy `cpu_bundle` to `output` as one for SM120 and SM121; `changes` are fields of the manifest."""
    folder = copy_bundle(cpu_bundle, output)
    manifest = Bundle.open(folder, verify=False).manifest
    shutil.rmtree(folder / "engines")
    (folder / "engines").mkdir()
    model, roles = manifest.model, {}
    query = ("B", model.num_attention_heads, "S", model.head_dim)
    scratch = tuple(TensorSpec(scaled_query(layer), "float32", query) for layer in range(model.num_hidden_layers))
    for name, (served, profiles) in _PROFILES.items():
        if not manifest.roles.keys() & set(served):
            continue
        file = f"engines/{name}.plan"
        Plan(served[-1], profiles).write(folder / file)
        for role in served:
            others = tuple(other for other in served if other is not role)
            roles[role] = RoleEngine(file, others, profiles, tuple(manifest.weights), scratch)
    facts = {"target": Target.TENSORRT_RTX, "sms": (120, 121), "tool_versions": {"tensorrt-rtx-cu13": VERSION}, "roles": roles}
    rewrite_manifest(folder, **{**facts, **changes})
    return folder
