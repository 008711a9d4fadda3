"""What quantisation does to answers and to speculation, per mode: FP8 and NVFP4 emulated on the CPU against fp32 and fp16.

Every variant is built from nemodiff-tiny and answers the same held-out problems in all modes. Reported: share of exact answers,
tokens per forward, tokens accepted per cycle, where answers leave those of fp32 in the same mode, and whether self_speculation
gives the tokens of ar of the same bundle. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.evaluation import ModeScore, answer_problems, score
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.training.problems import Problem, held_out_problems

SEED = 9_000_001
BATCH_SIZE = 8
REFERENCE = "fp32"
RUNS = {
    "ar": GenerationOptions(mode="ar"),
    "self_speculation": GenerationOptions(mode="self_speculation", block_length=32),
    "diffusion": GenerationOptions(mode="diffusion", block_length=16, threshold=0.9),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Precision of a bundle, of its drafter if that differs, and lines of a recipe."""

    precision: str
    draft_precision: str = ""
    recipe: str = ""


VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant("fp32"),
    "fp16": Variant("fp16"),
    "fp8": Variant("fp8"),
    "nvfp4": Variant("nvfp4"),
    "nvfp4 draft, fp8 verify": Variant("fp8", "nvfp4"),
    "nvfp4 draft, fp32 verify": Variant("fp32", "nvfp4"),
    "fp8, percentile": Variant("fp8", recipe="activations: percentile\n"),
    "nvfp4, percentile": Variant("nvfp4", recipe="activations: percentile\n"),
    "nvfp4, mse": Variant("nvfp4", recipe="weights: mse\n"),
    "nvfp4, down_proj fp8": Variant("nvfp4", recipe='overrides: {"*.down_proj": fp8}\n'),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant in one mode. `same_as_fp32` is the share of equal answers; divergences are indices of tokens."""

    variant: str
    mode: str
    score: ModeScore
    same_as_fp32: float
    median_divergence: float | None
    differs_from_ar: int | None


def build(folder: Path, index: int, variant: Variant) -> TriModeLM:
    """Ranges are those of the first build that needs them, unless the recipe takes them in another way."""
    output, calibration = folder / f"{index}.bundle", folder / "calibration.json"
    command = [sys.executable, "-m", "nemodiff_trt.build_engines", "--checkpoint", "nemodiff-tiny", "--target", "onnxruntime"]
    command += ["--precision", variant.precision, "--max-seq-len", "512", "--output", str(output), "--json"]
    if variant.draft_precision:
        command += ["--draft-precision", variant.draft_precision]
    if variant.recipe:
        recipe = folder / f"{index}.yaml"
        recipe.write_text(variant.recipe, encoding="utf-8")
        command += ["--recipe", str(recipe)]
    is_quantized = {variant.precision, variant.draft_precision} & {"fp8", "nvfp4"}
    takes_maxima = is_quantized and "percentile" not in variant.recipe
    if takes_maxima and calibration.exists():
        command += ["--calibration", str(calibration)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if takes_maxima:
        calibration.write_bytes((output / "calibration.json").read_bytes())
    return TriModeLM.from_bundle(output)


def answer(model: TriModeLM, problems: Sequence[Problem], options: GenerationOptions) -> tuple[list[GenerationResult], float]:
    results: list[GenerationResult] = []
    seconds = 0.0
    for start in range(0, len(problems), BATCH_SIZE):
        batch, batch_seconds = answer_problems(model, problems[start : start + BATCH_SIZE], options)
        results += batch
        seconds += batch_seconds
    return results, seconds


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token that differs, None if there is none."""
    if tuple(ours) == tuple(theirs):
        return None
    return next(
        (index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs))
    )


def measure(model: TriModeLM, name: str, problems: Sequence[Problem], wanted: dict[str, list[tuple[int, ...]]]) -> list[Row]:
    """Rows of one variant. `wanted` holds the answers of fp32 by mode; it is filled by the first variant."""
    rows, of_ar = [], []
    for mode, options in RUNS.items():
        results, seconds = answer(model, problems, options)
        tokens = [tuple(result.token_ids) for result in results]
        wanted.setdefault(mode, tokens)
        places = [first_divergence(ours, theirs) for ours, theirs in zip(tokens, wanted[mode], strict=True)]
        diverging = [place for place in places if place is not None]
        if mode == "ar":
            of_ar = tokens
        differing = sum(a != b for a, b in zip(tokens, of_ar, strict=True)) if mode == "self_speculation" else None
        rows.append(
            Row(
                name,
                mode,
                score(model.tokenizer, problems, results, seconds),
                1 - len(diverging) / len(problems),
                statistics.median(diverging) if diverging else None,
                differing,
            )
        )
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(title=f"nemodiff-tiny, {rows[0].score.num_problems} held-out problems, formats emulated on the CPU")
    for heading in ("variant", "mode", "accuracy", "tokens/forward", "accepted", "answers of fp32", "diverges at", "not ar"):
        table.add_column(heading, justify="left" if heading in ("variant", "mode") else "right")
    for row in rows:
        accepted = "-" if row.score.mean_accepted is None else f"{row.score.mean_accepted:.2f}"
        diverges = "-" if row.median_divergence is None else f"{row.median_divergence:.0f}"
        table.add_row(
            row.variant,
            row.mode,
            f"{row.score.accuracy:.1%}",
            f"{row.score.tokens_per_forward:.2f}",
            accepted,
            f"{row.same_as_fp32:.1%}",
            diverges,
            "-" if row.differs_from_ar is None else str(row.differs_from_ar),
        )
    return table


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy, tokens per forward and accepted tokens by variant, a bar a mode."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "nemodiff"
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row.variant for row in rows))
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.32 * len(names) + 1.4), sharey=True)
    views: tuple[tuple[str, Any], ...] = (
        ("exact answers", lambda row: row.score.accuracy),
        ("tokens per forward", lambda row: row.score.tokens_per_forward),
        ("tokens accepted per cycle", lambda row: row.score.mean_accepted),
    )
    height = 0.8 / len(RUNS)
    for axis, (title, value) in zip(axes, views, strict=True):
        for place, mode in enumerate(RUNS):
            points = [(names.index(row.variant) + place * height, value(row)) for row in rows if row.mode == mode]
            known = [(y, width) for y, width in points if width is not None]
            if known:
                axis.barh([y for y, _ in known], [width for _, width in known], height, label=mode, color=f"C{place}")
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks([index + height for index in range(len(names))], names)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def targets(rows: Sequence[Row]) -> dict[str, bool]:
    """What this repository promises, and whether it held."""
    accuracy = {(row.variant, row.mode): row.score.accuracy for row in rows}
    return {
        f"fp8_within_1_point_of_fp32_{mode}": accuracy["fp8", mode] >= accuracy[REFERENCE, mode] - 0.01
        for mode in RUNS
        if ("fp8", mode) in accuracy
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=320)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    problems = held_out_problems(arguments.num_prompts, SEED)
    rows: list[Row] = []
    wanted: dict[str, list[tuple[int, ...]]] = {}
    names = list(dict.fromkeys([REFERENCE, *arguments.variants]))
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(names):
            found = measure(build(Path(folder), index, VARIANTS[name]), name, problems, wanted)
            rows += found
            for row in found:
                print(f"{name} {row.mode}: {row.score.accuracy:.4f} {row.score.tokens_per_forward:.3f}", file=sys.stderr)
    Console().print(table_of(rows))
    if arguments.plot:
        plot(rows, arguments.plot)
    print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "targets": targets(rows)}))


if __name__ == "__main__":
    main()
