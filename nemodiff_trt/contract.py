"""The step contract: names, dtypes, axes and aliasing of every engine's inputs and outputs, declared once.

Export, targets, sessions and the server configuration read this module; none of them spells a tensor name of its own.

Axis letters, used in every docstring of the project:

    B  batch                 S  tokens of one step        V  vocabulary
    K  cache capacity        L  layers                    N  heads of either kind
    H  query heads           G  key/value heads           D  head_dim
"""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.vocabulary import Precision, Role, Target

INPUT_IDS = "input_ids"
CACHE_LENGTH = "cache_length"
LAST_INDEX = "last_index"
POSITION_OFFSET = "position_offset"
STEP_MASK = "step_mask"
ADAPTER_ROWS = "adapter_rows"
# Inputs of a role whose steps have a layout, in their order.
LAYOUT = (POSITION_OFFSET, STEP_MASK, ADAPTER_ROWS)
TOKEN = "token"
CONFIDENCE = "confidence"
LOGITS = "logits"

# Activations and cache of an engine; FP8 and NVFP4 engines quantise inside their linears only.
ENGINE_FLOAT: dict[Precision, str] = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.FP8: "bfloat16",
    Precision.NVFP4: "bfloat16",
}


def compute_precision(precision: Precision, target: Target) -> Precision:
    """Precision of everything but quantised linear layers: bf16 on a GPU, fp32 where a CPU emulates the formats."""
    if precision.linear_format is None:
        return precision
    return Precision.FP32 if target is Target.ONNXRUNTIME else Precision.BF16


# Bytes of one stored element; float4_e2m1fn_x2 is two numbers in a byte, as torch counts them.
ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float4_e2m1fn_x2": 1,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


def past_key(layer: int) -> str:
    """Name of the cache input of one layer that holds its keys."""
    return f"past_key_{layer}"


def past_value(layer: int) -> str:
    """Name of the cache input of one layer that holds its values."""
    return f"past_value_{layer}"


def present_key(layer: int) -> str:
    """Name of the cache output of one layer that holds its keys."""
    return f"present_key_{layer}"


def present_value(layer: int) -> str:
    """Name of the cache output of one layer that holds its values."""
    return f"present_value_{layer}"


def scaled_query(layer: int) -> str:
    """Name of the scratch output that holds the scaled query of one layer, on targets that want one."""
    return f"scaled_query_{layer}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes an engine was built for. All are counts of tokens, except `max_batch_size`.

    `max_seq_len` is the number of tokens (prompt and answer) a sequence may reach. `quadratic_block_length` is the largest
    block B of quadratic self-speculation, whose steps have up to B(B + 1) tokens; 0 where the role was not built.
    """

    max_batch_size: int
    max_seq_len: int
    block_length: int
    prefill_chunk: int
    quadratic_block_length: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_seq_len", "block_length", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, getattr(self, name), "an integer of at least 1")
        if self.block_length < 2:
            raise InvalidInputError(
                "block_length", self.block_length, "an integer of at least 2: one known token and one to guess"
            )
        if self.quadratic_block_length != 0 and self.quadratic_block_length < 2:
            allowed = "an integer of at least 2: one known token and one to guess; 0 without quadratic steps"
            raise InvalidInputError("quadratic_block_length", self.quadratic_block_length, allowed)
        for name in ("block_length", "prefill_chunk", "quadratic_block_length"):
            if getattr(self, name) > self.max_seq_len:
                raise InvalidInputError(name, getattr(self, name), f"at most max_seq_len = {self.max_seq_len}")

    def longest_step(self, role: Role) -> int:
        """Most tokens of one step of `role`; the fewest are one."""
        if role is Role.QUADRATIC:
            return self.quadratic_block_length * (self.quadratic_block_length + 1)
        return {Role.PREFILL: self.prefill_chunk, Role.DECODE: 1}.get(role, self.block_length)

    @property
    def cache_capacity(self) -> int:
        """K: slack of the longest step, whose tokens may all be written behind the last committed one; prefill needs none."""
        return self.max_seq_len + max(self.block_length, self.longest_step(Role.QUADRATIC))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One engine tensor. A letter in `shape` is a dynamic axis, a number is fixed.

    `alias_of` names the input whose buffer an output is bound to.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    alias_of: str | None = None


@dataclass(frozen=True, slots=True)
class StepContract:
    """Inputs and outputs of one role, in the order of the engine's signature."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def output(self, name: str) -> TensorSpec:
        return next(spec for spec in self.outputs if spec.name == name)


def step_contract(role: Role, model: ModelConfig, precision: Precision, keep_logits: bool = False) -> StepContract:
    """The contract of `role`.

    Args:
        role: prefill takes `last_index` and answers one row per sequence; every other role answers all S rows. quadratic
            takes the layout of its step; `adapter_rows` is an input of it also where no adapter is applied, and has no
            effect then.
        model: gives the number of layers, G, D and V.
        precision: gives the dtype of the cache.
        keep_logits: the engine was built with sampling and also returns logits fp32.
    """
    step_axis: str | int = 1 if role is Role.PREFILL else "S"
    cache_shape: tuple[str | int, ...] = ("B", model.num_key_value_heads, "K", model.head_dim)
    dtype = ENGINE_FLOAT[precision]
    inputs = [TensorSpec(INPUT_IDS, "int64", ("B", "S")), TensorSpec(CACHE_LENGTH, "int64", ("B",))]
    if role is Role.PREFILL:
        inputs.append(TensorSpec(LAST_INDEX, "int64", ("B",)))
    if role.takes_layout:
        inputs.append(TensorSpec(POSITION_OFFSET, "int64", ("B", "S")))
        inputs.append(TensorSpec(STEP_MASK, "bool", ("B", "S", "S")))
        inputs.append(TensorSpec(ADAPTER_ROWS, "float32", ("B", "S")))
    outputs = [TensorSpec(TOKEN, "int64", ("B", step_axis)), TensorSpec(CONFIDENCE, "float32", ("B", step_axis))]
    if keep_logits:
        outputs.append(TensorSpec(LOGITS, "float32", ("B", step_axis, model.vocab_size)))
    for layer in range(model.num_hidden_layers):
        for past, present in ((past_key, present_key), (past_value, present_value)):
            inputs.append(TensorSpec(past(layer), dtype, cache_shape))
            outputs.append(TensorSpec(present(layer), dtype, cache_shape, alias_of=past(layer)))
    return StepContract(tuple(inputs), tuple(outputs))
