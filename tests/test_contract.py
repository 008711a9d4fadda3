"""The step contract, and that compiled graphs keep it to the letter."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from nemodiff_trt.contract import Limits, TensorSpec, step_contract
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.vocabulary import Precision, Role
from support.checkpoints import random_decoder, tiny_config
from support.engines import ALL_ROLES, Engines, compile_decoder


@pytest.fixture(scope="module", params=[(Precision.FP32, False), (Precision.FP16, True)], ids=["fp32", "fp16-logits"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engines, Precision, bool]:
    precision, keep_logits = request.param
    decoder = random_decoder(tiny_config(), max_positions=24)
    folder = tmp_path_factory.mktemp("engines")
    return compile_decoder(decoder, folder, precision, keep_logits=keep_logits), precision, keep_logits


def as_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return TensorSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, shape)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_inputs_and_outputs_of_an_engine_are_those_of_the_contract(built: tuple[Engines, Precision, bool], role: Role) -> None:
    engines, precision, keep_logits = built
    contract = step_contract(role, tiny_config(), precision, keep_logits)
    body = engines.model(role).graph
    found = [(spec.name, spec.dtype, spec.shape) for spec in map(as_spec, [*body.input, *body.output])]
    assert found == [(spec.name, spec.dtype, spec.shape) for spec in (*contract.inputs, *contract.outputs)]


def test_a_step_names_every_tensor_once_and_prefill_answers_one_row() -> None:
    contract = step_contract(Role.PREFILL, tiny_config(), Precision.FP16, keep_logits=True)
    assert [spec.name for spec in contract.inputs] == [
        "input_ids", "cache_length", "last_index", "past_key_0", "past_value_0", "past_key_1", "past_value_1",
    ]  # fmt: skip
    assert contract.output("token") == TensorSpec("token", "int64", ("B", 1))
    assert contract.output("logits") == TensorSpec("logits", "float32", ("B", 1, 400))
    assert contract.output("present_value_1") == TensorSpec("present_value_1", "float16", ("B", 2, "K", 16), "past_value_1")
    verify = step_contract(Role.VERIFY, tiny_config(), Precision.FP32)
    assert [spec.name for spec in verify.outputs][:3] == ["token", "confidence", "present_key_0"]
    assert verify.output("confidence").shape == ("B", "S")
    assert "last_index" not in [spec.name for spec in verify.inputs]


def test_the_cache_has_one_block_of_slack() -> None:
    assert Limits(max_batch_size=1, max_seq_len=100, block_length=8, prefill_chunk=4).cache_capacity == 108


def test_quadratic_steps_bring_their_own_slack() -> None:
    limits = Limits(max_batch_size=1, max_seq_len=100, block_length=8, prefill_chunk=4, quadratic_block_length=4)
    assert limits.longest_step(Role.QUADRATIC) == 20
    assert limits.cache_capacity == 120
    short = Limits(max_batch_size=1, max_seq_len=100, block_length=8, prefill_chunk=4, quadratic_block_length=2)
    assert (short.longest_step(Role.QUADRATIC), short.cache_capacity) == (6, 108)


def test_a_quadratic_step_takes_its_layout() -> None:
    contract = step_contract(Role.QUADRATIC, tiny_config(), Precision.FP16)
    assert contract.inputs[2:5] == (
        TensorSpec("position_offset", "int64", ("B", "S")),
        TensorSpec("step_mask", "bool", ("B", "S", "S")),
        TensorSpec("adapter_rows", "float32", ("B", "S")),
    )


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_batch_size", 0, "at least 1"),
        ("max_seq_len", -5, "at least 1"),
        ("block_length", 1, "at least 2"),
        ("block_length", 101, "max_seq_len = 100"),
        ("prefill_chunk", 101, "max_seq_len = 100"),
        ("quadratic_block_length", 1, "at least 2"),
        ("quadratic_block_length", 101, "max_seq_len = 100"),
    ],
)
def test_impossible_limits_are_refused(field: str, value: int, allowed: str) -> None:
    sizes = {"max_batch_size": 1, "max_seq_len": 100, "block_length": 8, "prefill_chunk": 4}
    with pytest.raises(InvalidInputError, match=allowed) as error:
        Limits(**(sizes | {field: value}))
    assert (error.value.field, error.value.value) == (field, value)
