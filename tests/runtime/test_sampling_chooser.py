"""Choices: distributed as documented, repeatable, and a function of nothing but what they may depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.sampling import (
    SamplingOptions,
    SamplingWorkspace,
    TokenChooser,
    accept_coupled,
    token_confidence,
    token_logprobs,
)
from nemodiff_trt.runtime.sampling.noise import counters, gumbel, hashes, stream_key, stream_uniforms
from support.chi_square import LIMIT, deviation

MASK = 3
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 1.8},
    {"top_k": 5},
    {"min_p": 0.1, "temperature": 0.4},
    {"top_k": 8, "top_p": 0.7, "min_p": 0.02},
    {"logit_bias": {1: 2.0, 9: -3.0}, "temperature": 0.7},
]


def random_logits(seed: int, vocab_size: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, vocab_size).astype(np.float32)


def make(vocab_size: int = 40, answer: tuple[int, ...] = (), prompt: tuple[int, ...] = (), **options: Any) -> TokenChooser:
    chosen = SamplingOptions(**{"temperature": 1.0, "seed": 7, **options})
    return TokenChooser(chosen, SamplingWorkspace(vocab_size, MASK), prompt, list(answer))


def reference(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, float]:
    """The documented distribution by one full sort, in double precision: float64 [V].

    Also how far the sum of a prefix is from top-p at least: next to it, rounding may decide.
    """
    scores = logits.astype(np.float64)
    for token, bias in options.bias_pairs:
        scores[token] += bias
    scores[MASK] = -np.inf
    scores /= options.temperature
    order = np.argsort(-scores, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    probability = np.exp(scores[order] - scores[order[0]])
    before = np.cumsum(probability / probability.sum()) - probability / probability.sum()
    margin = 1.0 if options.top_p == 1 else float(np.abs(before - options.top_p).min())
    kept = (before < options.top_p) & (probability >= options.min_p)
    result = np.zeros(len(logits))
    result[order[kept]] = probability[kept] / probability[kept].sum()
    return result, margin


class TestDistribution:
    @pytest.mark.parametrize("options", FILTERS, ids=str)
    def test_choices_follow_the_processed_softmax(self, options: dict[str, Any]) -> None:
        chooser, logits = make(**options), random_logits(1, 40)
        counts = np.bincount([chooser.choose(logits, position) for position in range(6000)], minlength=40)
        assert deviation(counts, reference(logits, chooser.options)[0]) < LIMIT

    def test_of_a_large_vocabulary(self) -> None:
        chooser, logits = make(3000), random_logits(2, 3000)
        counts = np.bincount([chooser.choose(logits, position) for position in range(6000)], minlength=3000)
        assert deviation(counts, reference(logits, chooser.options)[0]) < LIMIT

    def test_the_test_sees_another_temperature(self) -> None:
        chooser, logits = make(temperature=1.2), random_logits(1, 40)
        counts = np.bincount([chooser.choose(logits, position) for position in range(6000)], minlength=40)
        assert deviation(counts, reference(logits, SamplingOptions(temperature=1.0))[0]) > 2 * LIMIT

    @pytest.mark.parametrize("pair", [((7, 0, 0), (7, 1, 0)), ((7, 0, 0), (8, 0, 0)), ((7, 0, 0), (7, 0, 1))], ids=str)
    def test_positions_seeds_and_streams_are_independent(self, pair: tuple[tuple[int, int, int], ...]) -> None:
        logits = random_logits(3, 5)
        workspace = SamplingWorkspace(5, MASK)
        cells = []
        for count in range(3000):
            two = []
            for seed, position, stream in pair:
                chooser = TokenChooser(SamplingOptions(temperature=1.0, seed=seed + 10 * count), workspace)
                two.append(chooser.choose(logits, position, stream=stream))
            cells.append(two[0] * 5 + two[1])
        one = make(5).probabilities(logits)
        assert deviation(np.bincount(cells, minlength=25), np.outer(one, one).ravel()) < LIMIT

    @QUICK
    @given(st.integers(0, 10**6), st.sampled_from([30, 500, 2500]), st.data())
    def test_probabilities_are_those_of_a_full_sort(self, seed: int, vocab_size: int, data: st.DataObject) -> None:
        # Steps of a quarter: many are equal.
        logits = np.round(4 * random_logits(seed, vocab_size)) / 4
        options = SamplingOptions(
            temperature=data.draw(st.sampled_from([0.25, 1.0, 2.5])),
            top_k=data.draw(st.sampled_from([0, 1, 7, vocab_size])),
            top_p=data.draw(st.sampled_from([0.05, 0.6, 0.97, 1.0])),
            min_p=data.draw(st.sampled_from([0.0, 0.013, 0.2])),
            seed=0,
        )
        ours = TokenChooser(options, SamplingWorkspace(vocab_size, MASK)).probabilities(logits)
        wanted, margin = reference(logits, options)
        assume(margin > 1e-5)
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=0)


class TestPurity:
    @QUICK
    @given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.sampled_from(FILTERS))
    def test_same_seed_same_choice(self, seed: int, position: int, options: dict[str, Any]) -> None:
        logits = random_logits(position, 300)
        before = logits.copy()
        one, other = make(300, **{**options, "seed": seed}), make(300, **{**options, "seed": seed})
        other.choose(random_logits(0, 300), position + 1)
        token = one.choose(logits, position)
        assert token == other.choose(logits, position) == one.choose(logits, position)
        assert token != MASK
        np.testing.assert_array_equal(logits, before)

    @QUICK
    @given(st.integers(0, 10**6), st.floats(0.05, 5.0))
    def test_noise_does_not_depend_on_who_is_looked_at(self, seed: int, temperature: float) -> None:
        """The winner among all tokens is that of the whole noise, computed here at once; so is the winner of any part."""
        logits = random_logits(seed, 3000, scale=3.0)
        counter = counters(3000)
        noise = gumbel(hashes(counter, stream_key(seed, 5), np.empty_like(counter), np.empty_like(counter)))
        sums = (logits.astype(np.float64) - logits.max()) / temperature + noise
        sums[MASK] = -np.inf
        for part in ({}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.3}):
            chooser = make(3000, temperature=temperature, seed=seed, **part)
            kept = np.flatnonzero(chooser.probabilities(logits))
            assert chooser.choose(logits, 5) == kept[sums[kept].argmax()]

    @QUICK
    @given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0]))
    def test_no_filter_at_the_neutral_values(self, seed: int, temperature: float) -> None:
        logits = random_logits(seed, 200)
        plain = make(200, temperature=temperature, seed=seed)
        neutral = make(200, temperature=temperature, seed=seed, top_k=200, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
        wide = make(200, temperature=temperature, seed=seed, top_k=10**6, min_p=1e-30)
        assert plain.choose(logits, seed) == neutral.choose(logits, seed) == wide.choose(logits, seed)

    @QUICK
    @given(st.integers(0, 10**6))
    def test_one_candidate_is_the_greedy_one(self, seed: int) -> None:
        logits = np.round(random_logits(seed, 60))
        wanted = np.where(np.arange(60) == MASK, -np.inf, logits).argmax()
        for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6, "top_k": 1}):
            assert make(60, **{**options, "seed": seed}).choose(logits, 0) == wanted
        assert make(60, temperature=0.0).probabilities(logits)[wanted] == 1

    def test_blocks_and_rows_agree(self) -> None:
        chooser = make()
        logits = np.stack([random_logits(row, 40) for row in range(6)])
        each = [chooser.choose(row, 20 + offset) for offset, row in enumerate(logits)]
        assert chooser.choose_block(logits, 20).tolist() == each
        assert chooser.choose_block(logits, 20, np.array([4, 1])).tolist() == [each[4], each[1]]

    @QUICK
    @given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=8))
    def test_blocks_are_chosen_as_their_tokens_are(self, seed: int, blocks: list[tuple[int, int]]) -> None:
        """Wherever they begin, and whatever was chosen before: noise is kept between blocks."""
        chooser, alone = (make(temperature=1.3, seed=seed) for _ in range(2))
        for begin, length in blocks:
            logits = np.stack([random_logits(seed + row, 40) for row in range(length)])
            each = [alone.choose(row, begin + offset) for offset, row in enumerate(logits)]
            assert chooser.choose_block(logits, begin).tolist() == each
            drafts = np.array(each[:-1], np.int64)
            assert accept_coupled(chooser, drafts, logits, begin) == each
            if length > 1:
                drafts[length // 2 - 1] = MASK
                assert accept_coupled(chooser, drafts, logits, begin) == each[: length // 2]

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_a_block_with_a_logit_that_is_no_number_is_refused(self, wrong: float) -> None:
        logits = np.zeros((3, 40), np.float32)
        logits[1, 7] = wrong
        with pytest.raises(InvalidInputError, match="finite numbers"):
            make(temperature=1.0).choose_block(logits, 0)

    def test_answers_to_one_prompt_differ(self) -> None:
        logits, workspace = np.zeros(1000, np.float32), SamplingWorkspace(1000, MASK)
        options = SamplingOptions(temperature=1.0, seed=5)
        choices = [TokenChooser(options, workspace, index=index).choose(logits, 0) for index in range(8)]
        assert len(set(choices)) > 6
        assert choices[0] == TokenChooser(options, workspace).choose(logits, 0)

    def test_without_a_seed_two_answers_differ(self) -> None:
        choosers = [make(seed=None) for _ in range(2)]
        assert choosers[0].seed != choosers[1].seed

    def test_uniform_numbers_are_inside_the_interval(self) -> None:
        numbers = stream_uniforms(stream_key(1, 2, 3), 4000)
        assert 0 < numbers.min() < 1e-3 < 1 - 1e-3 < numbers.max() < 1
        extremes = np.array([0, 2**64 - 1], np.uint64)
        assert np.isfinite(gumbel(extremes)).all()


class TestPenalties:
    def test_each_as_documented(self) -> None:
        logits = np.zeros(12, np.float32)
        logits[:6] = (2.0, -2.0, 2.0, 9.0, 2.0, 2.0)
        chooser = make(
            12, answer=(1, 4, 4), prompt=(0, 4), temperature=1.0,
            repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, logit_bias={5: 1.5},
        )  # fmt: skip
        wanted = logits.astype(np.float64)
        wanted[[0, 1, 4, 5]] = (1.0, -4.0 - 0.25 - 0.5, 1.0 - 0.5 - 0.5, 3.5)
        wanted[MASK] = -np.inf
        np.testing.assert_allclose(chooser.probabilities(logits), np.exp(wanted) / np.exp(wanted).sum(), rtol=1e-6)

    def test_the_answer_is_read_as_it_grows(self) -> None:
        answer: list[int] = []
        chooser = TokenChooser(SamplingOptions(presence_penalty=2.0), SamplingWorkspace(12, MASK), answer=answer)
        logits = np.linspace(2, 0, 12).astype(np.float32)
        for _ in range(4):
            answer.append(chooser.choose(logits, len(answer)))
        assert answer == [0, 1, 2, 4]

    @QUICK
    @given(st.lists(st.integers(4, 19), max_size=12), st.integers(0, 12))
    def test_pending_tokens_count_as_emitted_ones_and_leave_no_trace(self, tokens: list[int], split: int) -> None:
        options = {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": -0.4}
        logits, split = random_logits(len(tokens), 20), min(split, len(tokens))
        whole, part = make(20, tuple(tokens), **options), make(20, tuple(tokens[:split]), **options)
        alone = part.probabilities(logits)
        np.testing.assert_allclose(part.probabilities(logits, pending=tokens[split:]), whole.probabilities(logits), rtol=1e-6)
        np.testing.assert_array_equal(part.probabilities(logits), alone)

    def test_processors_of_transformers_agree(self) -> None:
        import torch
        from transformers import generation

        logits, seen = random_logits(5, 200), [7, 7, 150, 20]
        chooser = make(
            200, prompt=tuple(seen), temperature=0.8, top_k=60, top_p=0.85, min_p=0.03, repetition_penalty=1.4
        )  # fmt: skip
        processors = [
            generation.RepetitionPenaltyLogitsProcessor(1.4),
            generation.SuppressTokensLogitsProcessor([MASK]),
            generation.TemperatureLogitsWarper(0.8),
            generation.TopKLogitsWarper(60),
            generation.TopPLogitsWarper(0.85),
            generation.MinPLogitsWarper(0.03),
        ]
        scores = torch.from_numpy(logits)[None]
        for processor in processors:
            scores = processor(torch.tensor([seen]), scores)
        # Their softmax is in single precision.
        np.testing.assert_allclose(chooser.probabilities(logits), torch.softmax(scores, -1)[0].numpy(), rtol=1e-5, atol=0)


class TestReports:
    def test_logprobs_are_of_raw_logits(self) -> None:
        logits = random_logits(4, 50)
        logits[MASK] = 9.0
        logits[[10, 11]] = 8.0
        wanted = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
        found = token_logprobs(logits, 20, 3, MASK)
        assert found.token == 20
        assert [token for token, _ in found.top][:2] == [10, 11]
        assert MASK not in dict(found.top)
        assert found.logprob == pytest.approx(wanted[20], abs=1e-5)
        assert [value for _, value in found.top] == pytest.approx([wanted[token] for token, _ in found.top], abs=1e-5)
        assert token_logprobs(logits, 20, 0, MASK).top == ()

    def test_confidence_is_that_of_the_decision_head(self) -> None:
        import torch

        from nemodiff_trt.plugins.decision_head import decision_head_reference

        logits = np.stack([random_logits(row, 50, scale=4) for row in range(5)])
        token, confidence = (each.numpy() for each in decision_head_reference(torch.from_numpy(logits), MASK))
        np.testing.assert_allclose(token_confidence(logits, token), confidence, rtol=1e-5)
        rows = np.array([4, 2])
        np.testing.assert_allclose(token_confidence(logits, token[rows], rows), confidence[rows], rtol=1e-5)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_no_number_is_refused(self, bad: float) -> None:
        logits = random_logits(0, 40)
        logits[8] = bad
        with pytest.raises(InvalidInputError, match="logits"):
            make().choose(logits, 0)
