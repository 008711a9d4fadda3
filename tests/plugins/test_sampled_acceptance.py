"""Speculative rejection sampling: what is emitted is distributed as the verifier's own draws. Seeds are fixed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nemodiff_trt.plugins.accept_draft_sampled import accept_draft_sampled_reference
from nemodiff_trt.plugins.accept_draft_sampled.reference import draw, residual
from support.chi_square import LIMIT, deviation
from support.interpreter import Interpreter

V = 6
NO_ENDS = torch.tensor([], dtype=torch.int64)
# Trials of one test; the counts of the rarest outcome are still large enough for the chi-square approximation.
TRIALS = 60_000


def distributions(generator: torch.Generator, sharpness: float) -> tuple[Tensor, Tensor]:
    """Draft and verifier for blocks of 3: q [2,V], and p [V,V,3,V], since the verifier sees the first and the second draft."""
    q = (torch.randn(2, V, generator=generator) * sharpness).double().softmax(-1)
    p = (torch.randn(V, V, 3, V, generator=generator) * sharpness).double().softmax(-1)
    # The first verifier row knows only the seed, the second only the first draft.
    p[:, :, 0], p[:, :, 1] = p[0, 0, 0], p[:, :1, 1].expand(V, V, V)
    # Some tokens the verifier never says, some the drafter never does.
    p[..., 0, 4], q[0, 2] = 0.0, 0.0
    return q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)


def trials(q: Tensor, p: Tensor, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks drafted from q, and both distributions and uniforms for each."""
    drafts = torch.stack([torch.multinomial(row, count, replacement=True, generator=generator) for row in q], 1)
    block = torch.cat((torch.zeros(count, 1, dtype=torch.int64), drafts), 1)
    uniforms = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return block, q.expand(count, 2, V), p[drafts[:, 0], drafts[:, 1]], uniforms


def worst_deviation(emitted: Tensor, p: Tensor) -> float:
    """Largest deviation of: the first token, the second given the first, the third given both."""
    found = []
    groups = [(emitted, 0, p[0, 0, 0])]
    groups += [(emitted[emitted[:, 0] == a], 1, p[a, 0, 1]) for a in range(V)]
    groups += [(emitted[(emitted[:, 0] == a) & (emitted[:, 1] == b)], 2, p[a, b, 2]) for a in range(V) for b in range(V)]
    for rows, offset, target in groups:
        tokens = rows[:, offset][rows[:, offset] >= 0]
        if len(tokens) * target[target > 0].min() >= 5:
            found.append(deviation(torch.bincount(tokens, minlength=V).numpy(), target.numpy()))
    assert len(found) > 5
    return max(found)


def run(rule: Callable[..., tuple[Tensor, ...]], seed: int, sharpness: float) -> float:
    generator = torch.Generator().manual_seed(seed)
    q, p = distributions(generator, sharpness)
    block, drafted, verified, uniforms = trials(q, p, generator, TRIALS)
    state = torch.zeros(TRIALS, dtype=torch.int64), torch.full((TRIALS,), 9)
    return worst_deviation(rule(block, drafted, verified, uniforms, *state, NO_ENDS)[1], p)


@pytest.mark.parametrize(("seed", "sharpness"), [(1, 0.3), (2, 1.0), (3, 2.0)])
def test_emitted_tokens_are_distributed_as_the_verifier_s(seed: int, sharpness: float) -> None:
    assert run(accept_draft_sampled_reference, seed, sharpness) < LIMIT


