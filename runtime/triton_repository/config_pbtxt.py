"""`config.pbtxt` of a served bundle."""

from __future__ import annotations

import json

from nemodiff_trt.bundle import Manifest
from nemodiff_trt.runtime.triton_repository.fields import Field, inputs, outputs
from nemodiff_trt.runtime.triton_repository.settings import ServingSettings


def config_pbtxt(name: str, manifest: Manifest, settings: ServingSettings) -> str:
    """Text of the file.

    Batches are made by the engine loop from the requests of all clients, so Triton itself makes none (`max_batch_size` 0) and
    there is one instance: a second one would be a second copy of the model.
    """
    group = "kind: KIND_GPU count: 1 gpus: [ 0 ]" if manifest.target.is_for_gpu else "kind: KIND_CPU count: 1"
    limits = manifest.limits
    lines = [
        f"# {manifest.target} {manifest.precision}, modes {', '.join(manifest.modes)}. Build {manifest.build_key}.",
        f"# Prompt and answer together: at most {limits.max_seq_len} tokens. Blocks: at most {limits.block_length} tokens.",
        f"name: {_quoted(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        f"instance_group [ {{ {group} }} ]",
        "# Exactly one prompt; every other input may be left out.",
        _tensors("input", inputs(settings.variant), " optional: true"),
        _tensors("output", outputs(settings.variant), ""),
    ]
    for key, value in settings.to_parameters().items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _tensors(group: str, fields: tuple[Field, ...], more: str) -> str:
    entries = [
        f"  {{ name: {_quoted(field.name)} data_type: {field.kind.triton_type} dims: [ {field.dims} ]{more} }}"
        for field in fields
    ]
    return f"{group} [\n" + ",\n".join(entries) + "\n]"


def _quoted(text: str) -> str:
    # Strings of the text format are UTF-8 and escape quotes, backslashes and line ends as JSON does.
    return json.dumps(text, ensure_ascii=False)
