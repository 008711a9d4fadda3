"""What TensorRT compiles for nemodiff-tiny, run by ONNX Runtime in fp32: in every role the tokens of the eager decoder.

The graphs are those of the TensorRT pipeline, with fused matrices, scaled and exposed queries; only the writer differs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from nemodiff_trt import contract
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.step_checks import layout_arrays
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems
from nemodiff_trt.vocabulary import Mode, Role, Target
from support.engines import Engines, compile_decoder

CAPACITY, BLOCK = 256, 16


class ShadowSession(EagerSession):
    """The eager session; every step also runs through an engine, on the same cache, and has to decide alike."""

    engines: Engines
    num_steps: Counter[Role]

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[torch.Tensor],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        inputs = {contract.INPUT_IDS: torch.from_numpy(input_ids), contract.CACHE_LENGTH: torch.from_numpy(cache.length)}
        if last_index is not None:
            inputs[contract.LAST_INDEX] = torch.from_numpy(last_index)
        if layout is not None:
            inputs |= {name: torch.from_numpy(array) for name, array in layout_arrays(layout).items()}
        for layer, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            inputs |= {contract.past_key(layer): key, contract.past_value(layer): value}
        found = self.engines.run(role, inputs)
        wanted = super().run(role, input_ids, cache, last_index, layout)
        np.testing.assert_array_equal(found[contract.TOKEN].numpy(), wanted.token, err_msg=f"role {role}")
        # fp32 sums in another order.
        np.testing.assert_allclose(found[contract.CONFIDENCE].numpy(), wanted.confidence, atol=1e-4)
        torch.testing.assert_close(found[contract.present_key(0)], cache.keys[0], rtol=1e-4, atol=1e-4)
        exposed = [name for name in found if name.startswith("scaled_query")]
        assert len(exposed) == (0 if role is Role.DECODE else len(cache.keys))
        self.num_steps[role] += 1
        return wanted


@pytest.fixture(scope="module")
def shadow(tmp_path_factory: pytest.TempPathFactory) -> tuple[TriModeLM, ShadowSession]:
    folder = resolve_checkpoint("nemodiff-tiny")
    decoder = Checkpoint.open(folder).load_decoder(CAPACITY, torch.float32, adapter=True)
    limits = Limits(max_batch_size=2, max_seq_len=CAPACITY - BLOCK, block_length=BLOCK, prefill_chunk=64)
    session = ShadowSession(decoder, limits)
    session.engines = compile_decoder(decoder, tmp_path_factory.mktemp("engines") / "rtx", target=Target.TENSORRT_RTX)
    session.num_steps = Counter()
    return TriModeLM(session, Tokenizer.from_dir(folder)), session


@pytest.mark.parametrize(
    ("mode", "roles"),
    [
        (Mode.AR, {Role.PREFILL, Role.DECODE}),
        (Mode.DIFFUSION, {Role.PREFILL, Role.DENOISE, Role.VERIFY}),
        (Mode.SELF_SPECULATION, {Role.PREFILL, Role.DRAFT, Role.VERIFY}),
    ],
)
def test_every_role_decides_as_the_eager_decoder(shadow: tuple[TriModeLM, ShadowSession], mode: Mode, roles: set[Role]) -> None:
    model, session = shadow
    session.num_steps.clear()
    chats = [[{"role": "user", "content": problem.prompt}] for problem in held_out_problems(4, seed=7)]
    results = model.generate(chats, GenerationOptions(mode=mode, max_new_tokens=40))
    assert session.num_steps.keys() == roles
    assert all(count > 1 for count in session.num_steps.values())
    assert sum(len(result.token_ids) for result in results) > 40


def test_all_graphs_share_one_weight_file(shadow: tuple[TriModeLM, ShadowSession], tmp_path: Path) -> None:
    session = shadow[1]
    decoder = Checkpoint.open(resolve_checkpoint("nemodiff-tiny")).load_decoder(CAPACITY, torch.float32, adapter=True)
    num_bytes = sum(parameter.numel() * 4 for parameter in decoder.state_dict().values())
    assert session.engines.stored.num_bytes < 1.05 * num_bytes