def always_resamples_from_p(block: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Wrong: after a refusal it draws from p, which gives tokens that p prefers to q too often."""
    rows = torch.arange(len(block))
    drafts = block[:, 1:, None]
    refused = uniforms[:, :-1] * q.gather(2, drafts)[..., 0] >= p[:, :-1].gather(2, drafts)[..., 0]
    matched = torch.where(refused, torch.arange(2), 2).amin(1)
    own = draw(p[rows, matched], uniforms[:, -1])
    moved = torch.cat((block[:, 1:], own[:, None]), 1)
    places = torch.arange(3)
    emitted = torch.where(places == matched[:, None], own[:, None], moved)
    return matched, torch.where(places <= matched[:, None], emitted, -1)


def always_accepts(block: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Wrong: every draft the verifier finds possible is kept."""
    is_possible = (p[:, :-1].gather(2, block[:, 1:, None]) > 0).to(q.dtype)
    q = torch.where(is_possible > 0, q * 0, q)
    return accept_draft_sampled_reference(block, q, p, uniforms, *state)


@pytest.mark.parametrize("wrong", [always_resamples_from_p, always_accepts])
def test_a_wrong_rule_is_rejected(wrong: Callable[..., tuple[Tensor, ...]]) -> None:
    assert run(wrong, 2, 1.0) > 2 * LIMIT


def test_more_drafts_are_kept_than_by_comparing_two_draws() -> None:
    generator = torch.Generator().manual_seed(5)
    q, p = distributions(generator, 1.0)
    block, drafted, verified, uniforms = trials(q, p, generator, TRIALS)
    state = torch.zeros(TRIALS, dtype=torch.int64), torch.full((TRIALS,), 9)
    accepted = accept_draft_sampled_reference(block, drafted, verified, uniforms, *state, NO_ENDS)[0]
    first = float((accepted > 0).double().mean())
    # The largest possible share, sum of min(p, q); comparing independent draws would keep sum of p q.
    best, independent = float(torch.minimum(p[0, 0, 0], q[0]).sum()), float((p[0, 0, 0] * q[0]).sum())
    assert abs(first - best) < 4 * math.sqrt(best * (1 - best) / TRIALS)
    assert best > independent + 0.1


def test_equal_distributions_keep_every_draft() -> None:
    generator = torch.Generator().manual_seed(6)
    q = torch.rand(2, V, generator=generator, dtype=torch.float64).softmax(-1)
    p = torch.cat((q, q[:1])).expand(V, V, 3, V)
    block, drafted, verified, uniforms = trials(q, p, generator, 5000)
    state = torch.zeros(5000, dtype=torch.int64), torch.full((5000,), 9)
    assert (accept_draft_sampled_reference(block, drafted, verified, uniforms, *state, NO_ENDS)[0] == 2).all()


def test_draws_stay_within_what_has_weight() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0]]).expand(4, 5)
    uniforms = torch.tensor([0.0, 0.33, 0.34, 1 - 2**-24])
    assert draw(weights, uniforms).tolist() == [1, 1, 3, 3]
    equal = torch.tensor([[0.25, 0.75]])
    assert torch.equal(residual(equal, equal), equal)


@pytest.mark.parametrize("vocab_size", [1000, 32_768, 131_072])
def test_kernel_draws_what_the_running_sum_says(interpreter: Interpreter, random: torch.Generator, vocab_size: int) -> None:
    batch, step = 2, 3
    p, q = (torch.randn(batch, n, vocab_size, generator=random).mul(3).softmax(-1) for n in (step, step - 1))
    block = torch.randint(0, vocab_size, (batch, step), generator=random)
    uniforms = torch.rand(batch, step, generator=random)
    state = torch.tensor([5, 6]), torch.tensor([9, 9]), torch.tensor([], dtype=torch.int64)
    found = interpreter.launch("accept_draft_sampled", block, q, p, uniforms, *state)
    wanted = accept_draft_sampled_reference(block, q.double(), p.double(), uniforms.double(), *state)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[2], wanted[2])
    for row in range(batch):
        matched, own = int(found[0][row]), int(found[3][row])
        drafted = q[row, matched] if matched + 1 < step else torch.zeros(vocab_size)
        running = residual(p[row, matched].double()[None], drafted.double()[None])[0].cumsum(0)
        goal = float(uniforms[row, -1]) * float(running[-1])
        # fp32 sums decide within their rounding.
        slack = 1e-5 * float(running[-1])
        assert float(running[own]) > goal - slack
        assert own == 0 or float(running[own - 1]) <= goal + slack
        assert found[1][row, : matched + 1].tolist() == [*block[row, 1 : matched + 1].tolist(), own]
