"""Autoregressive decoding: one token a run."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from typing import Any

import numpy as np

from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.sequence import Sequence, unfinished
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role


def decode_autoregressive(session: Session, cache: KVCache[Any], sequences: Sized[Sequence]) -> Iterator[DecodeStep]:
    """Extend prefilled `sequences` until all are finished. A finished row keeps its length and feeds its last token."""
    ids = np.zeros((len(sequences), 1), np.int64)
    active = unfinished(enumerate(sequences), cache)
    for row, sequence in active:
        ids[row, 0] = sequence.tokens[-1]
    while active:
        tokens = session.run(Role.DECODE, ids, cache).token.tolist()
        rows = []
        for row, sequence in active:
            sequence.forward_passes += 1
            emitted = sequence.emit(tokens[row])
            cache.length[row] += 1
            ids[row, 0] = emitted[0]
            rows.append(RowStep(row, emitted))
        yield DecodeStep(Role.DECODE, rows)
        active = unfinished(active, cache)
