"""What a session refuses before a step, and how the inputs of a step are filled, in the same way whoever runs the engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from nemodiff_trt import contract
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


def role_steps(role: Role, limits: Limits) -> range:
    """Step lengths an engine of `role` takes, in tokens."""
    return range(1, limits.longest_step(role) + 1)


def check_batch_size(batch_size: int, limits: Limits) -> None:
    """Refuse more rows than the engines were built for."""
    if not 1 <= batch_size <= limits.max_batch_size:
        raise InvalidInputError("batch_size", batch_size, f"1 to {limits.max_batch_size}")


def check_role_and_step(role: Role, step: int, roles: Iterable[Role], limits: Limits) -> None:
    """Refuse a role the bundle has no engine for, and a step longer than the engine of the role takes."""
    if role not in roles:
        raise InvalidInputError("role", str(role), f"{', '.join(sorted(roles))} in this bundle")
    steps = role_steps(role, limits)
    if step not in steps:
        raise InvalidInputError("input_ids", f"{step} tokens", f"1 to {steps[-1]} tokens in a {role} step")


def check_input_shape(shape: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Refuse token ids that are not [B,S] for the rows of the cache."""
    if shape != wanted:
        raise InvalidInputError("input_ids", shape, f"shape {wanted} for this cache")


def check_room(longest: int, step: int, capacity: int) -> None:
    """Refuse a step that would write behind the end of the cache; `longest` is the largest length of its rows."""
    if longest + step > capacity:
        raise InvalidInputError("cache_length", longest, f"at most {capacity - step} before a step of {step} tokens")


def copy_last_index(target: np.ndarray, last_index: np.ndarray | None, step: int) -> None:
    """Copy `last_index` int64 [B] into the engine's input `target`, after a look at shape and values."""
    if last_index is None or last_index.shape != target.shape:
        raise InvalidInputError("last_index", last_index, f"int64 of shape {target.shape} for a prefill step")
    wanted = last_index.tolist()
    if min(wanted) < 0 or max(wanted) >= step:
        raise InvalidInputError("last_index", wanted, f"0 to {step - 1}, the tokens of the step")
    np.copyto(target, last_index)


class StepInputs(Protocol):
    """Arrays that an engine reads at a step: int64 [B,S], [B], for prefill [B], and for quadratic those of a layout."""

    @property
    def input_ids(self) -> np.ndarray: ...

    @property
    def cache_length(self) -> np.ndarray: ...

    @property
    def last_index(self) -> np.ndarray | None: ...

    @property
    def layout(self) -> StepLayout | None: ...


def layout_arrays(layout: StepLayout) -> dict[str, np.ndarray]:
    """Arrays of `layout` by contract name, in the order of the contract."""
    return {name: getattr(layout, name) for name in contract.LAYOUT}


def check_fit(input_ids: np.ndarray, cache: KVCache[Any]) -> int:
    """Refuse token ids that do not fit the cache; returns the largest length of its rows."""
    step = input_ids.shape[-1]
    check_input_shape(input_ids.shape, (cache.batch_size, step))
    longest = longest_row(cache)
    check_room(longest, step, cache.capacity)
    return longest


def longest_row(cache: KVCache[Any]) -> int:
    """Valid tokens of the longest row."""
    # A list: for a handful of rows faster than a reduction.
    return int(max(cache.length.tolist()))


def copy_inputs(
    inputs: StepInputs,
    input_ids: np.ndarray,
    cache: KVCache[Any],
    last_index: np.ndarray | None,
    layout: StepLayout | None = None,
) -> None:
    """Copy everything a step reads into the arrays bound to its engine, which may run more tokens than are asked for."""
    step = input_ids.shape[-1]
    if inputs.last_index is not None:
        copy_last_index(inputs.last_index, last_index, step)
    if inputs.layout is not None:
        inputs.layout.copy_from(layout)
    inputs.input_ids[:, :step] = input_ids
    inputs.input_ids[:, step:] = 0
    np.copyto(inputs.cache_length, cache.length)


def fill_inputs(
    inputs: StepInputs,
    input_ids: np.ndarray,
    cache: KVCache[Any],
    last_index: np.ndarray | None,
    layout: StepLayout | None = None,
) -> None:
    """`check_fit`, then `copy_inputs`."""
    check_fit(input_ids, cache)
    copy_inputs(inputs, input_ids, cache, last_index, layout)
