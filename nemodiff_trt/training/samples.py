"""From problems to token ids: prompt through the chat template, answer with its end of turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import Problem, training_problems


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of one problem; `answer` ends with the end-of-sequence id. Loss is taken on the answer only."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class SampleEncoder:
    """Turns problems into samples.

    Args:
        encode: text to token ids, special tokens recognised.
        render_prompt: user text and thinking switch to the text of the whole prompt.
        eos_token_id: appended to every answer.
    """

    encode: Callable[[str], list[int]]
    render_prompt: Callable[[str, bool], str]
    eos_token_id: int

    def __call__(self, problem: Problem) -> Sample:
        prompt = self.encode(self.render_prompt(problem.prompt, problem.thinking))
        text = f"{problem.reasoning}\n</think>{problem.answer}" if problem.thinking else problem.answer
        return Sample(prompt, [*self.encode(text), self.eos_token_id])


def training_samples(encoder: SampleEncoder, seed: int, step: int) -> Iterator[Sample]:
    """Endless samples that depend on seed and step alone, so that a resumed run sees the same data."""
    return map(encoder, training_problems(random.Random(f"{seed}/{step}")))


def chat_encoder(tokenizer: Tokenizer, eos_token_id: int) -> SampleEncoder:
    """Encoder that renders every prompt as one user turn of the tokenizer's chat template."""

    def render_prompt(text: str, thinking: bool) -> str:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], enable_thinking=thinking)

    return SampleEncoder(tokenizer.encode, render_prompt, eos_token_id)
