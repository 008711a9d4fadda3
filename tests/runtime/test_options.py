from __future__ import annotations

from typing import Any

import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.vocabulary import Mode, Role

LIMITS = Limits(max_batch_size=2, max_seq_len=64, block_length=16, prefill_chunk=16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "fast"),
        ("mode", None),
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("block_length", 1),
        ("block_length", "8"),
        ("threshold", -0.1),
        ("threshold", 1.1),
        ("threshold", float("nan")),
        ("threshold", "0.5"),
        ("steps", 0),
        ("stop", ("",)),
        ("stop", (1,)),
        ("stop", 5),
        ("ignore_eos", 1),
        ("enable_thinking", "yes"),
        ("max_thinking_tokens", -1),
    ],
)
def test_refuses_one_field_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        GenerationOptions(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("threshold", {"mode": "ar", "threshold": 0.5}),
        ("steps", {"mode": "ar", "steps": 4}),
        ("steps", {"mode": "self_speculation", "steps": 4}),
        ("steps", {"mode": "diffusion", "steps": 4, "threshold": 0.5}),
    ],
)
def test_refuses_what_the_mode_would_ignore(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        GenerationOptions(**options)
    assert caught.value.field == field


def test_plain_values_become_the_declared_types() -> None:
    options = GenerationOptions(mode="diffusion", stop="END")  # type: ignore[arg-type]
    assert options.mode is Mode.DIFFUSION
    assert options.stop == ("END",)


def test_commit_rule() -> None:
    assert GenerationOptions(mode=Mode.DIFFUSION).commit_rule() == CommitRule(0.9)
    assert GenerationOptions(mode=Mode.DIFFUSION, threshold=0).commit_rule() == CommitRule(0.0)
    assert GenerationOptions(mode=Mode.DIFFUSION, steps=4).commit_rule() == CommitRule(None, 4)


def test_built_limits() -> None:
    roles = frozenset({Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DENOISE})
    GenerationOptions(mode=Mode.AR, block_length=16).check_for(LIMITS, roles)
    with pytest.raises(InvalidInputError, match="block_length: got 17, allowed: 2 to 16"):
        GenerationOptions(mode=Mode.DIFFUSION, block_length=17).check_for(LIMITS, roles)
    with pytest.raises(InvalidInputError, match="mode: got 'self_speculation', allowed: ar or diffusion"):
        GenerationOptions().check_for(LIMITS, roles)
