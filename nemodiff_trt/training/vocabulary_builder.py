"""Train the byte-level BPE tokenizer of a small checkpoint, with the special ids of the published one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nemodiff_trt.training.problems import training_problems

# Ids of the published tokenizer: everything below 101 is reserved, so that mask and turn markers keep their numbers.
NUM_RESERVED = 101
NAMED_SPECIALS = {0: "<unk>", 1: "<s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>", 100: "<|mask|>"}

# ChatML turns; a system turn is always there; without thinking the reply starts after an empty think block.
CHAT_TEMPLATE = (
    "{%- if messages and messages[0].role == 'system' -%}"
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- set turns = messages[1:] -%}"
    "{%- else -%}{{ '<|im_start|>system\\n<|im_end|>\\n' }}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}{{ '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking -%}{{ '<think>\\n' }}{%- else -%}{{ '<think></think>' }}{%- endif -%}{%- endif -%}"
)


def special_tokens() -> list[str]:
    """Token text of ids 0 .. 100."""
    return [NAMED_SPECIALS.get(index, f"<reserved_{index}>") for index in range(NUM_RESERVED)]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with single digits, so that numbers are spelled alike everywhere; any Unicode text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    directory.mkdir(parents=True, exist_ok=True)
    # The last file written is the one whose presence says that all are there.
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "mask_token": "<|mask|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy the three files of `save_tokenizer` from one checkpoint folder to another."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        shutil.copyfile(source / name, destination / name)


def tokenizer_texts(seed: int, num_problems: int) -> Iterator[str]:
    """Training text of the tokenizer: problems of the training split, and the role names of chat turns as often as needed."""
    yield from ["system user assistant\n"] * (num_problems // 40)
    for problem in islice(training_problems(random.Random(f"{seed}/tokenizer")), num_problems):
        yield from (problem.prompt, problem.reasoning, problem.answer)
