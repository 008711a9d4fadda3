"""Step shapes come and go: what is kept for them stays bounded, whatever the lengths of prompts are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemodiff_trt.runtime.recent_steps import RecentSteps, StepShape
from nemodiff_trt.runtime.scratch_array import ScratchArray
from nemodiff_trt.vocabulary import Role


def shape(step: int) -> StepShape:
    return StepShape(0, 1, Role.VERIFY, step)


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 5))
def test_the_last_ones_used_are_kept(steps: list[int], limit: int) -> None:
    recent, order = RecentSteps[int](limit), list[int]()
    for step in steps:
        found = recent.get(shape(step))
        assert found == (step if step in order else None)
        if found is None:
            recent.put(shape(step), step)
        order = ([each for each in order if each != step] + [step])[-limit:]
    assert [each.step for each in recent] == order
    assert len(recent) == len(order)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), min_size=1, max_size=30))
def test_scratch_arrays_share_memory_of_at_most_twice_the_largest(shapes: list[tuple[int, int]]) -> None:
    scratch = ScratchArray(np.float32)
    arrays = [scratch.array(each) for each in shapes]
    assert [array.shape for array in arrays] == shapes
    assert all(array.flags.c_contiguous for array in arrays)
    memory = {id(array.base): array.base for array in arrays}
    assert max(base.size for base in memory.values()) <= 2 * max(array.size for array in arrays)
    again = scratch.array(shapes[-1])
    again[:] = 7
    assert (scratch.array(shapes[-1]) == 7).all()
