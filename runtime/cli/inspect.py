"""`nemodiff inspect`: what a bundle holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import AuditError, InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.contract import TensorSpec
    from nemodiff_trt.plan_audit.bundle_audit import BundleAudit


def inspect(
    path: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder of the bundle.")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="The same as an option.")] = None,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on any warning of the plan audit.")] = False,
) -> None:
    """Print roles, files, shapes, sizes, pass report and plan audit of a bundle; compares sizes of files, not checksums."""
    from nemodiff_trt.bundle import Bundle as OpenedBundle
    from nemodiff_trt.runtime.cli.output import write_json

    if (path is None) == (bundle is None):
        raise InvalidInputError("bundle", str(path), "the folder of one bundle")
    facts = describe(OpenedBundle.open(path or bundle or "", verify=False))
    if as_json:
        write_json(facts)
    else:
        _print(facts)
    warnings = facts["audit"]["warnings"] if facts["audit"] else []
    if strict and warnings:
        raise AuditError(f"{facts['path']}: {len(warnings)} warnings, the first: {warnings[0]}")


def describe(bundle: Bundle) -> dict[str, Any]:
    """Facts of a bundle as JSON values. Plans are audited now, not taken from the report."""
    from nemodiff_trt.plan_audit.bundle_audit import audit_bundle

    manifest = bundle.manifest
    audit = audit_bundle(bundle)
    return {
        "path": str(bundle.path),
        "target": str(manifest.target),
        "precision": str(manifest.precision),
        "modes": [str(mode) for mode in manifest.modes],
        "limits": {**dataclasses.asdict(manifest.limits), "cache_capacity": manifest.limits.cache_capacity},
        "model": manifest.model.to_dict(),
        "adapter": dataclasses.asdict(manifest.adapter) if manifest.adapter else None,
        "build_key": manifest.build_key,
        "tool_versions": manifest.tool_versions,
        "roles": _roles(bundle),
        "operators": manifest.operators,
        "files": {name: entry.num_bytes for name, entry in sorted(manifest.files.items())},
        "num_bytes": sum(entry.num_bytes for entry in manifest.files.values()),
        "cache_bytes_per_sequence": _cache_bytes(bundle),
        "sms": list(manifest.sms),
        "has_weights": manifest.has_weights,
        "audit": audit.to_dict() if audit else None,
        "predicted_memory": _predicted_memory(bundle, audit) if audit else None,
        "report": bundle.report(),
    }


def _predicted_memory(bundle: Bundle, audit: BundleAudit) -> dict[str, Any]:
    """Device memory of a session by batch size; that of activations is an estimate from the programs of the plans."""
    from nemodiff_trt.runtime.tensorrt_bindings import predict_memory

    points = [point for plan in audit.plans.values() for profile in plan.profiles for point in profile.points]
    predicted = {}
    for batch in sorted({1, bundle.manifest.limits.max_batch_size}):
        activations = max((p.peak_activation_bytes for p in points if p.point.batch <= batch), default=0)
        predicted[batch] = dataclasses.replace(predict_memory(bundle.manifest, batch), activations=activations)
    return {str(batch): {**dataclasses.asdict(memory), "total": memory.total} for batch, memory in predicted.items()}


def _roles(bundle: Bundle) -> dict[str, Any]:
    from nemodiff_trt.contract import step_contract
    from nemodiff_trt.vocabulary import Role

    manifest = bundle.manifest
    found = {}
    for role, engine in sorted(manifest.roles.items(), key=lambda item: list(Role).index(item[0])):
        contract = step_contract(role, manifest.model, manifest.compute_precision, manifest.keep_logits)
        found[str(role)] = {
            "file": engine.file,
            "num_bytes": manifest.files[engine.file].num_bytes,
            "shared_with": [str(other) for other in engine.shared_with],
            "inputs": [_tensor(spec) for spec in contract.inputs],
            "outputs": [_tensor(spec) for spec in contract.outputs],
        }
    return found


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "alias_of": spec.alias_of}


def _cache_bytes(bundle: Bundle) -> int:
    from nemodiff_trt.contract import ENGINE_FLOAT, ITEM_BYTES

    manifest = bundle.manifest
    item_bytes = ITEM_BYTES[ENGINE_FLOAT[manifest.compute_precision]]
    slots = manifest.limits.cache_capacity * manifest.model.num_hidden_layers
    return 2 * slots * manifest.model.key_value_width * item_bytes


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    console = Console(highlight=False)
    limits, model = facts["limits"], facts["model"]
    console.print(f"[bold]{facts['path']}[/]  {facts['target']} {facts['precision']}, {decimal(facts['num_bytes'])}")
    rows = {
        "modes": ", ".join(facts["modes"]),
        "model": f"{model['num_hidden_layers']} layers, hidden {model['hidden_size']}, heads {model['num_attention_heads']}/"
        f"{model['num_key_value_heads']} of {model['head_dim']}, vocabulary {model['vocab_size']}",
        "adapter": f"rank {facts['adapter']['rank']}, scale {facts['adapter']['scale']:g}" if facts["adapter"] else "none",
        "limits": f"{limits['max_batch_size']} sequences of {limits['max_seq_len']} tokens, "
        f"blocks to {limits['block_length']}, prefill chunks of {limits['prefill_chunk']}",
        "cache": f"{decimal(facts['cache_bytes_per_sequence'])} a sequence, {limits['cache_capacity']} slots",
        "operators": _realised(facts["operators"]),
        "build key": facts["build_key"],
        "built with": ", ".join(f"{name} {version}" for name, version in facts["tool_versions"].items()),
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        grid.add_row(f"[dim]{name}[/]", value)
    console.print(grid)
    roles = Table("role", "engine", "size", "inputs", "outputs", title="roles", title_justify="left")
    for name, role in facts["roles"].items():
        sides = (_shapes(role[side]) for side in ("inputs", "outputs"))
        roles.add_row(name, role["file"].removeprefix("engines/"), decimal(role["num_bytes"]), *sides)
    console.print(roles)
    cache = next(tensor for tensor in next(iter(facts["roles"].values()))["outputs"] if tensor["alias_of"])
    shape = ",".join(map(str, cache["shape"]))
    console.print(
        f"and per layer past_key_*, past_value_* {cache['dtype']}[{shape}], updated in place as present_*",
        style="dim",
        markup=False,
    )
    files = Table("file", "size", title="files", title_justify="left")
    for name, num_bytes in facts["files"].items():
        files.add_row(name, decimal(num_bytes))
    console.print(files)
    _print_passes(console, facts["report"])
    if facts["audit"]:
        _print_audit(console, facts)


def _realised(operators: dict[str, str]) -> str:
    """What realises operators, and which."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in operators.items():
        by_kind.setdefault(kind, []).append(name)
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())


