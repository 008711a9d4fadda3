"""The quantisation benchmarks: how they judge, and that a layer is quantised while it is measured and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.quantization.recipe import ActivationRange, linear_names
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.vocabulary import LinearFormat, Role

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [((1, 2, 3), (1, 2, 3), None), ((1, 2), (1, 3), 1), ((1, 2), (1, 2, 3), 2), ((), (5,), 0)],
)
def test_first_divergence(ours: tuple[int, ...], theirs: tuple[int, ...], expected: int | None) -> None:
    from quantization import first_divergence

    assert first_divergence(ours, theirs) == expected


def test_a_layer_is_quantised_only_while_it_is_measured(tiny_checkpoint: Checkpoint) -> None:
    from sensitivity import GROUPS, quantised

    decoder = tiny_checkpoint.load_decoder(32, torch.float32, adapter=True)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    names = linear_names(tiny_checkpoint.config)
    statistics = ActivationStatistics("", ActivationRange.MAX, 1, 1, {name: {Role.VERIFY: 3.0} for name in names})
    linears = [f"encoder.layers.1.{name}" for name in GROUPS["qkv"]]
    for form in LinearFormat:
        with quantised(decoder, linears, form, statistics):
            changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
            assert changed == {f"{name}.weight" for name in linears}
            assert all(len(decoder.get_submodule(name)._forward_pre_hooks) == 1 for name in linears)
        assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
        assert all(not decoder.get_submodule(name)._forward_pre_hooks for name in linears)


def test_sensitivity_of_every_layer_in_every_role(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    from sensitivity import ROLES, measure

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Name three colours.\n")
    rows = measure(tiny_checkpoint, 1, prompts)
    assert len(rows) == (2 * 4 + 1) * len(LinearFormat) * len(ROLES)
    divergence = {(row["layer"], row["format"], row["role"]): row["divergence"] for row in rows}
    for form in LinearFormat:
        for role in ROLES:
            one = [value for (layer, *key), value in divergence.items() if key == [form, role] and layer != "all"]
            assert min(one) > 0
            # The whole decoder is worse than its layers are on average.
            assert divergence["all", form, role] > sum(one) / len(one)
    assert divergence["all", LinearFormat.NVFP4, Role.VERIFY] > divergence["all", LinearFormat.FP8, Role.VERIFY]
