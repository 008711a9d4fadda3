"""Kernels as machine code: no spills, wide loads, each logit read once; and what would happen otherwise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.plugins import find_op
from nemodiff_trt.plugins.compile_kernels import KernelError, build_key, compile_all, compile_build, triton_forms
from nemodiff_trt.plugins.gpus import GPUS, Gpu, predict
from nemodiff_trt.plugins.op import Form
from nemodiff_trt.plugins.sass import read_sass, read_usage
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm
from support.seeded_kernels import FITTING, SPILLING, STRIDED

SMS = (90, 100, 120, 121)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Triton's own cache is elsewhere as well, so that what is compiled here is compiled now."""
    import triton

    previous = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
    yield tmp_path_factory.mktemp("kernels")
    triton.knobs.cache.dir = previous


def build_named(name: str) -> KernelBuild:
    return next(build for form in triton_forms().values() for build in form.builds if build.name == name)


@pytest.mark.parametrize("sm", [100, 120])
@pytest.mark.parametrize(
    ("name", "loaded_bytes"), [("decision_head_part-bf16-1024", 2048), ("decision_head_part-bf16-4096", 8192)]
)
def test_the_head_reads_each_logit_once_in_wide_loads(folder: Path, sm: int, name: str, loaded_bytes: int) -> None:
    record = compile_build(build_named(name), sm, folder)
    assert record["warnings"] == []
    assert set(record["global_loads"]) == {"128"}
    assert record["loaded_bytes_per_program"] == loaded_bytes
    assert record["spill_loads"] == record["spill_stores"] == record["stack_bytes"] == 0


def test_a_kernel_that_spills_is_found(folder: Path) -> None:
    record = compile_build(SPILLING, 120, folder)
    assert record["spill_loads"] > 0
    assert record["spill_stores"] > 0
    assert any("spilled" in warning for warning in record["warnings"])
    assert compile_build(FITTING, 120, folder)["warnings"] == []


def test_narrow_loads_of_a_streaming_kernel_are_found(folder: Path) -> None:
    record = compile_build(STRIDED, 90, folder)
    assert record["global_loads"].keys() == {"32"}
    assert record["warnings"] == ["0% of its global loads are 16 bytes wide"]


def test_a_compiled_kernel_is_found_again_until_anything_changes(folder: Path) -> None:
    first = compile_build(FITTING, 100, folder)
    again = compile_build(FITTING, 100, folder)
    assert not first["is_cached"]
    assert again == {**first, "is_cached": True}
    keys = {
        build_key(build, sm)
        for build, sm in (
            (FITTING, 100), (FITTING, 120), (SPILLING, 100), (dataclasses.replace(FITTING, num_warps=2), 100),
            (dataclasses.replace(FITTING, aligned=frozenset()), 100),
            (dataclasses.replace(FITTING, kernel=STRIDED.kernel), 100),
        )
    }  # fmt: skip
    assert len(keys) == 6
    cubin = folder / "fitting-sm100.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1])
    assert not compile_build(FITTING, 100, folder)["is_cached"]
    (folder / "fitting-sm100.json").write_text("{")
    assert not compile_build(FITTING, 100, folder)["is_cached"]
    # Another source by the same name is not taken for the old one.
    assert not compile_build(dataclasses.replace(FITTING, num_warps=2), 100, folder)["is_cached"]


def test_report(folder: Path) -> None:
    form = find_op("next_block").load(Form.TRITON)
    seeded = TritonForm(form.launch, form.refuses, (STRIDED,), ())
    report = compile_all({"next_block": form, "seeded": seeded}, (90, 120), folder / "report")
    assert json.loads((folder / "report/report.json").read_text()) == report
    assert [(kernel["operator"], kernel["sm"]) for kernel in report["kernels"]] == [
        ("next_block", 90), ("next_block", 120), ("seeded", 90), ("seeded", 120),
    ]  # fmt: skip
    assert len(report["warnings"]) == 2
    assert report["warnings"][0].startswith("strided sm90: 0% of its global loads")
    assert [figures["ratio"] for figures in report["operators"]] == [1.0]
    assert (folder / "report/next_block_rows-32-sm120.cubin").read_bytes().startswith(b"\x7fELF")
    assert ".target sm_120" in (folder / "report/next_block_rows-32-sm120.ptx").read_text()