def _print_audit(console: Console, facts: dict[str, Any]) -> None:
    from rich.filesize import decimal

    from nemodiff_trt.runtime.cli.audit_view import print_audit

    for role, audit in facts["audit"]["roles"].items():
        print_audit(console, facts["roles"][role]["file"], audit)
    memory = facts["audit"]["weight_memory"]
    console.print(
        f"weights of all roles {decimal(memory['num_bytes'])}, {memory['ratio']:.3f} times one copy;"
        f" compiled for {', '.join(f'SM{sm}' for sm in facts['sms'])}"
    )
    for batch, parts in facts["predicted_memory"].items():
        console.print(f"[dim]predicted device memory for {batch} sequences: {decimal(parts['total'])}[/]")


def _shapes(tensors: list[dict[str, Any]]) -> str:
    """One line a tensor, without the caches."""
    shown = [tensor for tensor in tensors if tensor["alias_of"] is None and not tensor["name"].startswith("past_")]
    # A bracket opens a style tag in rich markup.
    return "\n".join(f"{item['name']} {item['dtype']}\\[{','.join(map(str, item['shape']))}]" for item in shown)


def _print_passes(console: Console, report: dict[str, Any]) -> None:
    """How often each pass fired for each role, and what the build took."""
    from rich.filesize import decimal
    from rich.table import Table

    passes = report["passes"]
    names = dict.fromkeys(entry["name"] for entries in passes.values() for entry in entries)
    table = Table("pass", *passes, title="passes, times fired", title_justify="left")
    for name in names:
        counts = [next((str(entry["count"]) for entry in entries if entry["name"] == name), "") for entries in passes.values()]
        table.add_row(name, *counts)
    console.print(table)
    seconds = sum(report["stage_seconds"].values())
    console.print(f"[dim]built in {seconds:.1f} s, peak memory {decimal(report['peak_memory_bytes'])}[/]")
