"""The audit of compiled plans as text: a table of steps, the kernels that move too much, and the findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"warning": "yellow", "info": "dim"}
_MAX_OFFENDERS = 4


def print_audit(console: Console, title: str, audit: Mapping[str, Any]) -> None:
    """Print one plan's audit.

    Args:
        console: where to.
        title: what the plan is, for instance its file in the bundle.
        audit: `PlanAudit.to_dict()`, fresh or as a bundle's report stores it.
    """
    from rich.filesize import decimal
    from rich.markup import escape

    sizes = f"{decimal(audit['plan_bytes'])}, {decimal(audit['constant_bytes'])} of it constants"
    console.print(f"[bold]{escape(title)}[/]  {escape(audit['role'])}, {sizes}")
    if audit["profiles"]:
        _print_steps(console, audit["profiles"])
        _print_offenders(console, audit["profiles"])
    _print_findings(console, audit["findings"])


def _print_steps(console: Console, profiles: list[dict[str, Any]]) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("profile", "B x S", "in cache", "launches", "GEMMs", "attention", "needed", "moved", "ratio")
    for profile in profiles:
        launches = f"{profile['launches']} ({profile['launches_per_layer']:.1f} a layer)"
        kernels = (launches, _counts(profile["gemms"]), _counts(profile["attention"]))
        if not profile["points"]:
            table.add_row(str(profile["profile"]), "", "", *kernels, "", "", "")
        for index, point in enumerate(profile["points"]):
            needed = point["needed_bytes"]["total"] - point["needed_bytes"]["activations"]
            table.add_row(
                str(profile["profile"]) if index == 0 else "",
                f"{point['batch']} x {point['step']}",
                str(point["cache_tokens"]),
                *(kernels if index == 0 else ("", "", "")),
                decimal(needed),
                decimal(point["moved_bytes"]["total"]),
                f"{point['ratio']:.3f}",
            )
    console.print(table)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _print_offenders(console: Console, profiles: list[dict[str, Any]]) -> None:
    """Of the step with the highest ratio: what it moves beyond weights and cache."""
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    points = [point for profile in profiles for point in profile["points"]]
    if not points:
        return
    worst = max(points, key=lambda point: float(point["ratio"]))
    title = f"bytes beyond weights and used cache, B = {worst['batch']}, S = {worst['step']}"
    table = Table("kernel", "launches", "moved", "beyond", title=title, title_justify="left")
    for offender in worst["offenders"][:_MAX_OFFENDERS]:
        moved, beyond = decimal(offender["num_bytes"]), decimal(offender["excess_bytes"])
        table.add_row(escape(offender["name"]), str(offender["launches"]), moved, beyond)
    console.print(table)


def _print_findings(console: Console, findings: list[dict[str, Any]]) -> None:
    from rich.markup import escape

    if not findings:
        console.print("[green]no findings[/]")
    for finding in findings:
        where = "" if finding["profile"] is None else f" profile {finding['profile']}"
        style = _STYLES.get(finding["severity"], "")
        console.print(f"[{style}]{finding['severity']}[/] [bold]{finding['code']}[/]{where}: {escape(finding['message'])}")
        if finding["names"]:
            console.print(f"  {escape(', '.join(finding['names']))}", style="dim")
