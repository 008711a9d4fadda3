"""What is asked: prompts by category, with the right answer where there is one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.training.problems import held_out_problems

# A seed that no training run used; the problems are held out by their text anyway.
SEED = 5_000_011
GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One request.

    Attributes:
        category: results are told apart by it.
        messages: the chat, each with role and content.
        answer: the only right reply; None where there is none.
        enable_thinking: ask with an open think section.
    """

    category: str
    messages: tuple[dict[str, Any], ...]
    answer: str | None = None
    enable_thinking: bool = False

    def is_correct(self, reply: str) -> bool | None:
        """Exact match of a reply without its think section; None where nobody knows."""
        return None if self.answer is None else reply.strip() == self.answer.strip()


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that are answered together."""

    name: str
    prompts: tuple[BenchPrompt, ...]

    def describe(self) -> dict[str, Any]:
        """Counts, as plain values."""
        return {"name": self.name, "prompts": len(self.prompts), "categories": Counter(each.category for each in self.prompts)}


def generated_workload(num_prompts: int, categories: tuple[str, ...] = (), seed: int = SEED) -> Workload:
    """Held-out problems of our own generator, the categories in turn.

    Raises:
        InvalidInputError: there is no such category, or `num_prompts` is not positive.
    """
    problems = held_out_problems(num_prompts, seed, categories)
    prompts = [
        BenchPrompt(each.category, ({"role": "user", "content": each.prompt},), each.answer, each.thinking) for each in problems
    ]
    return Workload(GENERATED, tuple(prompts))
