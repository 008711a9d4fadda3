"""Accuracy against tokens per forward of block diffusion: thresholds of confidence, and of a learned sampler's score.

Answers held-out problems at every threshold. A forward is an engine run after prefill; the sampler's own is none, so its
cost is stated as a share of the denoising step it follows. The gain of a block length is the largest ratio of tokens per
forward between a sampler threshold and the fastest plain threshold that is at least as accurate; it counts only where the
plain curve reaches that accuracy at all. Both points answer the same prompts, so the sampling error of the ratio and of the
difference in right answers is bootstrapped over prompts, in pairs; that the pair was picked as the best of many is not in
these intervals. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bundles import build
from measure import hardware, interleaved, median_ms, versions
from step_times import USED_TOKENS, step_cases

from nemodiff_trt.runtime.evaluation import answer_problems, final_text
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.training.problems import Problem, held_out_problems
from nemodiff_trt.vocabulary import Role

SEED = 9_000_001
BLOCK_LENGTHS = (8, 16, 32)
PLAIN = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.998)
LEARNED = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
WANTED_GAIN = 1.15
NUM_TIMED = 300
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """One threshold; by problem: whether it is right, the tokens after the first, the forwards after prefill."""

    block_length: int
    is_learned: bool
    threshold: float
    right: np.ndarray
    tokens: np.ndarray
    forwards: np.ndarray

    @property
    def num_right(self) -> int:
        return int(self.right.sum())

    @property
    def tokens_per_forward(self) -> float:
        return float(self.tokens.sum() / self.forwards.sum())

    def to_json(self) -> dict[str, float]:
        names = ("block_length", "is_learned", "threshold", "num_right", "tokens_per_forward")
        return {name: getattr(self, name) for name in names}


def measure(model: TriModeLM, problems: Sequence[Problem], block_length: int, is_learned: bool, threshold: float) -> Point:
    options = GenerationOptions(
        mode="diffusion", block_length=block_length, threshold=threshold, learned_sampler=is_learned, max_new_tokens=256
    )
    results, _ = answer_problems(model, problems, options)
    texts = [final_text(model.tokenizer, result.token_ids) for result in results]
    point = Point(
        block_length,
        is_learned,
        threshold,
        right=np.array([problem.is_correct(text) for problem, text in zip(problems, texts, strict=True)]),
        tokens=np.array([result.stats.new_tokens - 1 for result in results]),
        forwards=np.array([result.stats.forward_passes for result in results]),
    )
    # Every block costs at least one denoising run, and one commit but for the last.
    if not 0 < point.tokens_per_forward < block_length:
        raise RuntimeError(f"{point.tokens_per_forward} tokens per forward in blocks of {block_length}")
    return point


def curves(model: TriModeLM, problems: Sequence[Problem], block_lengths: Sequence[int]) -> Iterator[Point]:
    for block_length in block_lengths:
        for is_learned, thresholds in ((False, PLAIN), (True, LEARNED)):
            for threshold in thresholds:
                point = measure(model, problems, block_length, is_learned, threshold)
                name = "sampler" if is_learned else "plain"
                print(
                    f"block {block_length:2d} {name:7s} {threshold:5.3f}: {point.num_right:4d}/{len(problems)} right, "
                    f"{point.tokens_per_forward:.3f} tokens per forward",
                    flush=True,
                )
                yield point


def gain(points: Sequence[Point], block_length: int) -> tuple[float, Point, Point] | None:
    """Largest ratio at equal accuracy, with the two points it is of: (ratio, learned, plain).

    Compares the accuracies the plain curve has: the fastest threshold of either kind that reaches each. None where the sampler
    reaches none of them.
    """
    own = [point for point in points if point.block_length == block_length]
    plain, learned = ([point for point in own if point.is_learned is kind] for kind in (False, True))
    best = None
    # Less accurate than nine tenths of the best is no setting anyone would choose.
    floor = 0.9 * max(point.num_right for point in plain)
    for target in plain:
        if target.num_right < floor:
            continue
        rivals = [point for point in plain if point.num_right >= target.num_right]
        reached = [point for point in learned if point.num_right >= target.num_right]
        if not reached:
            continue
        rival, mine = (max(found, key=lambda point: point.tokens_per_forward) for found in (rivals, reached))
        ratio = mine.tokens_per_forward / rival.tokens_per_forward
        if best is None or ratio > best[0]:
            best = (ratio, mine, rival)
    return best


def intervals(learned: Point, plain: Point) -> dict[str, list[float]]:
    """2.5 and 97.5 % of the ratio of tokens per forward and of the difference in right answers, over resampled prompts."""
    picked = np.random.default_rng(1).integers(len(plain.right), size=(NUM_RESAMPLES, len(plain.right)))
    mine, rival = (point.tokens[picked].sum(1) / point.forwards[picked].sum(1) for point in (learned, plain))
    more_right = (learned.right.astype(int) - plain.right.astype(int))[picked].sum(1)
    ends = [2.5, 97.5]
    return {"ratio": np.percentile(mine / rival, ends).tolist(), "more_right": np.percentile(more_right, ends).tolist()}


def sampler_cost(model: TriModeLM, sampler: LearnedSampler, block_length: int) -> dict[str, float]:
    """Milliseconds of a denoising step and of scoring it, and the share."""
    step = step_cases(model.session, [(Role.DENOISE, block_length, 1)], USED_TOKENS)
    settings, rng = sampler.settings, np.random.default_rng(1)
    block = np.full(block_length, settings.mask_token_id)
    logits = rng.standard_normal((block_length, settings.vocab_size)).astype(np.float32)
    cases = {"denoise": next(iter(step.values())), "sampler": lambda: sampler.scores(block, logits)}
    seconds = interleaved(cases, NUM_TIMED, num_warmup=20)
    share = statistics.median(own / run for own, run in zip(seconds["sampler"], seconds["denoise"], strict=True))
    times = {f"{name}_ms": median_ms(values) for name, values in seconds.items()}
    return {"block_length": block_length, **times, "share_of_step": share}


def plot(points: Sequence[Point], num_problems: int, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    block_lengths = sorted({point.block_length for point in points})
    figure = Figure(figsize=(4 * len(block_lengths), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(block_lengths), sharey=True, squeeze=False)[0]
    for axes, block_length in zip(all_axes, block_lengths, strict=True):
        for is_learned, style in ((False, "o-"), (True, "s-")):
            own = [point for point in points if (point.block_length, point.is_learned) == (block_length, is_learned)]
            accuracy = [point.num_right / num_problems for point in own]
            label = "learned sampler" if is_learned else "confidence"
            axes.plot([point.tokens_per_forward for point in own], accuracy, style, markersize=4, label=label)
        axes.set(title=f"block {block_length}", xlabel="tokens per forward")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("exact answers")
    all_axes[0].legend()
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", type=Path, required=True, help="folder that nemodiff train sampler wrote")
    parser.add_argument("--bundle", type=Path, help="built with --sampling; made from nemodiff-tiny otherwise")
    parser.add_argument("--num-problems", type=int, default=128)
    parser.add_argument("--block-lengths", default=",".join(map(str, BLOCK_LENGTHS)))
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    block_lengths = [int(text) for text in arguments.block_lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or Path(folder) / "bundle"
        if arguments.bundle is None:
            build("nemodiff-tiny", bundle, max_seq_len=512, block_length=max(block_lengths), sampling=True)
        model = TriModeLM.from_bundle(bundle, num_threads=arguments.num_threads, sampler=arguments.sampler)
        problems = held_out_problems(arguments.num_problems, SEED)
        costs = [sampler_cost(model, LearnedSampler.open(arguments.sampler), length) for length in block_lengths]
        points = list(curves(model, problems, block_lengths))
    gains = {length: gain(points, length) for length in block_lengths}
    errors: dict[str, dict[str, list[float]]] = {}
    for length, found in gains.items():
        if found is None:
            print(f"block {length}: the sampler reaches no accuracy of the plain thresholds")
            continue
        ratio, mine, rival = found
        error = errors[str(length)] = intervals(mine, rival)
        print(
            f"block {length}: {ratio:.3f}x at {rival.num_right} right: "
            f"score {mine.threshold} with {mine.num_right} right against confidence {rival.threshold}; "
            f"95 % over prompts: ratio {error['ratio'][0]:.3f} to {error['ratio'][1]:.3f}, "
            f"right answers {error['more_right'][0]:+.0f} to {error['more_right'][1]:+.0f}"
        )
    if arguments.plot:
        plot(points, len(problems), arguments.plot)
    ratios = {str(length): found and round(found[0], 4) for length, found in gains.items()}
    content = {
        "num_problems": len(problems),
        "gain_at_equal_accuracy": ratios,
        "intervals": errors,
        "wanted_gain": WANTED_GAIN,
        "points": [point.to_json() for point in points],
        "cost": costs,
    }
    print(json.dumps({**content, "hardware": hardware(arguments.num_threads), "versions": versions()}))
    return 0 if all(found is not None and found[0] >= WANTED_GAIN for found in gains.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
