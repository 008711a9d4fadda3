"""docs/benchmarks.md from the result of `run.py`: every number of the page is one of the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nemodiff_trt.runtime.bench.lookup_verdict import verdict_line
from nemodiff_trt.runtime.bench.settings import MODEL_DRAFTER, REFERENCE

Run = dict[str, Any]
NONE = ""
HEAD = """# Benchmarks
<!-- Written by `make bench`; changes by hand are lost. -->
Made by `make bench` in {minutes:.1f} minutes at commit {commit}. **CPU only: {cpu}, {threads} of {cpus} cores used,
{memory} GiB**, one thread reads {bandwidth} GB/s. No figure of ours on this page comes from a GPU.
`{checkpoint}`: {num_layers} layers of width {hidden_size}, target {target}, {precision}, build `{build_key}`.
{versions}.

All cases answer the same {prompts} held-out prompts ({each} of each category), greedily, at most {max_new_tokens} tokens each.
Lossless cases are compared with `ar` token by token before anything is timed. Times and speeds are of the first {timed}
prompts, and of two for each request at a time, in {repeats} rounds in which cases take turns.

- **tokens/forward**: tokens after the first by engine runs after prefill, causal commits included ([bench.md](bench.md));
  **reference**: all tokens by the published code's own count.
- **computed**: tokens that runs after prefill computed for each token of the answers.
- **accepted**: tokens a speculation cycle, the verifier's own included.
- **first token**: from a request's slot until a caller has it. The engine loop reports at the end of a step, and a step that
  ends a prompt may hold a first cycle, too.
- `prompt_lookup` drafts what followed the last tokens before and verifies with our engine; `transformers` runs the same
  weights, without and with its own look-up.
- The modes `quadratic` ([quadratic.md](quadratic.md)) and `auto` ([planner.md](planner.md)) are measured by commands of their
  own."""


def render_page(result: dict[str, Any], published: str) -> str:
    """The page; `published` is Markdown about figures of others, which comes last and is kept apart."""
    bench = result["bench"]
    alone = [run for run in bench["runs"] if run["concurrency"] == 1]
    sections = [
        _head(result),
        _targets(result["targets"]),
        _counts(alone),
        _times(alone),
        _lookup(bench["lookup_verdicts"]),
        _acceptance(alone),
        _accuracy(alone),
        _concurrency(bench["runs"]),
        _steps(bench["step_times"]),
        _capacities(result["capacity_ms"]),
        published.strip(),
    ]
    return "\n\n".join(sections) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    """Nothing for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _head(result: dict[str, Any]) -> str:
    bench = result["bench"]
    hardware, settings, workload = bench["hardware"], bench["settings"], bench["workloads"][0]
    return HEAD.format(
        minutes=result["seconds"] / 60,
        commit=result["commit"] or "unknown",
        cpu=hardware["cpu"],
        threads=hardware["threads_used"],
        cpus=hardware["cpus"],
        memory=hardware["memory_gib"],
        bandwidth=hardware["read_gb_per_s_one_thread"],
        checkpoint=result["checkpoint"],
        num_layers=bench["bundle"]["num_layers"],
        hidden_size=bench["bundle"]["hidden_size"],
        target=bench["bundle"]["target"],
        precision=bench["bundle"]["precision"],
        build_key=bench["bundle"]["build_key"][:12],
        versions=", ".join(f"{name} {version}" for name, version in bench["versions"].items()),
        prompts=workload["prompts"],
        each=" or ".join(str(count) for count in sorted(set(workload["categories"].values()))),
        max_new_tokens=settings["max_new_tokens"],
        timed=bench["runs"][0]["timed_answers"],
        repeats=settings["num_repeats"],
    )


def _targets(targets: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{target['value']:.3g}",
            f"at least {target['at_least']:g}" if "at_least" in target else f"at most {target['at_most']:g}",
            "yes" if target["met"] else "**no**",
        ]
        for name, target in targets.items()
    ]
    return "## Targets\n" + markdown_table(["target", "measured", "wanted", "met"], rows)


def _counts(runs: Sequence[Run]) -> str:
    heads = ["case", "exact answers", "unlike ar", "tokens/forward", "reference", "computed", "accepted"]
    rows = [
        [
            run["case"],
            percent(run["accuracy"]),
            f"{run['answers_unlike_ar']} of {run['answers']}" + ("" if run["is_lossless"] else ", not lossless"),
            number(run["tokens_per_forward"]),
            number(run["reference_tokens_per_forward"]),
            number(run["computed_tokens"]),
            number(run["acceptance"] and run["acceptance"]["mean"]),
        ]
        for run in runs
    ]
    return "## Modes and baselines: what they emit\n" + markdown_table(heads, rows)


def _times(runs: Sequence[Run]) -> str:
    heads = ["case", "tokens/s of a user", "tokens/s, prefill included", "speed over ar"]
    heads += ["first token, ms", "p95", "between tokens, ms", "p95", "prefill, s", "decode, s", "in the engine"]
    rows = [
        [
            run["case"],
            number(run["user_tokens_per_second"], 0),
            number(run["system_tokens_per_second"], 0),
            number(run["speed_over_ar"]),
            *(number(run["time_to_first_token_ms"][share], 1) for share in ("p50", "p95")),
            *(number(run["inter_token_ms"] and run["inter_token_ms"][share]) for share in ("p50", "p95")),
            number(run["prefill_s"]),
            number(run["decode_s"]),
            percent(run["engine_share"]),
        ]
        for run in runs
    ]
    return "## Modes and baselines: how long they take, one request at a time\n" + markdown_table(heads, rows)


