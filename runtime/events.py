"""What the engine loop reports after every engine run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemodiff_trt.runtime.sampling import TokenLogprobs
from nemodiff_trt.vocabulary import Role


@dataclass(slots=True)
class RowStep:
    """What one engine run did to one request.

    `emitted` are tokens appended to the answer. In self-speculation, a draft run reports the guesses for block positions
    1, 2, ... as `drafted` (with several draft passes: after the last one), and the verify run reports them again with
    `accepted`, how many of them entered the answer; after these, `emitted` holds one more token, the verifier's own, unless
    the answer ended. `committed` are (offset in the block, token) pairs fixed by a denoise or draft pass, the seed being
    offset 0; tokens right of the end of an answer may be committed and never emitted. A quadratic run verifies what the one
    before it drafted, and reports as a verify run does. `logprobs` has an entry for every emitted token where the request asks
    for them.
    """

    emitted: list[int]
    drafted: Sequence[int] = ()
    accepted: int = 0
    committed: Sequence[tuple[int, int]] = ()
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(slots=True)
class DecodeStep:
    """One engine run: its role, and a report for every request that took part, by the number the engine gave it."""

    role: Role
    rows: dict[int, RowStep]
