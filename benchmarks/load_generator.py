"""Load for any server of the engine: requests of many kinds that arrive at random, sent through a small client protocol.

A server is known here by a `Client` alone. `make_calls` draws the requests from a seed, `run_open` sends them at their arrival
times whatever the server does, `run_closed` keeps a number of them in flight. What became of them is judged and summed up by
`load_report`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemodiff_trt.runtime.prompts import Prompt
from nemodiff_trt.training.problems import held_out_problems


@dataclass(frozen=True, slots=True)
class Flaw:
    """A request that no server may accept: `field` is what the error must name."""

    field: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: Prompt | None = None


# None of these depends on what a bundle was built for.
FLAWS = (
    Flaw("mode", {"mode": "fast"}),
    Flaw("max_new_tokens", {"max_new_tokens": 0}),
    Flaw("block_length", {"block_length": 1}),
    Flaw("block_length", {"block_length": 1 << 20}),
    Flaw("threshold", {"mode": "diffusion", "threshold": 1.5}),
    Flaw("threshold", {"mode": "ar", "threshold": 0.5}),
    Flaw("steps", {"mode": "diffusion", "steps": 0}),
    Flaw("steps", {"mode": "ar", "steps": 4}),
    Flaw("max_thinking_tokens", {"max_thinking_tokens": -1}),
    Flaw("prompt", prompt="far too long " * 20_000),
)

# What is asked for, by name: fields of GenerationOptions. Lengths are drawn apart.
DEFAULT_WISHES: Mapping[str, Mapping[str, Any]] = {
    "ar": {"mode": "ar"},
    "ar, no end": {"mode": "ar", "ignore_eos": True},
    "ar, stop": {"mode": "ar", "stop": ["\n"]},
    "self_speculation": {"mode": "self_speculation"},
    "self_speculation B=8": {"mode": "self_speculation", "block_length": 8},
    "self_speculation, thinking": {"mode": "self_speculation", "enable_thinking": True, "max_thinking_tokens": 24},
    "diffusion": {"mode": "diffusion"},
    "diffusion B=8, steps": {"mode": "diffusion", "block_length": 8, "steps": 4},
    "diffusion, threshold": {"mode": "diffusion", "threshold": 0.7},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Which requests are drawn.

    Attributes:
        wishes: sets of options by name, all equally likely.
        max_new_tokens: least and most, drawn evenly on a logarithmic scale: many short answers, a few long ones.
        num_problems: least and most problems in one prompt, drawn likewise: the length of prompts.
        kinds: forms of prompts, equally likely: `text` or `chat`.
        cancelled: share of requests whose client leaves after a few tokens.
        flawed: share of requests no server may accept.
        flaws: what is wrong with these.
    """

    wishes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: DEFAULT_WISHES)
    max_new_tokens: tuple[int, int] = (4, 96)
    num_problems: tuple[int, int] = (1, 4)
    kinds: tuple[str, ...] = ("text", "chat")
    cancelled: float = 0.0
    flawed: float = 0.0
    flaws: tuple[Flaw, ...] = FLAWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: when it comes, what it asks, and how its client behaves.

    `arrival_s` counts from the start of the run. The client leaves once `cancel_after` tokens came, if that is a number.
    """

    number: int
    arrival_s: float
    category: str
    wish: str
    prompt: Prompt
    options: Mapping[str, Any]
    cancel_after: int | None = None
    flaw: Flaw | None = None


def make_calls(mix: Mix, num_calls: int, seed: int, rate: float = math.inf) -> list[Call]:
    """Draw `num_calls` requests that arrive as a Poisson process of `rate` per second, all at once if that is infinite."""
    rng = random.Random(seed)
    problems = held_out_problems(min(num_calls, 400), seed)
    calls, now_s = [], 0.0
    for number in range(num_calls):
        now_s += rng.expovariate(rate) if rate < math.inf else 0.0
        count = _log_uniform(rng, mix.num_problems)
        chosen = [problems[number % len(problems)], *rng.choices(problems, k=count - 1)]
        # The newest problem comes last: the model answers that one.
        text = "\n\n".join(problem.prompt for problem in reversed(chosen))
        wish = rng.choice(list(mix.wishes))
        options = {**mix.wishes[wish], "max_new_tokens": _log_uniform(rng, mix.max_new_tokens)}
        kind = "chat" if options.get("enable_thinking") else rng.choice(mix.kinds)
        prompt: Prompt = [{"role": "user", "content": text}] if kind == "chat" else text
        flaw, cancel_after, fate = None, None, rng.random()
        if fate < mix.flawed:
            flaw = rng.choice(mix.flaws)
            options = {"max_new_tokens": options["max_new_tokens"], **flaw.options}
            prompt = prompt if flaw.prompt is None else flaw.prompt
        elif fate < mix.flawed + mix.cancelled:
            cancel_after = rng.randint(0, max(options["max_new_tokens"] // 2, 1))
        calls.append(
            Call(
                number=number, arrival_s=now_s, category=chosen[0].category, wish=wish, prompt=prompt, options=options,
                cancel_after=cancel_after, flaw=flaw,
            )
        )  # fmt: skip
    return calls


def _log_uniform(rng: random.Random, bounds: tuple[int, int]) -> int:
    least, most = bounds
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


@dataclass(frozen=True, slots=True)
class Piece:
    """What a client hears at once. `num_tokens` are new; a server that does not tell ids leaves `token_ids` empty.

    `finish_reason` is set in the last piece and in no other.
    """

    text: str
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None


class RefusedError(Exception):
    """The server did not take the request and said why."""


class BrokenStreamError(Exception):
    """The answer did not come to its end: the connection or the server was lost, or the server failed."""


class Client(Protocol):
    """Sends calls to one server. Many streams are open at a time, all on one event loop."""

    def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
        """Send `call` and give its answer piece by piece. Closing the generator cancels the request at the server.

        Raises:
            RefusedError: the server refused it before the first piece.
            BrokenStreamError: there is no complete answer for another reason.
        """
        ...


@dataclass(slots=True)
class Outcome:
    """What became of a call. Times are readings of one clock, in seconds.

    `piece_s` and `piece_tokens` have an entry for every piece that brought tokens. Without `finish_reason` the answer is not
    complete: the client left it (`was_left`), it was `refused`, or it is `broken`; the last two hold the reason.
    """

    call: Call
    begin_s: float
    end_s: float = math.nan
    piece_s: list[float] = field(default_factory=list)
    piece_tokens: list[int] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    was_left: bool = False
    refused: str | None = None
    broken: str | None = None

    @property
    def num_tokens(self) -> int:
        return sum(self.piece_tokens)

    def add(self, piece: Piece, now_s: float) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.finish_reason = piece.finish_reason
        if piece.num_tokens:
            self.piece_s.append(now_s)
            self.piece_tokens.append(piece.num_tokens)


async def run_call(client: Client, call: Call) -> Outcome:
    """Send one call and take its answer in, leaving early if the call says so."""
    outcome = Outcome(call, time.perf_counter())
    try:
        async with aclosing(client.stream(call)) as pieces:
            async for piece in pieces:
                outcome.add(piece, time.perf_counter())
                wants_to_leave = call.cancel_after is not None and outcome.num_tokens >= call.cancel_after
                if wants_to_leave and outcome.finish_reason is None:
                    outcome.was_left = True
                    break
            else:
                if outcome.finish_reason is None:
                    outcome.broken = "the stream ended without a finish reason"
    except RefusedError as error:
        outcome.refused = str(error)
    except BrokenStreamError as error:
        outcome.broken = str(error)
    outcome.end_s = time.perf_counter()
    return outcome


async def run_open(client: Client, calls: list[Call]) -> list[Outcome]:
    """Send every call at its arrival time, however many are unanswered by then."""
    start_s = time.perf_counter()

    async def one(call: Call) -> Outcome:
        await asyncio.sleep(call.arrival_s - (time.perf_counter() - start_s))
        return await run_call(client, call)

    return list(await asyncio.gather(*(one(call) for call in calls)))


async def run_closed(client: Client, calls: list[Call], concurrency: int) -> list[Outcome]:
    """Send the calls in order, the next one as soon as fewer than `concurrency` are in flight."""
    waiting = iter(calls)

    async def worker() -> list[Outcome]:
        # All workers draw from the one iterator.
        return [await run_call(client, call) for call in waiting]

    found = await asyncio.gather(*(worker() for _ in range(concurrency)))
    return sorted((outcome for part in found for outcome in part), key=lambda outcome: outcome.call.number)
