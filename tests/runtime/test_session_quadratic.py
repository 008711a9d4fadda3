"""The role quadratic through a bundle: equal to the eager session, at the cost of the used slots, and finally equal to ar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.parity import compare_sessions
from nemodiff_trt.runtime.rows.quadratic_layout import quadratic_layout, tree_layout
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_inductor import InductorSession
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.session_tensorrt import TensorRTSession
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Precision, Role, Target
from support.bundles import build_bundle
from support.gpu_bundles import make_gpu_bundle
from support.gpu_machine import Machine

# fp32 sums of at most 96 products, in another order.
CONFIDENCE_ERROR = 1e-5


@pytest.fixture(scope="module")
def session(quadratic_bundle: Bundle) -> OnnxRuntimeSession:
    return OnnxRuntimeSession.open(quadratic_bundle, num_threads=1)


@pytest.fixture(scope="module")
def oracle(quadratic_bundle: Bundle) -> EagerSession:
    return EagerSession.from_bundle(quadratic_bundle)


@pytest.fixture(scope="module")
def device_session(quadratic_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> TensorRTSession:
    """TensorRT-RTX on stand-ins for module and device."""
    folder = make_gpu_bundle(quadratic_bundle.path, tmp_path_factory.mktemp("gpu") / "bundle", keep_logits=False)
    return Machine(Bundle.open(folder)).open()


def prefilled(session: Any) -> Any:
    """Three rows of different length, one of them empty."""
    cache, ids = session.create_cache(3), np.random.default_rng(0).integers(101, 400, (3, 12))
    session.run(Role.PREFILL, ids, cache, np.full(3, 11))
    cache.length[:] = 12, 0, 7
    return cache


@pytest.mark.parametrize(
    "layouts",
    [
        [quadratic_layout(4, (0, 1, 2, 3), 4)] * 3,
        [quadratic_layout(1, (0,), 4), StepLayout.causal(5), tree_layout(3, [1, 2])],
    ],
)
def test_equals_the_eager_session(session: OnnxRuntimeSession, oracle: EagerSession, layouts: list[StepLayout]) -> None:
    layout = StepLayout.stack(layouts)
    ids = np.random.default_rng(1).integers(101, 400, layout.position_offset.shape)
    caches = [prefilled(each) for each in (session, oracle)]
    ours, right = (
        each.run(Role.QUADRATIC, ids, cache, layout=layout) for each, cache in zip((session, oracle), caches, strict=True)
    )
    np.testing.assert_array_equal(ours.token, right.token)
    np.testing.assert_allclose(ours.confidence, right.confidence, rtol=0, atol=CONFIDENCE_ERROR)
    assert ours.logits is not None
    np.testing.assert_allclose(ours.logits, right.logits, rtol=1e-4, atol=1e-4)
    for row, length in enumerate(caches[0].length):
        for found, wanted in zip(caches[0].keys + caches[0].values, caches[1].keys + caches[1].values, strict=True):
            part = slice(length, length + ids.shape[1])
            np.testing.assert_allclose(found[row, :, part], wanted[row, :, part].numpy(), rtol=1e-4, atol=2e-5)


def test_a_device_session_takes_layouts_and_replays_them(device_session: TensorRTSession, oracle: EagerSession) -> None:
    caches = [prefilled(each) for each in (device_session, oracle)]
    for seed, layout in enumerate((quadratic_layout(4, (0, 1, 2, 3), 4), StepLayout.causal(20))):
        ids = np.random.default_rng(seed).integers(101, 400, (3, 20))
        batch = StepLayout.stack([layout] * 3)
        outputs = [
            each.run(Role.QUADRATIC, ids, cache, layout=batch)
            for each, cache in zip((device_session, oracle), caches, strict=True)
        ]
        np.testing.assert_array_equal(outputs[0].token, outputs[1].token)
        np.testing.assert_allclose(outputs[0].confidence, outputs[1].confidence, rtol=0, atol=CONFIDENCE_ERROR)
        for cache in caches:
            cache.length += 2
            cache.move(2, int(cache.length[2]) + 3, int(cache.length[2]) - 1)


@pytest.mark.slow
def test_inductor_equals_the_eager_session(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    folder = build_bundle(
        tiny_checkpoint_dir, tmp_path / "b", target=Target.INDUCTOR, modes=(Mode.QUADRATIC,), quadratic_block_length=4
    )
    bundle = Bundle.open(folder)
    session, oracle = InductorSession.open(bundle, num_threads=1), EagerSession.from_bundle(bundle)
    results = compare_sessions(session, oracle, list(range(150, 170)))
    assert set(results) == {Role.PREFILL, Role.QUADRATIC}
    assert all(result.is_within(Precision.FP32) for result in results.values())
    caches, batch = [prefilled(each) for each in (session, oracle)], StepLayout.stack([quadratic_layout(1, (0,), 4)] * 3)
    ours, right = (
        each.run(Role.QUADRATIC, np.full((3, 5), 150), cache, layout=batch)
        for each, cache in zip((session, oracle), caches, strict=True)
    )
    np.testing.assert_array_equal(ours.token, right.token)


def test_heads_are_verified_by_the_base_weights(session: OnnxRuntimeSession) -> None:
    """Masks and adapter leave no trace in the heads; other sums of the same products do, as the steps differ in length."""
    ids = np.random.default_rng(2).integers(101, 400, (3, 4))
    logits = session.run(Role.VERIFY, ids, prefilled(session)).logits
    assert logits is not None
    verified = logits.copy()
    masks = np.full((3, 16), session.model.mask_token_id)
    layout = StepLayout.stack([quadratic_layout(4, (0, 1, 2, 3), 4)] * 3)
    found = session.run(Role.QUADRATIC, np.concatenate([ids, masks], 1), prefilled(session), layout=layout).logits
    assert found is not None
    np.testing.assert_allclose(found[:, :4], verified, rtol=1e-4, atol=1e-4)


def test_a_moved_slot_is_as_good_as_one_computed_there(session: OnnxRuntimeSession) -> None:
    block, leaf, following = np.full((1, 3), 150), np.array([[222]]), np.array([[300, 301]])
    tree, straight = (session.create_cache(1) for _ in range(2))
    layout = StepLayout.stack([tree_layout(3, [1])])
    session.run(Role.QUADRATIC, np.concatenate([block, leaf], 1), tree, layout=layout)
    tree.move(0, 3, 1)
    session.run(Role.VERIFY, np.concatenate([block[:, :1], leaf], 1), straight)
    answers = []
    for cache in (tree, straight):
        cache.length[:] = 2
        answers.append(session.run(Role.VERIFY, following, cache).confidence.copy())
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=CONFIDENCE_ERROR)


def test_attention_reads_the_used_part_of_the_cache_behind_one_mask(quadratic_bundle: Bundle) -> None:
    file = quadratic_bundle.manifest.roles[Role.QUADRATIC].file
    nodes = onnx.load(quadratic_bundle.path / file, load_external_data=False).graph.node
    producer = {output: node for node in nodes for output in node.output}
    attentions = [node for node in nodes if node.op_type == "Attention"]
    assert len({node.input[3] for node in attentions}) == 1
    for attention in attentions:
        for source in attention.input[1:3]:
            assert producer[source].op_type == "Slice"
            assert producer[producer[source].input[2]].op_type == "ReduceMax"


def test_session_parity_covers_the_role(session: OnnxRuntimeSession, oracle: EagerSession) -> None:
    results = compare_sessions(session, oracle, list(range(150, 170)))
    assert results[Role.QUADRATIC].num_tokens == 2 * 20
    assert all(result.is_within(Precision.FP32) for result in results.values())


def test_a_step_without_a_layout_is_refused(session: OnnxRuntimeSession) -> None:
    with pytest.raises(InvalidInputError, match="layout: got None"):
        session.run(Role.QUADRATIC, np.full((3, 20), 150), prefilled(session))
    with pytest.raises(InvalidInputError, match="input_ids"):
        session.run(Role.QUADRATIC, np.full((3, 21), 150), prefilled(session), layout=StepLayout.zeros(3, 21))


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": Mode.QUADRATIC},
        {"mode": Mode.QUADRATIC, "block_length": 3, "draft_groups": 1},
        {"mode": Mode.SELF_SPECULATION, "block_length": 6, "num_leaves": 3},
    ],
)
def test_answers_equal_ar(quadratic_bundle: Bundle, session: OnnxRuntimeSession, changes: dict[str, Any]) -> None:
    model = TriModeLM(session, Tokenizer.from_dir(quadratic_bundle.tokenizer_dir))
    prompts = ["the", "an answer", "[1, 2, 3]", "x = y"]
    wanted = [result.token_ids for result in model.generate(prompts, mode="ar", max_new_tokens=30)]
    assert [result.token_ids for result in model.generate(prompts, max_new_tokens=30, **changes)] == wanted


def test_build_options_reach_the_bundle(quadratic_bundle: Bundle) -> None:
    manifest = quadratic_bundle.manifest
    assert (manifest.limits.quadratic_block_length, manifest.limits.cache_capacity) == (4, 128 + 20)
    assert set(manifest.roles) == {Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DRAFT, Role.QUADRATIC}
    assert Role.QUADRATIC in {Role(role) for role in quadratic_bundle.report()["parity"]}
