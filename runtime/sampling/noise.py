"""Random numbers that are a pure function of what they are for.

Noise for one choice is the stream of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) from a start that mixes the seed of the
request, the position of the token and the purpose; its n-th number belongs to token id n. So a token's noise depends on nothing
else: not on the batch, not on the mode or the step that asks, not on which other tokens are looked at.
"""

from __future__ import annotations

import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MASK = 2**64 - 1
# No position of an answer is a stream as large as this.
_SEED_STREAM = 2**63
# Bits of a uniform number: with half a unit added, a double holds every value, and neither 0 nor 1 is one.
_UNIFORM_BITS = 52


def stream_key(seed: int, position: int, stream: int = 0) -> int:
    """Start of the numbers for `position` of the answer of a request with `seed`; other `stream`s are independent."""
    key = seed
    for part in (position, stream):
        key = _mixed(_mixed(key) + part * _GAMMA)
    return key


def derived_seed(seed: int, index: int) -> int:
    """Seed of the answer `index` of several to one prompt; the first has the seed itself."""
    return seed if index == 0 else stream_key(seed, index, _SEED_STREAM)


def counters(num_tokens: int) -> np.ndarray:
    """What `hashes` takes for the token ids 0 to `num_tokens` - 1: uint64 [V]."""
    return np.arange(1, num_tokens + 1, dtype=np.uint64) * np.uint64(_GAMMA)


def hashes(counter: np.ndarray, key: int | np.ndarray, out: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """64 random bits per counter.

    Args:
        counter: uint64 [..., N], of `counters`.
        key: of `stream_key`; uint64, and [M,1] for one row each.
        out: uint64, takes the result.
        scratch: uint64 of the same shape.
    """
    np.add(counter, np.uint64(key) if isinstance(key, int) else key, out=out)
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        np.right_shift(out, np.uint64(shift), out=scratch)
        np.bitwise_xor(out, scratch, out=out)
        if multiplier is not None:
            np.multiply(out, np.uint64(multiplier), out=out)
    return out


def uniforms(bits: np.ndarray) -> np.ndarray:
    """Numbers float64 in (0,1), increasing in `bits` uint64."""
    result: np.ndarray = ((bits >> np.uint64(64 - _UNIFORM_BITS)).astype(np.float64) + 0.5) * 2.0**-_UNIFORM_BITS
    return result


def gumbel(bits: np.ndarray) -> np.ndarray:
    """Standard Gumbel numbers float64, decreasing in `bits` uint64: large noise, which decides, comes from small numbers,
    which keep their precision.
    """
    result: np.ndarray = -np.log(-np.log1p(-uniforms(bits)))
    return result


def gumbel_of(counter: np.ndarray, key: int) -> np.ndarray:
    """Standard Gumbel numbers float64 [N] of one position, for tokens of these `counters` uint64 [N]."""
    return gumbel(hashes(counter, key, np.empty_like(counter), np.empty_like(counter)))


def stream_uniforms(key: int, count: int) -> np.ndarray:
    """The first `count` numbers of a stream as float64 [count] in (0,1)."""
    counter = counters(count)
    return uniforms(hashes(counter, key, np.empty_like(counter), np.empty_like(counter)))


def _mixed(value: int) -> int:
    """The output function of splitmix64 on one integer, taken modulo 2**64."""
    value = (value + _GAMMA) & _MASK
    for shift, multiplier in zip(_SHIFTS[:2], _MULTIPLIERS, strict=True):
        value = ((value ^ (value >> shift)) * multiplier) & _MASK
    return value ^ (value >> _SHIFTS[2])