def _lookup(verdicts: Sequence[dict[str, Any]]) -> str:
    heads = ["category"]
    for verdict in verdicts:
        heads += [f"B={verdict['block_length']}: self_speculation", "prompt_lookup"]
    names = dict.fromkeys(name for verdict in verdicts for name in verdict["categories"])
    rows = []
    for name in [*names, "all"]:
        row = [name]
        for verdict in verdicts:
            pair = verdict if name == "all" else verdict["categories"].get(name, {})
            wins = name in verdict["lookup_wins"]
            values = [number(pair.get(key)) for key in ("self_speculation", "prompt_lookup")]
            row += [values[0], f"**{values[1]}**" if wins else values[1]]
        rows.append(row)
    lines = "\n".join(f"- {verdict_line(verdict)}" for verdict in verdicts)
    return (
        "## Own drafts and look-up drafts: tokens per forward\nBoth with our verifier; in bold where look-up is not beaten.\n"
        f"{lines}\n\n{markdown_table(heads, rows)}"
    )


# Drafts accepted in a cycle, first and last of a column.
_BINS = ((0, 0), (1, 3), (4, 6), (7, 14), (15, 30), (31, 31))


def _acceptance(runs: Sequence[Run]) -> str:
    parts = ["## Acceptance of own drafts\nTokens a cycle, and the share of cycles by the number of drafts accepted."]
    for run in runs:
        if run["drafter"] != MODEL_DRAFTER or not run["acceptance"]:
            continue
        most = len(run["acceptance"]["histogram"]) - 1
        columns = [(first, min(last, most)) for first, last in _BINS if first <= most]
        heads = ["category", "cycles", "tokens a cycle", *(f"{a}" if a == b else f"{a} to {b}" for a, b in columns)]
        found = {name: numbers["acceptance"] for name, numbers in run["categories"].items()} | {"all": run["acceptance"]}
        rows = [
            [
                name,
                str(each["cycles"]),
                number(each["mean"]),
                *(percent(sum(each["histogram"][a : b + 1]) / each["cycles"]) for a, b in columns),
            ]
            for name, each in found.items()
            if each
        ]
        parts.append(f"{run['case']}:\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(parts)


def _accuracy(runs: Sequence[Run]) -> str:
    """Of `ar`, which stands for all lossless cases, and of the others."""
    shown = [run for run in runs if run["case"] == REFERENCE or not run["is_lossless"]]
    rows = [[name, *(percent(run["categories"][name]["accuracy"]) for run in shown)] for name in shown[0]["categories"]]
    rows.append(["all", *(percent(run["accuracy"]) for run in shown)])
    return "## Exact answers by category\nCases equal to `ar` are right where it is.\n\n" + markdown_table(
        ["category", *(run["case"] for run in shown)], rows
    )


def _concurrency(runs: Sequence[Run]) -> str:
    levels = sorted({run["concurrency"] for run in runs})
    by_key = {(run["case"], run["concurrency"]): run for run in runs}
    rows = []
    for name in dict.fromkeys(run["case"] for run in runs):
        found = [by_key.get((name, level)) for level in levels]
        if None not in found:
            rows.append([name, *(_speeds(run) for run in found if run is not None)])
    return (
        "## Requests at a time\nTokens/s of the system / of a user / speed over `ar` with as many requests at a time.\n\n"
        + markdown_table(["case", *(f"{level} at a time" for level in levels)], rows)
    )


def _speeds(run: Run) -> str:
    system, user = (number(run[f"{who}_tokens_per_second"], 0) for who in ("system", "user"))
    return f"{system} / {user} / {number(run['speed_over_ar'])}"


def _steps(steps: Sequence[dict[str, Any]]) -> str:
    lengths = sorted({step["step"] for step in steps})
    found = {(step["role"], step["batch"], step["step"]): step["ms"] for step in steps}
    rows = [
        [f"{role}, {batch}", *(number(found.get((role, batch, length))) for length in lengths)]
        for role, batch in dict.fromkeys((step["role"], step["batch"]) for step in steps)
    ]
    table = markdown_table(["role, sequences", *(f"S={length}" for length in lengths)], rows)
    how = f"Milliseconds of a run after others like it, behind {steps[0]['history']:.0f} tokens, by tokens of a sequence."
    return f"## One engine run\n{how}\n\n{table}"


def _capacities(rows: Sequence[dict[str, Any]]) -> str:
    capacities = sorted({row["capacity"] for row in rows})
    found = {(row["step"], row["capacity"]): row["ms"] for row in rows}
    lines = [
        [f"S={step}", *(number(found[step, each]) for each in capacities)] for step in sorted({row["step"] for row in rows})
    ]
    table = markdown_table(["", *(f"{each} slots" for each in capacities)], lines)
    return f"The same behind {rows[0]['used_tokens']} tokens, one sequence, in caches of other capacity:\n\n{table}"
