"""Build the tiny bundle, answer a prompt in every mode, and compare the modes on held-out problems."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemodiff_trt.runtime.evaluation import ModeScore, answer_problems, score
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.training.problems import held_out_problems

PROMPT = "Mia has 34 coins. Then 12 more arrive. Then 9 get lost. Then come 3 bags of 5. How many coins does Mia have now?"
# A seed that no training run used; the problems are held out by their text anyway.
SEED = 20_261_123
MODES = (
    GenerationOptions(mode="ar"),
    GenerationOptions(mode="diffusion", block_length=16, threshold=0.9),
    GenerationOptions(mode="self_speculation", block_length=16),
)


def build(bundle: Path) -> None:
    """Compile the packaged checkpoint through the command line, as a user would."""
    command = [sys.executable, "-m", "nemodiff_trt.build_engines", "--checkpoint", "nemodiff-tiny", "--target", "onnxruntime"]
    subprocess.run([*command, "--output", str(bundle), "--force"], check=True)


def show_answers(model: TriModeLM, console: Console) -> None:
    console.print(f"\n[bold]Prompt[/bold]  {PROMPT}")
    for options in MODES:
        result = model.generate([{"role": "user", "content": PROMPT}], options)[0]
        stats = result.stats
        console.print(
            f"\n[bold]{options.mode}[/bold]  {stats.new_tokens} tokens in {stats.forward_passes} forward passes"
            f" ({stats.tokens_per_forward:.2f} tokens per forward)"
        )
        console.print(result.text, highlight=False)


def compare(model: TriModeLM, num_prompts: int) -> tuple[dict[str, ModeScore], bool]:
    """Score of every mode at batch 1 on the same problems, and whether self-speculation gave ar's tokens on all of them."""
    problems = held_out_problems(num_prompts, SEED)
    scores, tokens = {}, {}
    for options in MODES:
        batches = [answer_problems(model, [problem], options) for problem in problems]
        results = [result for batch, _ in batches for result in batch]
        scores[str(options.mode)] = score(model.tokenizer, problems, results, sum(seconds for _, seconds in batches))
        tokens[str(options.mode)] = [result.token_ids for result in results]
    return scores, tokens["self_speculation"] == tokens["ar"]


def table_of(scores: dict[str, ModeScore]) -> Table:
    table = Table(title=f"nemodiff-tiny on {scores['ar'].num_problems} held-out problems, batch 1, CPU")
    for heading in ("mode", "accuracy", "tokens per forward", "mean accepted", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for name, mode_score in scores.items():
        accepted = "-" if mode_score.mean_accepted is None else f"{mode_score.mean_accepted:.2f}"
        ratio, speed = f"{mode_score.tokens_per_forward:.2f}", f"{mode_score.tokens_per_second:.0f}"
        table.add_row(name, f"{mode_score.accuracy:.1%}", ratio, accepted, speed)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("demo/nemodiff-tiny.bundle"))
    parser.add_argument("--num-prompts", type=int, default=64)
    arguments = parser.parse_args()
    console = Console()
    build(arguments.bundle)
    model = TriModeLM.from_bundle(arguments.bundle)
    show_answers(model, console)
    scores, is_lossless = compare(model, arguments.num_prompts)
    console.print()
    console.print(table_of(scores))
    console.print(f"self_speculation gave the tokens of ar on {'every' if is_lossless else 'NOT every'} prompt")
    if not is_lossless:
        sys.exit(1)


if __name__ == "__main__":
    main()
