"""Self-speculation whose cycles stay on the device: the same answers as the engine loop, one small read a cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.plugins.accept_draft import accept_draft_reference
from nemodiff_trt.runtime.device_speculation import CycleOperators, DeviceSpeculation
from nemodiff_trt.runtime.session_tensorrt import TensorRTSession
from nemodiff_trt.vocabulary import Mode, Role
from support.decoding import Request, decode
from support.device_sessions import OnDevice
from support.gpu_bundles import make_gpu_bundle
from support.gpu_machine import Machine, random_ids
from support.scripted_session import EOS, ScriptedSession, guess_from, random_text


def prefill(session: Any, prompts: list[tuple[int, ...]]) -> tuple[Any, list[int]]:
    """A cache that holds the prompts, and the first token of every answer."""
    cache = session.create_cache(len(prompts))
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts])
    seeds = session.run(Role.PREFILL, ids, cache, lengths - 1).token[:, 0].tolist()
    cache.length[:] = lengths
    return cache, seeds


def answers(
    session: Any, requests: list[Request], block_length: int, operators: CycleOperators | None = None, eos: int = EOS
) -> tuple[list[list[int]], list[int], list[int]]:
    """Tokens, accepted drafts and cycles of every row."""
    cache, seeds = prefill(session, [request.prompt for request in requests])
    limits = [min(r.max_new_tokens, session.limits.max_seq_len - len(r.prompt)) for r in requests]
    left = [0 if seed == eos else limit - 1 for seed, limit in zip(seeds, limits, strict=True)]
    loop = DeviceSpeculation(session, cache, block_length, [eos], operators)
    tokens, accepted, cycles = [[seed] for seed in seeds], [0] * len(seeds), [0] * len(seeds)
    is_finished = [count == 0 for count in left]
    for rows in loop.decode(seeds, left):
        for row, cycle in enumerate(rows):
            assert bool(cycle.emitted) == (not is_finished[row])
            tokens[row] += cycle.emitted
            accepted[row] += cycle.accepted
            cycles[row] += bool(cycle.emitted)
            is_finished[row] = cycle.is_finished
    assert all(is_finished)
    assert cache.length.tolist() == [len(r.prompt) + len(t) - 1 for r, t in zip(requests, tokens, strict=True)]
    return tokens, accepted, cycles


def check_against_the_engine(session: Any, device: Any, requests: list[Request], block_length: int, **options: Any) -> None:
    wanted = decode(session, Mode.SELF_SPECULATION, requests, block_length).sequences
    tokens, accepted, cycles = answers(device, requests, block_length, **options)
    assert tokens == [sequence.tokens for sequence in wanted]
    assert accepted == [sequence.accepted_drafts for sequence in wanted]
    assert cycles == [sequence.cycles for sequence in wanted]


requests = st.builds(
    Request, prompt=st.lists(st.integers(0, 39), min_size=1, max_size=8).map(tuple), max_new_tokens=st.integers(1, 30)
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.lists(requests, min_size=1, max_size=3), st.integers(2, 8))
def test_every_row_is_decoded_as_by_the_engine(seed: int, accuracy: float, batch: list[Request], block_length: int) -> None:
    text = random_text(seed)
    session = ScriptedSession(text, guess_from(text, seed, accuracy))
    check_against_the_engine(session, OnDevice(session), batch, block_length)


@pytest.fixture(scope="module")
def machine(tiny_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(Bundle.open(make_gpu_bundle(tiny_bundle_dir, tmp_path_factory.mktemp("gpu") / "bundle")))


def batch_of(num_rows: int) -> list[Request]:
    prompts = [tuple(random_ids(1, 5 + 3 * row, row)[0].tolist()) for row in range(num_rows)]
    return [Request(prompt, 12 + row) for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize(("num_rows", "cuda_graphs"), [(1, True), (3, True), (2, False)])
def test_on_a_tensorrt_session(machine: Machine, num_rows: int, cuda_graphs: bool) -> None:
    session = machine.open(cuda_graphs=cuda_graphs)
    check_against_the_engine(session, session, batch_of(num_rows), 6)


def test_a_cycle_is_one_launch_and_one_small_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    session: TensorRTSession = machine.open()
    cache, seeds = prefill(session, [request.prompt for request in batch_of(2)])
    loop = DeviceSpeculation(session, cache, 8)
    cycles = loop.decode(seeds, [40, 40])
    next(cycles)
    captures, allocations, pinned = machine.device.num_captures, len(machine.device.allocated), len(machine.device.pinned_bytes)
    copied: list[int] = []
    copy = machine.device.copy

    def counting_copy(target: torch.Tensor, source: torch.Tensor) -> None:
        copied.append(target.numel() * target.element_size())
        copy(target, source)

    monkeypatch.setattr(machine.device, "copy", counting_copy)
    launches = machine.device.num_launches
    for _ in range(3):
        next(cycles)
    assert machine.device.num_captures == captures
    # Eight ids and four numbers of two rows; what is replayed was recorded once.
    assert copied == []
    assert machine.device.num_launches == launches
    assert (len(machine.device.allocated), len(machine.device.pinned_bytes)) == (allocations, pinned)
    assert loop._host_report.numel() * 8 == 2 * (8 + 4) * 8


def test_operators_are_those_given() -> None:
    text = random_text(3)
    session = ScriptedSession(text, guess_from(text, 3, 0.5))
    calls = []

    def accept(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(arguments[0].clone())
        return accept_draft_reference(*arguments)

    batch = [Request((1, 2, 3), 20, ignore_eos=True)]
    tokens, _, cycles = answers(OnDevice(session), batch, 5, CycleOperators(accept_draft=accept), eos=-1)
    assert len(tokens[0]) == 20
    assert len(calls) == cycles[0]
    assert all(block[0, 0] == tokens[0][0] for block in calls[:1])


def test_rows_to_leave_alone() -> None:
    text = random_text(4)
    session = OnDevice(ScriptedSession(text, guess_from(text, 4, 0.5)))
    cache, seeds = prefill(session, [(1, 2), (3, 4, 5)])
    loop = DeviceSpeculation(session, cache, 4)
    assert list(loop.decode(seeds, [0, 0])) == []
    steps = list(loop.decode(seeds, [0, 9]))
    assert all(rows[0].emitted == [] and rows[0].is_finished for rows in steps)
    assert sum(len(rows[1].emitted) for rows in steps) == 9
    assert cache.length.tolist() == [2, 3 + 9]


class TestRefusals:
    @pytest.fixture
    def session(self) -> OnDevice:
        return OnDevice(ScriptedSession(random_text(1)))

    @pytest.mark.parametrize("block_length", [1, 33])
    def test_block_length(self, session: OnDevice, block_length: int) -> None:
        with pytest.raises(InvalidInputError, match="block_length"):
            DeviceSpeculation(session, session.create_cache(1), block_length)

    def test_one_seed_a_row(self, session: OnDevice) -> None:
        loop = DeviceSpeculation(session, session.create_cache(2), 4)
        with pytest.raises(InvalidInputError, match="one a row, 2"):
            next(loop.decode([1], [5]))

    def test_a_negative_limit(self, session: OnDevice) -> None:
        loop = DeviceSpeculation(session, session.create_cache(1), 4)
        with pytest.raises(InvalidInputError, match="at least 0"):
            next(loop.decode([1], [-1]))

    def test_an_answer_that_does_not_fit(self, session: OnDevice) -> None:
        cache = session.create_cache(1)
        loop = DeviceSpeculation(session, cache, 4)
        with pytest.raises(InvalidInputError, match="tokens with the prompt"):
            next(loop.decode([1], [cache.capacity - 3]))

    def test_a_cache_of_another_session(self, machine: Machine) -> None:
        with pytest.raises(InvalidInputError, match="a cache made by this session"):
            DeviceSpeculation(machine.open(), machine.open().create_cache(1), 4)
