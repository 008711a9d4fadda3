"""A result file as one page: tables and plots, nothing loaded from anywhere, right in light and dark."""

from __future__ import annotations

from html import escape
from typing import Any

from nemodiff_trt.runtime.bench.lookup_verdict import verdict_line
from nemodiff_trt.runtime.bench.plots import PLOTS
from nemodiff_trt.runtime.bench.result_file import Result

_COLUMNS = (
    ("workload", "workload"), ("case", "case"), ("at a time", "concurrency"), ("tokens/forward", "tokens_per_forward"),
    ("as the reference counts", "reference_tokens_per_forward"), ("accepted a cycle", "acceptance.mean"),
    ("exact answers", "accuracy"), ("answers unlike ar", "answers_unlike_ar"), ("tokens/s of a user", "user_tokens_per_second"),
    ("tokens/s of the system", "system_tokens_per_second"), ("speed over ar", "speed_over_ar"),
    ("first token, ms", "time_to_first_token_ms.p50"), ("between tokens, ms", "inter_token_ms.p50"),
    ("prefill, s", "prefill_s"), ("decode, s", "decode_s"),
)  # fmt: skip
_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --grid: #d5dae0; --series-0: #0b62c4; --series-1: #b3420a;
  --series-2: #1a7f45; --series-3: #8a3ab9; --series-4: #8a6a00; --series-5: #b3246b; --series-6: #0a7a86;
  --series-7: #5b6470; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e8eaed; --grid: #3a4149; --series-0: #6cb0ff;
  --series-1: #ff9a5c; --series-2: #5fd38d; --series-3: #cf9bf5; --series-4: #e0c050; --series-5: #ff85bd; --series-6: #5ad0dd;
  --series-7: #a9b3be; } }
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: right; } th { vertical-align: bottom; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; } svg { width: 100%; max-width: 60rem; height: auto; }
"""


def render(result: Result) -> str:
    """The page."""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title, _ in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(field, run))}</td>" for _, field in _COLUMNS) + "</tr>" for run in result["runs"]
    )
    drawn = ((title, plot(result)) for title, plot in PLOTS)
    plots = "".join(f"<section><h2>{escape(title)}</h2>{svg}</section>" for title, svg in drawn if svg)
    verdicts = "".join(_verdict_section(verdict) for verdict in result["lookup_verdicts"])
    bundle, hardware = result["bundle"], result["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    facts = (
        f"{result['device']}: {hardware['cpu']}, {hardware['threads_used']} threads used. Target {bundle['target']},"
        f" {bundle['precision']}, {bundle['num_layers']} layers of width {bundle['hidden_size']}, build"
        f" {bundle['build_key'][:12]}. {versions}."
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><title>nemodiff bench</title><style>{_CSS}</style></head><body><main>'
        f'<h1>nemodiff bench</h1><p>{escape(facts)}</p><div class="wide" tabindex="0" role="region" aria-label="Results">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{verdicts}{plots}</main></body></html>\n"
    )


def _verdict_section(verdict: dict[str, Any]) -> str:
    """Drafts of the model against look-up, category by category."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{'prompt_lookup' if name in verdict['lookup_wins'] else 'self_speculation'}</td>"
        f"<td>{pair['self_speculation']:.2f}</td><td>{pair['prompt_lookup']:.2f}</td></tr>"
        for name, pair in verdict["categories"].items()
    )
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("category", "wins", "self_speculation", "prompt_lookup"))
    return (
        f"<section><h2>Drafts of the model and look-up, B={verdict['block_length']}: tokens per forward</h2>"
        f'<p>{escape(verdict_line(verdict))}.</p><div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _shown(field: str, run: dict[str, Any]) -> str:
    """The value that a path of names leads to."""
    value: Any = run
    for name in field.split("."):
        value = None if value is None else value[name]
    if value is None:
        return "-"
    if field == "accuracy":
        return f"{value:.1%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
