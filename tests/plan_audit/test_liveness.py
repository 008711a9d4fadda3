"""Memory of intermediate results: what is alive at once, worked out by hand for 8 tokens of one layer."""

from __future__ import annotations

import pytest

from support import program_texts as texts
from support.one_layer import CLEAN, GATHER, GEMM, audit_layer

# Two sequences of four tokens: x [2,4,16] and y [2,4,48] in bf16, lengths [2] in int32.
X, Y, LENGTHS = 256, 768, 8


@pytest.mark.parametrize(
    ("main", "peak"),
    [
        # Attention reads x and the lengths at the end, so everything is alive behind the product.
        (CLEAN, X + Y + LENGTHS),
        # x dies at the product, before the lengths are born.
        ((GATHER, GEMM, texts.function("__myl_Mul", ("y",), ("lengths",))), X + Y),
        ((GATHER,), X),
        ((), 0),
    ],
)
def test_peak_of_intermediate_results(main: tuple[str, ...], peak: int) -> None:
    point = audit_layer(main).profiles[0].points[0]
    assert point.peak_activation_bytes == peak
    assert point.to_dict()["peak_activation_bytes"] == peak


def test_workspace_and_bound_tensors_are_not_counted() -> None:
    kernel = texts.function("__myl_Mul", ("k", "out.weight.1", "workspace"), ("x",))
    assert audit_layer((kernel,)).profiles[0].points[0].peak_activation_bytes == X
