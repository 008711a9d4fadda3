"""Bundles: what was written is what is opened, every change to any file is found and named, replacing is atomic."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

from nemodiff_trt import atomic_folder
from nemodiff_trt.bundle import (
    AdapterFacts,
    Bundle,
    BundleWriter,
    Combine,
    Manifest,
    RoleEngine,
    WeightLayout,
    mapped_tensors,
    tensor_over,
)
from nemodiff_trt.bundle.safetensors_layout import plan_spans
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.vocabulary import Mode, Precision, Role, Target
from support.checkpoints import tiny_config

FILES = {
    "engines/decode-verify.onnx": b"causal engine",
    "engines/prefill.onnx": b"prefill engine",
    "weights/shared.safetensors": bytes(range(256)) * 40,
    "tokenizer/tokenizer.json": b"{}",
    "report.json": b'{"passes": {}}',
}


def make_manifest(writer: BundleWriter, build_key: str = "k1") -> Manifest:
    return Manifest(
        model=tiny_config(),
        target=Target.ONNXRUNTIME,
        precision=Precision.FP16,
        modes=(Mode.AR, Mode.SELF_SPECULATION),
        limits=Limits(max_batch_size=2, max_seq_len=64, block_length=8, prefill_chunk=16),
        keep_logits=False,
        adapter=AdapterFacts(rank=4, scale=4.0),
        roles={
            Role.PREFILL: RoleEngine("engines/prefill.onnx"),
            Role.DECODE: RoleEngine("engines/decode-verify.onnx", (Role.VERIFY,)),
            Role.VERIFY: RoleEngine("engines/decode-verify.onnx", (Role.DECODE,)),
        },
        operators={"attention": "standard operators"},
        weights={
            "qkv": WeightLayout(("q", "k", "v"), True, "float16"),
            "query_cos": WeightLayout((), False, "float16", Combine.ROTARY_TABLE),
        },
        weight_shapes={"qkv": (16, 24), "query_cos": (72, 4)},
        build_key=build_key,
        tool_versions={"onnx": "1.23.2"},
        files=writer.file_entries(),
    )


def fill(writer: BundleWriter) -> None:
    for name, content in FILES.items():
        path = writer.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def write_bundle(output: Path, force: bool = False, build_key: str = "k1") -> Path:
    with BundleWriter(output, force) as writer:
        fill(writer)
        writer.publish(make_manifest(writer, build_key))
    return output


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "out" / "b")


def siblings(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def test_a_bundle_comes_back_as_it_was_written(bundle_dir: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_dir)
    with BundleWriter(tmp_path / "again") as writer:
        fill(writer)
        assert bundle.manifest == make_manifest(writer)
    assert bundle.engine_path(Role.VERIFY).read_bytes() == b"causal engine"
    assert bundle.weights_path.read_bytes() == FILES["weights/shared.safetensors"]
    assert (bundle.tokenizer_dir / "tokenizer.json").exists()
    assert bundle.report() == {"passes": {}}
    assert siblings(bundle_dir) == ["b"]


def test_a_role_that_was_not_built_is_named(bundle_dir: Path) -> None:
    with pytest.raises(BundleError, match=r"no engine for role denoise.*ar, self_speculation"):
        Bundle.open(bundle_dir).engine_path(Role.DENOISE)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_byte_in_any_file_is_found_and_the_file_named(bundle_dir: Path, name: str, where: str) -> None:
    content = bytearray(FILES[name])
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    (bundle_dir / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: altered"):
        Bundle.open(bundle_dir)


def test_any_flipped_bit_of_the_manifest_is_found(bundle_dir: Path) -> None:
    intact = (bundle_dir / "manifest.json").read_bytes()
    Manifest.from_bytes(intact)
    for position in range(len(intact)):
        damaged = bytearray(intact)
        # Another bit at every position, so that all of them have their turn.
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Manifest.from_bytes(bytes(damaged))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_truncated_missing_and_extended_files_are_named(bundle_dir: Path, name: str) -> None:
    path = bundle_dir / name
    intact = path.read_bytes()
    for content in (intact[:-1], b"", intact + b"\n"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=name):
            Bundle.open(bundle_dir, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle_dir, verify=False)


def test_unknown_files_are_named(bundle_dir: Path) -> None:
    (bundle_dir / "engines" / "draft.onnx").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"engines/draft\.onnx: not part of the bundle"):
        Bundle.open(bundle_dir)
    (bundle_dir / "engines" / "draft.onnx").unlink()
    (bundle_dir / "linked").symlink_to(bundle_dir / "weights")
    with pytest.raises(BundleError, match="linked: not part of the bundle"):
        Bundle.open(bundle_dir)


def test_checksums_are_only_skipped_on_request(bundle_dir: Path) -> None:
    (bundle_dir / "report.json").write_bytes(b'{"passes": []}')
    Bundle.open(bundle_dir, verify=False)
    with pytest.raises(BundleError, match=r"report\.json"):
        Bundle.open(bundle_dir)


def test_something_else_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "nowhere")


def resealed(bundle_dir: Path, **changes: object) -> bytes:
    """The manifest with other content and a correct digest, as a program that means it would write it."""
    content = json.loads((bundle_dir / "manifest.json").read_bytes())
    content.pop("digest")
    return writer_module_seal(content | changes)


def writer_module_seal(content: dict[str, object]) -> bytes:
    import hashlib

    def dump(value: dict[str, object]) -> bytes:
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    return dump({**content, "digest": hashlib.sha256(dump(content)).hexdigest()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema version 1, this program reads 3"),
        ({"target": "abacus"}, "unusable content"),
        ({"files": {}}, "not among the files"),
        ({"files": {"../outside": {"sha256": "", "num_bytes": 0}}}, "leaves the bundle"),
        ({"limits": {"max_batch_size": 1}}, "unusable content"),
    ],
)
def test_a_manifest_this_program_cannot_use_is_refused(bundle_dir: Path, changes: dict[str, object], message: str) -> None:
    assert Manifest.from_bytes(resealed(bundle_dir)) == Bundle.open(bundle_dir).manifest
    (bundle_dir / "manifest.json").write_bytes(resealed(bundle_dir, **changes))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_dir)


def test_an_existing_bundle_is_replaced_only_with_force(bundle_dir: Path) -> None:
    with pytest.raises(InvalidInputError, match="force"):
        write_bundle(bundle_dir)
    assert Bundle.open(bundle_dir).manifest.build_key == "k1"
    write_bundle(bundle_dir, force=True, build_key="k2")
    assert Bundle.open(bundle_dir).manifest.build_key == "k2"
    assert siblings(bundle_dir) == ["b"]


def test_replacing_works_where_names_cannot_be_exchanged(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    write_bundle(bundle_dir, force=True, build_key="k2")
    assert Bundle.open(bundle_dir).manifest.build_key == "k2"
    assert siblings(bundle_dir) == ["b"]


def test_force_does_not_replace_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInputError, match="not a bundle"):
        write_bundle(tmp_path / "home", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="a folder"):
        write_bundle(tmp_path / "file", force=True)
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty")


def test_a_failed_build_leaves_no_trace_and_the_old_bundle(bundle_dir: Path) -> None:
    def failing_build() -> None:
        with BundleWriter(bundle_dir, force=True) as writer:
            fill(writer)
            raise RuntimeError("the compiler gave up")

    with pytest.raises(RuntimeError):
        failing_build()
    assert Bundle.open(bundle_dir).manifest.build_key == "k1"
    assert siblings(bundle_dir) == ["b"]


def test_leftovers_of_killed_builds_go_and_running_builds_stay(tmp_path: Path) -> None:
    leftover = tmp_path / ".b.building-0123456789abcdef"
    leftover.mkdir()
    (leftover / "half.onnx").write_bytes(b"half")
    with BundleWriter(tmp_path / "b") as running:
        assert not leftover.exists()
        (running.path / "mine").write_bytes(b"")
        with BundleWriter(tmp_path / "b"):
            assert (running.path / "mine").exists()
    assert siblings(tmp_path / "b") == []


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write next to"), BundleWriter(tmp_path / "file" / "below" / "b"):
        pass


def test_planned_weight_files_are_safetensors_with_aligned_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"odd": (3, 5), "page": (32, 32), "row": (48,), "half": (7, 3)}
    tensors = {
        name: rng.standard_normal(shape).astype(np.float16 if name == "half" else np.float32) for name, shape in shapes.items()
    }
    head, spans = plan_spans({name: (value.dtype.name, value.shape) for name, value in tensors.items()})
    content = bytearray(head)
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        assert len(content) == span.start
        content += tensors[name].tobytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert spans["page"].start % 4096 == 0
    assert spans["row"].start % 64 == 0
    mapped = mapped_tensors(path)
    for name, value in load_file(path).items():
        np.testing.assert_array_equal(value, tensors[name])
        np.testing.assert_array_equal(mapped[name], tensors[name])
        assert not mapped[name].flags.writeable
    path.write_bytes(bytes(content[:20]))
    with pytest.raises(BundleError, match="not a readable weight file"):
        mapped_tensors(path)


def test_bfloat16_is_planned_and_mapped_as_its_bits(tmp_path: Path) -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    head, spans = plan_spans({"w": ("bfloat16", (3, 5))})
    path = tmp_path / "w.safetensors"
    path.write_bytes(head + bytes(value.view(torch.uint8).numpy().data))
    assert spans["w"].num_bytes == 30
    mapped = mapped_tensors(path)["w"]
    assert mapped.dtype == np.uint16
    for found in (load_torch_file(path)["w"], tensor_over(mapped, "bfloat16")):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, value)


def test_a_bundle_can_be_moved_and_is_readable_by_others(bundle_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(bundle_dir, tmp_path / "moved"))
    assert dataclasses.replace(Bundle.open(moved), path=bundle_dir) == Bundle.open(bundle_dir)
    umask = os.umask(0)
    os.umask(umask)
    assert bundle_dir.stat().st_mode & 0o777 == 0o777 & ~umask
