"""Text that calibration runs through the model, and the steps it becomes: some of every role."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.samples import Sample, chat_encoder, training_samples
from nemodiff_trt.vocabulary import Role

NUM_GENERATED = 128
_SEED = 20_260_101
# Blocks taken from each sequence, and the share of drafted tokens that a verifier finds wrong.
_BLOCKS_PER_SEQUENCE = 2
_WRONG_DRAFTS = 0.15


@dataclass(frozen=True, slots=True)
class CalibrationStep:
    """One step behind the first `start` tokens of a sequence, whose keys and values a causal pass has written."""

    role: Role
    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CalibrationSequence:
    """A text and the steps taken on it. The whole of `token_ids` runs causally as prefill."""

    token_ids: tuple[int, ...]
    steps: tuple[CalibrationStep, ...]


def generated_samples(tokenizer: Tokenizer, model: ModelConfig, count: int = NUM_GENERATED) -> list[Sample]:
    """Training problems of our own generators with their answers, of every category."""
    return list(islice(training_samples(chat_encoder(tokenizer, model.eos_token_id), _SEED, 0), count))


def read_samples(path: Path, tokenizer: Tokenizer) -> list[Sample]:
    """Prompts of a file: one a line, or JSON objects with `prompt` and, if there is one, `answer`.

    Each prompt is one user turn of the chat template, or plain text where the tokenizer has none.

    Raises:
        InvalidInputError: the file cannot be read, holds nothing, or a line is not usable.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("calibration", str(path), f"a readable text file ({error})") from error
    if not lines:
        raise InvalidInputError("calibration", str(path), "a file with at least one prompt")
    samples = []
    for number, line in enumerate(lines, start=1):
        prompt, answer = _parse_line(path, number, line)
        if tokenizer.has_chat_template:
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        samples.append(Sample(tokenizer.encode(prompt), tokenizer.encode(answer)))
    return samples


def _parse_line(path: Path, number: int, line: str) -> tuple[str, str]:
    if path.suffix != ".jsonl":
        return line, ""
    try:
        raw: Any = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"calibration line {number}", line[:40], f"a JSON object ({error})") from error
    is_usable = isinstance(raw, dict) and isinstance(raw.get("prompt"), str) and isinstance(raw.get("answer", ""), str)
    if not is_usable:
        raise InvalidInputError(f"calibration line {number}", line[:40], "an object with prompt and, if any, answer as text")
    return raw["prompt"], raw.get("answer", "")


def plan_sequences(
    samples: list[Sample], model: ModelConfig, block_length: int, max_tokens: int, roles: tuple[Role, ...]
) -> list[CalibrationSequence]:
    """Steps of `roles` on every sample, the same ones whenever it is asked.

    A drafting block holds its seed and masks. A denoising block has some of its tokens decided already. A verifier sees drafts,
    most of which are right. Blocks lie in the answer, or in the second half of a text that has none.

    Args:
        samples: prompts and answers.
        model: gives vocabulary and mask id.
        block_length: tokens of a block.
        max_tokens: longer texts are cut.
        roles: those the engines have; decode sees what prefill and verify see.
    """
    rng = random.Random(_SEED)
    return [_plan(sample, model, block_length, max_tokens, roles, rng) for sample in samples]


def _plan(
    sample: Sample, model: ModelConfig, block_length: int, max_tokens: int, roles: tuple[Role, ...], rng: random.Random
) -> CalibrationSequence:
    tokens = [*sample.prompt, *sample.answer][:max_tokens]
    first = min(len(sample.prompt), len(tokens) - 1) if sample.answer else len(tokens) // 2
    steps = []
    for _ in range(_BLOCKS_PER_SEQUENCE):
        start = rng.randint(first, len(tokens) - 1)
        block = [*tokens[start : start + block_length]]
        block += [model.mask_token_id] * (block_length - len(block))
        known = rng.random()
        content = {
            Role.DRAFT: [block[0]] + [model.mask_token_id] * (block_length - 1),
            Role.DENOISE: [block[0], *(token if rng.random() < known else model.mask_token_id for token in block[1:])],
            Role.VERIFY: [
                block[0],
                *(rng.randrange(model.vocab_size) if rng.random() < _WRONG_DRAFTS else token for token in block[1:]),
            ],
        }
        steps += [CalibrationStep(role, start, tuple(ids)) for role, ids in content.items() if role in roles]
    return CalibrationSequence(tuple(tokens), tuple(steps))
