"""Drafts: coupled acceptance gives the tokens of sampled ar, rejection their distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.runtime.sampling import SamplingOptions, SamplingWorkspace, TokenChooser, accept_by_rejection
from support.chi_square import LIMIT, deviation
from support.toy_model import ToyModel

VOCAB = 9
NUM_DRAFTS = 2
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]


def random_rows(seed: int, num_rows: int) -> np.ndarray:
    """Distributions float64 [N,V], some tokens impossible, as top-p leaves them."""
    generator = np.random.default_rng(seed)
    rows = generator.exponential(1.0, (num_rows, VOCAB)) * (generator.random((num_rows, VOCAB)) < 0.8)
    rows[:, 0] += 0.1
    result: np.ndarray = rows / rows.sum(1, keepdims=True)
    return result


def resample_from_p(drafts: np.ndarray, q: np.ndarray, p: np.ndarray, uniforms: np.ndarray) -> tuple[int, int]:
    """The mistake that is easiest to make: a refused draft is drawn again from p, not from what p has more than q."""
    for row, token in enumerate(drafts.tolist()):
        if uniforms[row] * q[row, token] >= p[row, token]:
            return row, int(np.searchsorted(np.cumsum(p[row]), uniforms[-1]))
    return len(drafts), int(np.searchsorted(np.cumsum(p[-1]), uniforms[-1]))


def deviations(rule: Rule, seed: int) -> list[float]:
    """Of the n-th emitted token from row n of p, of all answers that are so long."""
    p, q = random_rows(seed, NUM_DRAFTS + 1), random_rows(seed + 1000, NUM_DRAFTS)
    generator = np.random.default_rng(seed + 2000)
    counts = np.zeros((NUM_DRAFTS + 1, VOCAB), np.int64)
    cumulated = np.cumsum(q, 1)
    for _ in range(5000):
        drafts = np.array([np.searchsorted(row, generator.random() * row[-1]) for row in cumulated])
        num_kept, token = rule(drafts, q, p, generator.random(NUM_DRAFTS + 1))
        for place, emitted in enumerate([*drafts[:num_kept].tolist(), token]):
            counts[place, emitted] += 1
    return [deviation(*pair) for pair in zip(counts, p, strict=True)]


class TestRejection:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_emits_what_the_verifier_would(self, seed: int) -> None:
        assert max(deviations(accept_by_rejection, seed)) < LIMIT

    def test_a_wrong_rule_is_seen(self) -> None:
        assert deviations(resample_from_p, 1)[0] > 2 * LIMIT

    @QUICK
    @given(st.integers(0, 10**6))
    def test_equal_distributions_keep_every_draft(self, seed: int) -> None:
        p = random_rows(seed, 3)
        drafts = p[:2].argmax(1)
        num_kept, token = accept_by_rejection(drafts, p[:2], p, np.full(3, 1 - 1e-12))
        assert num_kept == 2
        assert p[2, token] > 0

    def test_an_impossible_draft_is_never_kept(self) -> None:
        p, q = np.array([[0.0, 0.4, 0.6], [1.0, 0, 0]]), np.array([[0.5, 0.5, 0.0]])
        for uniform in (1e-12, 0.5, 1 - 1e-12):
            assert accept_by_rejection(np.array([0]), q, p, np.array([1e-12, uniform])) == (0, 2)

    @pytest.mark.parametrize("options", [{}, {"top_p": 0.8, "temperature": 1.3}, {"presence_penalty": 1.0}], ids=str)
    def test_whole_answers_are_distributed_as_those_of_ar(self, options: dict[str, Any]) -> None:
        model = ToyModel(5)
        wanted = model.answer_probabilities(SamplingOptions(**{"temperature": 1.0, **options}), 3)
        index = {tokens: place for place, tokens in enumerate(wanted)}
        counts = np.zeros(len(wanted), np.int64)
        for seed in range(1200):
            chosen = SamplingOptions(**{"temperature": 1.0, "seed": seed, "acceptance": "rejection", **options})
            counts[index[tuple(model.speculate(chosen, 3))]] += 1
        assert deviation(counts, np.array(list(wanted.values()))) < LIMIT


class TestCoupling:
    @QUICK
    @given(
        st.integers(0, 2**64 - 1),
        st.floats(0, 3),
        st.integers(1, 6),
        st.sampled_from(
            [
                {},
                {"temperature": 0.0},
                {"top_p": 0.7},
                {"top_k": 3},
                {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {1: 1.0}},
            ]
        ),
    )
    def test_speculation_gives_the_tokens_of_ar(
        self, seed: int, draft_error: float, num_drafts: int, options: dict[str, Any]
    ) -> None:
        model = ToyModel(12, draft_error)
        chosen = SamplingOptions(**{"temperature": 1.0, "seed": seed, **options})
        assert model.speculate(chosen, 16, num_drafts) == model.ar(chosen, 16)

    @pytest.mark.parametrize("seed", [1, 2])
    def test_acceptance_reaches_its_bound(self, seed: int) -> None:
        """P(equal) >= (1-TV)/(1+TV), arXiv 2408.07978; without shared noise it would be far below."""
        p, q = (np.log(random_rows(seed + place, 1)[0] + 1e-9).astype(np.float32) for place in (0, 500))
        chooser = TokenChooser(SamplingOptions(temperature=1.0, seed=seed), SamplingWorkspace(VOCAB, 3))
        equal = np.mean([chooser.choose(p, position) == chooser.choose(q, position) for position in range(3000)])
        distance = np.abs(chooser.probabilities(p) - chooser.probabilities(q)).sum() / 2
        bound = (1 - distance) / (1 + distance)
        independent = chooser.probabilities(p) @ chooser.probabilities(q)
        # Three standard errors.
        assert bound - 3 * (bound / 3000) ** 0.5 < equal <= 1 - distance + 0.03
        assert equal > independent + 0.1
