"""Prefill: run the prompts in chunks and take the first token of every answer."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from typing import Any

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role


def prefill(session: Session, cache: KVCache[Any], sequences: Sized[Sequence]) -> Iterator[DecodeStep]:
    """Fill an empty `cache` with the prompts, one step for each chunk of `limits.prefill_chunk` tokens.

    Prompts of different lengths are padded on the right. Padding needs no mask: it lies behind the last real token of its row,
    nothing reads it, and the next run writes over it. A row whose prompt ended in an earlier chunk only pads, behind its end.
    """
    if len(sequences) != cache.batch_size:
        raise InvalidInputError("sequences", len(sequences), f"{cache.batch_size}, the rows of the cache")
    cache.clear()
    lengths = [len(sequence.prompt) for sequence in sequences]
    longest, chunk = max(lengths), session.limits.prefill_chunk
    for begin in range(0, longest, chunk):
        end = min(begin + chunk, longest)
        ids = np.zeros((len(lengths), end - begin), np.int64)
        last_index = np.zeros(len(lengths), np.int64)
        for row, sequence in enumerate(sequences):
            part = sequence.prompt[begin:end]
            ids[row, : len(part)] = part
            last_index[row] = max(len(part) - 1, 0)
        output = session.run(Role.PREFILL, ids, cache, last_index)
        rows = []
        for row, sequence in enumerate(sequences):
            cache.length[row] = min(end, lengths[row])
            if lengths[row] <= begin or sequence.finish_reason is not None:
                continue
            sequence.prefill_passes += 1
            is_last = lengths[row] <= end
            rows.append(RowStep(row, sequence.emit((int(output.token[row, 0]),)) if is_last else []))
        yield DecodeStep(Role.PREFILL, rows)
        if all(sequence.finish_reason is not None for sequence in sequences):
            return
