"""Layouts of quadratic steps: what a session refuses before it runs one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.step_layout import StepLayout


def causal(step: int) -> StepLayout:
    mask = np.tril(np.ones((step, step), np.bool_))
    return StepLayout(np.arange(step), mask, np.zeros(step, np.float32))


def test_rows_are_stacked_and_copied() -> None:
    rows = [causal(3), causal(3)]
    rows[1].adapter_rows[:] = 1
    batch, target = StepLayout.stack(rows), StepLayout.zeros(2, 3)
    target.copy_from(batch)
    np.testing.assert_array_equal(target.position_offset, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(target.step_mask, np.stack([rows[0].step_mask] * 2))
    np.testing.assert_array_equal(target.adapter_rows, [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"position_offset": np.arange(4)}, "layout.position_offset"),
        ({"position_offset": np.array([0, 1, 3])}, "layout.position_offset"),
        ({"position_offset": np.array([-1, 1, 2])}, "layout.position_offset"),
        ({"step_mask": np.ones((3, 3), np.int64)}, "layout.step_mask"),
        ({"step_mask": np.ones((3, 4), np.bool_)}, "layout.step_mask"),
        ({"adapter_rows": np.zeros(3)}, "layout.adapter_rows"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        StepLayout.zeros(3).copy_from(dataclasses.replace(causal(3), **changes))
    assert caught.value.field == field


def test_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="layout: got None"):
        StepLayout.zeros(3).copy_from(None)
