"""Sampled answers: distributed as those of ar in every lossless mode, and the same whatever shares the batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nemodiff_trt.runtime.engine import EngineOptions, TokenEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sampling import SamplingOptions
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Mode
from support.chi_square import LIMIT, deviation
from support.distributions import DistributionSession, exact_answers, seeds
from support.scripted_session import Prefix

PROMPT = (1, 60, 61)
LENGTH = 3
SAMPLES = 600
AR = GenerationOptions(mode=Mode.AR, max_new_tokens=LENGTH, ignore_eos=True)
MODES = {
    "ar": AR,
    "coupled": AR.changed(mode=Mode.SELF_SPECULATION, block_length=5),
    "rejection": AR.changed(mode=Mode.SELF_SPECULATION, block_length=5, acceptance="rejection"),
    "passes": AR.changed(mode=Mode.SELF_SPECULATION, block_length=5, threshold=0.6),
    "quadratic": AR.changed(mode=Mode.QUADRATIC, block_length=4),
    "pruned": AR.changed(mode=Mode.QUADRATIC, block_length=4, draft_groups=2),
    "tree": AR.changed(mode=Mode.SELF_SPECULATION, block_length=5, num_leaves=2),
}
CHOICES = {
    "plain": SamplingOptions(temperature=1.0),
    "cool": SamplingOptions(temperature=0.6, top_p=0.9),
    "hot": SamplingOptions(temperature=1.5, top_k=3),
}


def answers(session: DistributionSession, wishes: list[GenerationOptions], prompt: Prefix = PROMPT) -> list[Prefix]:
    """Answers in the order of the wishes, as many at a time as the engine takes."""
    engine = TokenEngine(session, EngineOptions(prefix_rows=0))
    sequences = [Sequence(prompt, wish.max_new_tokens, session.limits.max_seq_len, None) for wish in wishes]
    for sequence, wish in zip(sequences, wishes, strict=True):
        wish.check_for(session.limits, session.roles)
        engine.submit(sequence, wish)
    while engine.has_work:
        engine.admit()
        list(engine.run())
        engine.retire()
    return [tuple(sequence.tokens) for sequence in sequences]


def is_plausible(expected: dict[Prefix, float], drawn: list[Prefix]) -> bool:
    """Whether the answers are a sample of the distribution `expected`."""
    counts = Counter(drawn)
    if not counts.keys() <= expected.keys():
        return False
    observed, shares = np.array([counts[answer] for answer in expected]), np.array(list(expected.values()))
    return deviation(observed, shares) < LIMIT


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("mode", ["ar", "coupled", "rejection", "quadratic", "tree"])
def test_distributed_as_ar(mode: str, choice: str) -> None:
    session, sampling = DistributionSession(5), CHOICES[choice]
    expected = exact_answers(session, PROMPT, sampling, LENGTH)
    assert sum(expected.values()) == pytest.approx(1.0)
    rule = MODES[mode].sampling.acceptance
    wishes = [MODES[mode].changed(sampling=sampling).changed(seed=seed, acceptance=rule) for seed in seeds(SAMPLES)]
    drawn = answers(session, wishes)
    assert is_plausible(expected, drawn)
    # The test can tell: the same answers are no sample of the distribution at another temperature.
    other = exact_answers(session, PROMPT, SamplingOptions(temperature=sampling.temperature * 2), LENGTH)
    assert not is_plausible(other, drawn)


@pytest.mark.parametrize("mode", ["coupled", "passes", "quadratic", "pruned", "tree"])
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": -0.3}])
def test_coupled_drafts_give_the_tokens_of_ar(mode: str, penalties: dict[str, float]) -> None:
    session = DistributionSession(6)
    for choice in CHOICES.values():
        wishes = [AR.changed(sampling=choice).changed(seed=seed, max_new_tokens=17, **penalties) for seed in seeds(40)]
        plain = answers(session, wishes)
        same = {
            name: getattr(MODES[mode], name) for name in ("mode", "block_length", "threshold", "draft_groups", "num_leaves")
        }
        assert answers(session, [wish.changed(**same) for wish in wishes]) == plain
        assert len(set(plain)) > 30


def test_coupling_accepts_most_of_what_rejection_would() -> None:
    """Coupled samples agree with at least (1 - d) / (1 + d), d being the total variation distance; rejection gives 1 - d."""
    session = DistributionSession(7)
    accepted = {}
    for mode in ("coupled", "rejection"):
        sequences = [Sequence(PROMPT, 25, session.limits.max_seq_len, None) for _ in range(60)]
        engine = TokenEngine(session, EngineOptions(prefix_rows=0))
        for seed, sequence in enumerate(sequences):
            engine.submit(sequence, MODES[mode].changed(max_new_tokens=25, temperature=1.0, seed=seed))
        while engine.has_work:
            engine.admit()
            list(engine.run())
            engine.retire()
        accepted[mode] = sum(sequence.accepted_drafts for sequence in sequences) / sum(s.cycles for s in sequences)
    assert accepted["rejection"] > accepted["coupled"] > 0.6 * accepted["rejection"]


def test_same_seed_same_answer_whatever_shares_the_batch() -> None:
    session = DistributionSession(8)
    for name, mode in (*MODES.items(), ("diffusion", AR.changed(mode=Mode.DIFFUSION, block_length=5, threshold=0.5))):
        wish = mode.changed(max_new_tokens=12, temperature=1.1, top_p=0.95, seed=77)
        (alone,) = answers(session, [wish])
        mates = [other.changed(max_new_tokens=9, temperature=0.8, seed=seed) for seed, other in enumerate(MODES.values())]
        assert answers(session, [*mates[:4], wish, *mates[4:]])[4] == alone, name
        assert answers(session, [wish.changed(seed=78)])[0] != alone
