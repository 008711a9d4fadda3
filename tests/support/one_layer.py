"""One decoder layer as a program text and the facts about it: G = 2, K = 64, D = 8, hidden 16, bf16, dynamic batch and step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemodiff_trt.plan_audit import AuditPoint, CacheFact, PlanAudit, ProfileRange, StepFacts, WeightFact, audit_plan
from nemodiff_trt.vocabulary import Precision
from support import program_texts as texts

CACHE = CacheFact(num_kv_heads=2, capacity=64, head_dim=8, item_bytes=2)
TOKEN_BYTES = 2 * 8 * 2
WEIGHTS = {
    "embed_tokens.weight": WeightFact("bfloat16", (100, 16), 3200, by_rows=True),
    "norm.weight": WeightFact("bfloat16", (16,), 32),
    "out.weight": WeightFact("bfloat16", (48, 16), 1536),
}
INPUTS = ("input_ids.1", "cache_length.1", "k", "v", "embed_tokens.weight.1", "norm.weight.1", "out.weight.1")
DESCRIPTORS = (
    texts.tensor("input_ids.1", '"b" "s"', "int64"),
    texts.tensor("cache_length.1", '"b"', "int64"),
    texts.tensor("k", '"b" 2 64 8'),
    texts.tensor("v", '"b" 2 64 8'),
    texts.tensor("embed_tokens.weight.1", "100 16"),
    texts.tensor("norm.weight.1", "16"),
    texts.tensor("out.weight.1", "48 16"),
    texts.tensor("x", '"b" "s" 16'),
    texts.tensor("y", '"b" "s" 48'),
    texts.tensor("lengths", '"b"', "int32"),
    texts.tensor("workspace", "1000000", "int8").replace("alignment=16", "alignment=16 is_scratchspace=1"),
    texts.view("w^deref", "out.weight.1", "16 48"),
    texts.view("y_left", "y", '"b" "s" 24'),
    texts.view("y_right", "y", '"b" "s" 24', offset=24),
    texts.size("b"),
    texts.size("s"),
)
GATHER = texts.function("__myl_GathMul", ("norm.weight.1", "embed_tokens.weight.1", "input_ids.1", "b"), ("x",))
SCATTER = texts.function("__myl_SlicScat", ("k", "v", "y_left", "y_right"), ("k", "v"))
LENGTHS = texts.function("__myl_AddCast", ("cache_length.1",), ("lengths",))
ATTENTION = texts.function("_gemm_mha_v2", ("k", "v", "x", "lengths", "s"), ("x",))
GEMM = texts.gemm(("x", "w^deref"), "y")
CLEAN = (LENGTHS, GATHER, GEMM, SCATTER, ATTENTION)


FACTS = StepFacts(
    role="verify",
    precision=Precision.BF16,
    num_layers=1,
    vocab_size=100,
    cache=CACHE,
    weights=WEIGHTS,
    profiles=(ProfileRange(1, 8, 1, 32),),
    points=(AuditPoint(2, 4, 8),),
)


def layer(main: Iterable[str], *more_tensors: str, inputs: Iterable[str] = (), **options: Any) -> str:
    """The layer's program with these operations; `inputs` are more than it has anyway."""
    return texts.program((*INPUTS, *inputs), ("k", "v"), (*DESCRIPTORS, *more_tensors), main, **options)


def audit_layer(main: Iterable[str], *more_tensors: str, inputs: Iterable[str] = (), facts: StepFacts = FACTS) -> PlanAudit:
    return audit_plan(texts.plan(layer(main, *more_tensors, inputs=inputs)), facts)
