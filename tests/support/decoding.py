"""Run decoding loops in tests, and what they must give, written down without any of their code."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.engine import EngineOptions, TokenEngine
from nemodiff_trt.runtime.events import DecodeStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sequence import Sequence, ThinkingBudget
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Mode
from support.scripted_session import END_THINK, EOS, MASK, Guess, NextToken, Prefix

# Drafts in one pass, and denoises so.
AT_ONCE = CommitRule(0.0)


@dataclass(frozen=True)
class Request:
    """One row: prompt and limits."""

    prompt: tuple[int, ...]
    max_new_tokens: int = 20
    ignore_eos: bool = False
    budget: int | None = None

    def start(self, session: Session) -> Sequence:
        thinking = None if self.budget is None else ThinkingBudget(self.budget, END_THINK)
        eos = None if self.ignore_eos else EOS
        return Sequence(self.prompt, self.max_new_tokens, session.limits.max_seq_len, eos, thinking)


@dataclass
class Decoded:
    """A finished batch."""

    sequences: list[Sequence]
    cache: KVCache[Any]
    steps: list[DecodeStep]

    @property
    def tokens(self) -> list[list[int]]:
        return [sequence.tokens for sequence in self.sequences]


# Every row computes its own prompt.
NO_REUSE = EngineOptions(prefix_rows=0, min_prefix=10**6)


def options_of(mode: Mode, block_length: int, rule: CommitRule) -> GenerationOptions:
    if mode is Mode.AR:
        return GenerationOptions(mode=mode)
    if mode is Mode.QUADRATIC:
        return GenerationOptions(mode=mode, block_length=block_length)
    steps = rule.steps if mode is Mode.DIFFUSION and rule.threshold is None else None
    return GenerationOptions(mode=mode, block_length=block_length, threshold=rule.threshold, steps=steps)


def steps_of(engine: TokenEngine, sequences: list[Sequence], options: GenerationOptions) -> Iterator[DecodeStep]:
    """Decode one batch. Finished rows stay where they are until the last one is."""
    for number, sequence in enumerate(sequences):
        assert engine.submit(sequence, options) == number
    engine.admit()
    while any(sequence.finish_reason is None for sequence in sequences):
        yield from engine.run()


def decode(session: Session, mode: Mode, requests: list[Request], block_length: int = 8, rule: CommitRule = AT_ONCE) -> Decoded:
    """`decode_with` the options that matter for the mode."""
    return decode_with(session, options_of(mode, block_length, rule), requests)


def decode_with(session: Session, options: GenerationOptions, requests: list[Request]) -> Decoded:
    """Run a batch to its end and check what must hold for any: reports agree with answers, every row is finished."""
    options.check_for(session.limits, session.roles)
    sequences = [request.start(session) for request in requests]
    engine = TokenEngine(session, dataclasses.replace(NO_REUSE, max_active=len(requests)))
    steps = list(steps_of(engine, sequences, options))
    for row, sequence in enumerate(sequences):
        assert [token for step in steps if row in step.rows for token in step.rows[row].emitted] == sequence.tokens
        assert sequence.finish_reason is not None
    return Decoded(sequences, engine.cache, steps)


class _Writer:
    """An answer under the rules that hold in every mode."""

    def __init__(self, request: Request, max_seq_len: int) -> None:
        self.request = request
        self.limit = min(request.max_new_tokens, max_seq_len - len(request.prompt))
        self.tokens: list[int] = []

    @property
    def is_done(self) -> bool:
        ended = not self.request.ignore_eos and EOS in self.tokens
        return ended or len(self.tokens) >= self.limit

    def add(self, token: int) -> bool:
        """Append, or the forced token instead; returns whether `token` itself was appended."""
        budget = self.request.budget
        is_forced = budget == len(self.tokens) and END_THINK not in self.tokens
        self.tokens.append(END_THINK if is_forced else token)
        return not is_forced or token == END_THINK


def expected_ar(next_token: NextToken, request: Request, max_seq_len: int) -> list[int]:
    """Greedy answer, one token after the other. Also what self-speculation must give."""
    writer = _Writer(request, max_seq_len)
    while not writer.is_done:
        writer.add(next_token(request.prompt + tuple(writer.tokens)))
    return writer.tokens


def expected_diffusion(
    next_token: NextToken, guess: Guess, request: Request, max_seq_len: int, block_length: int, rule: CommitRule
) -> list[int]:
    """Answer of block diffusion: blocks are filled completely first, and only then read from left to right."""
    writer = _Writer(request, max_seq_len)
    writer.add(next_token(request.prompt))
    while not writer.is_done:
        cached = request.prompt + tuple(writer.tokens[:-1])
        block = _filled(guess, cached, (writer.tokens[-1],) + (MASK,) * (block_length - 1), rule)
        for token in block[1:]:
            if writer.is_done or not writer.add(token):
                break
        if not writer.is_done:
            writer.add(next_token(request.prompt + tuple(writer.tokens)))
    return writer.tokens


def _filled(guess: Guess, prefix: Prefix, block: Prefix, rule: CommitRule) -> Prefix:
    for step in itertools.count():
        masked = [offset for offset, token in enumerate(block) if token == MASK]
        if not masked:
            return block
        guesses = guess(prefix, block)
        ranked = sorted(masked, key=lambda offset: -guesses[offset][1])
        if rule.threshold is None:
            num_masks = len(block) - 1
            quotas = [num_masks // rule.steps + (index < num_masks % rule.steps) for index in range(rule.steps)]
            chosen = ranked[: max(1, quotas[step] if step < len(quotas) else 1)]
        else:
            chosen = ranked[:1] + [offset for offset in ranked[1:] if guesses[offset][1] >= rule.threshold]
        block = tuple(guesses[offset][0] if offset in chosen else token for offset, token in enumerate(block))
    raise AssertionError
