from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sampling import Acceptance, SamplingOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("logprobs", 21),
        ("logprobs", -1),
        ("acceptance", "always"),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", 5),
        ("logit_bias", (1, 2)),
    ],
)
def test_refuses_one_field_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SamplingOptions(**{field: value})
    assert caught.value.field == field


def test_are_values() -> None:
    one = SamplingOptions(logit_bias={5: 1, 2: -1.5}, acceptance="rejection")  # type: ignore[arg-type]
    assert one.logit_bias == ((2, -1.5), (5, 1.0))
    assert one == dataclasses.replace(one)
    assert hash(one) == hash(dataclasses.replace(one))
    assert one.acceptance is Acceptance.REJECTION
    assert dataclasses.asdict(one)["logit_bias"] == one.logit_bias


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.5),
        ("repetition_penalty", 1.1),
        ("presence_penalty", -0.5),
        ("frequency_penalty", 0.5),
        ("logit_bias", {5: 1.0}),
        ("logprobs", 0),
    ],
)
def test_what_needs_logits_is_refused_without_them(field: str, value: Any) -> None:
    options = SamplingOptions(**{field: value})
    assert options.needs_logits
    with pytest.raises(InvalidInputError, match="--sampling") as caught:
        options.check_for(1000, 100, has_logits=False)
    assert caught.value.field == field
    options.check_for(1000, 100, has_logits=True)


def test_greedy_decoding_needs_none() -> None:
    options = SamplingOptions(top_k=5, top_p=0.9, min_p=0.1, seed=3)
    assert options.is_greedy
    assert not options.needs_logits
    options.check_for(1000, 100, has_logits=False)


@pytest.mark.parametrize("token", [100, 1000])
def test_bias_of_what_is_never_chosen_is_refused(token: int) -> None:
    with pytest.raises(InvalidInputError, match="logit_bias"):
        SamplingOptions(logit_bias={token: 1.0}).check_for(1000, 100, has_logits=True)


class TestOfARequest:
    def test_fields_are_changed_by_their_names(self) -> None:
        options = GenerationOptions().changed(mode="ar", temperature=0.5, seed=3)
        assert options == GenerationOptions(mode="ar", sampling=SamplingOptions(temperature=0.5, seed=3))  # type: ignore[arg-type]
        again = options.changed(top_p=0.9)
        assert (again.sampling.temperature, again.sampling.top_p) == (0.5, 0.9)
        assert options.changed(sampling=SamplingOptions(top_k=5), seed=1).sampling == SamplingOptions(top_k=5, seed=1)

    @pytest.mark.parametrize(("field", "value"), [("heat", 1), ("top_p", 2.0), ("sampling", None), ("block_length", 1)])
    def test_others_are_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidInputError) as caught:
            GenerationOptions().changed(**{field: value})
        assert caught.value.field == field

    @pytest.mark.parametrize("others", [{"mode": "ar"}, {"mode": "diffusion"}, {"threshold": 0.5}])
    def test_rejection_where_it_would_not_be_exact(self, others: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError) as caught:
            GenerationOptions().changed(temperature=1.0, acceptance="rejection", **others)
        assert caught.value.field == "acceptance"