def test_what_cannot_be_compiled_is_named(folder: Path) -> None:
    with pytest.raises(KernelError, match="fitting for SM90"):
        compile_build(dataclasses.replace(FITTING, constants={"N": 33}), 90, folder / "nothing")


def test_bytes_moved_by_the_head_are_close_to_the_minimum() -> None:
    for traffic in find_op("decision_head").load(Form.TRITON).traffic:
        assert 1 <= traffic.ratio <= 1.02


@pytest.mark.parametrize("name", list(triton_forms()))
def test_figures_refer_to_shipped_kernels(name: str) -> None:
    form = triton_forms()[name]
    names = [build.name for build in form.builds]
    assert len(set(names)) == len(names)
    for traffic in form.traffic:
        assert set(traffic.kernels) <= set(names)
        assert traffic.moved >= traffic.minimum > 0
    for build in form.builds:
        assert build.types.keys() | build.constants.keys() == set(build.kernel.arg_names)
        assert build.aligned <= build.types.keys()


# One configuration of every kernel, the one that needs most registers.
LARGEST = (
    "decision_head_part-fp32-4096", "decision_head_combine-fp32-1024", "top_k_part-fp32-4096",
    "top_k_combine-128x8", "next_block_rows-32", "commit_masks_rows-64",
    "accept_draft_rows-64", "sampled_sum_parts-2048", "sampled_match_rows-64", "sampled_emit_rows-64",
    "attention_rows-32x8x128-m64-s8-block", "attention_join-128-s16", "masked_attention_rows-32x8x128-m128-s1",
)  # fmt: skip


@pytest.mark.parametrize("name", LARGEST)
def test_no_kernel_spills(folder: Path, name: str) -> None:
    assert compile_build(build_named(name), 120, folder)["warnings"] == []


def test_no_kernel_is_left_out() -> None:
    kernels = {build.kernel.fn.__name__ for form in triton_forms().values() for build in form.builds}
    assert kernels == {build_named(name).kernel.fn.__name__ for name in LARGEST}


@pytest.mark.slow
def test_no_shipped_kernel_has_a_warning(folder: Path) -> None:
    report = compile_all(triton_forms(), SMS, folder / "all")
    assert report["warnings"] == []


def test_prediction() -> None:
    gpu = Gpu("test", gigabytes_per_s=1000, teraflops=1, shared_bytes=0)
    assert predict(Traffic("", (), 2_000_000, 1), gpu).microseconds == pytest.approx(2)
    assert predict(Traffic("", (), 2_000_000, 1, operations=3_000_000), gpu).limited_by == "arithmetic"
    assert set(GPUS) == set(SMS)


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P1 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.64.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0040*/               @P0 LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0050*/                   STL.64 [R1], R4 ;
        /*0060*/                   LDL.64 R4, [R1] ;
{branch}        /*0080*/                   BRA 0x80;
        /*0090*/                   NOP;
"""


def test_reading_machine_code() -> None:
    code = read_sass(LISTING.format(branch=""))
    assert code.loads == {16: 1, 32: 1, 64: 1, 128: 1}
    assert (code.instructions, code.spill_loads, code.spill_stores, code.has_loop) == (8, 1, 1, False)
    assert code.loaded_bytes(32) == 32 * (2 + 4 + 8 + 16)
    assert code.wide_share() == pytest.approx(128 / 240)
    looped = read_sass(LISTING.format(branch="        /*0070*/               @P0 BRA 0x10 ;\n"))
    assert looped.has_loop
    assert looped.loaded_bytes(32) is None


def test_reading_nothing_fails() -> None:
    with pytest.raises(ValueError, match="no instruction"):
        read_sass("")
    with pytest.raises(ValueError, match="no resource usage"):
        read_usage("REG:32")
    usage: dict[str, Any] = read_usage("REG:32 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:9")
    assert usage == {"REG": 32, "STACK": 8, "SHARED": 0, "LOCAL": 0}
