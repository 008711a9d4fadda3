"""Replicas that share the requests of a trace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.engine import EngineOptions
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import LatencyModel, Policy
from nemodiff_trt.runtime.simulator.acceptance import AcceptanceProfile
from nemodiff_trt.runtime.simulator.outcome import Outcome
from nemodiff_trt.runtime.simulator.replica import LoopCost, Replica
from nemodiff_trt.runtime.simulator.session import SimulatedSession
from nemodiff_trt.runtime.simulator.trace import DEFAULT_CATEGORY, SIMULATED_MODES, TraceRequest
from nemodiff_trt.vocabulary import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What serves a trace.

    Attributes:
        latency: step times of a replica, `prefill` among them.
        limits: of the engines.
        acceptance: by category; requests of others take that of the category `all`.
        mode: of requests that name none.
        block_length: of self-speculation with a fixed block; None for the built one.
        num_replicas: loops; a request goes to the one with the fewest that are not answered.
        engine: limits of every loop.
        loop_cost: of every loop.

    Raises:
        InvalidInputError: a field is out of range.
    """

    latency: LatencyModel
    limits: Limits
    acceptance: Mapping[str, AcceptanceProfile]
    mode: Mode = Mode.AUTO
    block_length: int | None = None
    num_replicas: int = 1
    engine: EngineOptions = field(default_factory=EngineOptions)
    loop_cost: LoopCost = field(default_factory=LoopCost)

    def __post_init__(self) -> None:
        if self.num_replicas < 1:
            raise InvalidInputError("num_replicas", self.num_replicas, "an integer of at least 1")
        if self.mode not in SIMULATED_MODES:
            raise InvalidInputError("mode", str(self.mode), ", ".join(SIMULATED_MODES))
        if self.block_length is not None and not 2 <= self.block_length <= self.limits.block_length:
            raise InvalidInputError("block_length", self.block_length, f"2 to {self.limits.block_length}")

    def replica(self, seed: int) -> Replica:
        """A loop that has not started."""
        session = SimulatedSession(self.latency, self.limits, list(self.acceptance.values()), np.random.default_rng(seed))
        # Work of the host takes what `loop_cost` says, and not what it took where the latency was calibrated.
        policy = Policy.for_session(session, replace(self.latency, loop={}), clock=lambda: session.now_s)
        return Replica(session, self.engine, policy, self.loop_cost)

    def category(self, name: str) -> int:
        """Index of the acceptance of a category.

        Raises:
            InvalidInputError: it has none, and there is none for all.
        """
        names = list(self.acceptance)
        chosen = name if name in names else DEFAULT_CATEGORY
        if chosen not in names:
            raise InvalidInputError("category", name, ", ".join(names))
        return names.index(chosen)


def simulate(trace: Sequence[TraceRequest], deployment: Deployment, seed: int = 0) -> list[Outcome]:
    """What becomes of every request of a trace, in its order. The same seed gives the same.

    Raises:
        InvalidInputError: a request does not fit the engines, or the latency model lacks a role.
    """
    replicas = [deployment.replica(seed + place) for place in range(deployment.num_replicas)]
    options: dict[Mode, GenerationOptions] = {}
    for index in sorted(range(len(trace)), key=lambda place: trace[place].arrival_s):
        request = trace[index]
        mode = request.mode or deployment.mode
        if mode not in options:
            block_length = deployment.block_length if mode is Mode.SELF_SPECULATION else None
            options[mode] = GenerationOptions(mode=mode, block_length=block_length, ignore_eos=True)
        for replica in replicas:
            replica.advance(request.arrival_s)
        chosen = min(replicas, key=lambda replica: replica.num_outstanding)
        chosen.submit(index, request, deployment.category(request.category), options[mode])
    for replica in replicas:
        replica.advance(math.inf)
    found = dict(outcome for replica in replicas for outcome in replica.outcomes)
    return [found[index] for index in range(len(trace))]
