"""What others offer for the same weights: `transformers`, plain and with prompt look-up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from nemodiff_trt.runtime.bench.reference_model import ReferenceModel
from nemodiff_trt.runtime.bench.trace import Trace


class _Clock(BaseStreamer):  # type: ignore[misc, unused-ignore]
    """Notes when tokens come; the prompt comes first."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - the tokens are in the result
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersSubject:
    """Greedy `generate` with its key-value cache, one prompt after the other; with `lookup` drafts, assisted by look-up."""

    def __init__(self, model: ReferenceModel, max_new_tokens: int, lookup: int = 0) -> None:
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._options: dict[str, Any] = {"use_cache": True} | ({"prompt_lookup_num_tokens": lookup} if lookup else {})
        self._num_forwards = self._num_tokens = 0

    def answer(self, prompts: Sequence[list[int]]) -> list[Trace]:
        """Answers to all prompts, in their order."""

        def count(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
            self._num_forwards += 1
            self._num_tokens += given["input_ids"].shape[1]

        hook = self._model.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return [self._answer(prompt) for prompt in prompts]
        finally:
            hook.remove()

    def _answer(self, prompt: list[int]) -> Trace:
        clock, forwards_before, tokens_before = _Clock(), self._num_forwards, self._num_tokens
        begin_s = time.perf_counter()
        tokens = self._model.generate(prompt, self._max_new_tokens, streamer=clock, **self._options)
        # The streamer is given the prompt first.
        arrivals_s = tuple(each - begin_s for each in clock.times_s[1:])
        # The first run is prefill, and gives the first token as ours does. Where a prompt ends as it did before, look-up lets
        # that run verify drafts, too, which then cost no forward.
        forwards = self._num_forwards - forwards_before - 1
        return Trace(
            token_ids=tokens,
            forward_passes=forwards,
            reference_nfe=forwards + 1,
            step_tokens=self._num_tokens - tokens_before - len(prompt),
            cycles=(),
            prefill_s=arrivals_s[0],
            decode_s=arrivals_s[-1] - arrivals_s[0],
            engine_s=None,
            arrivals_s=arrivals_s,
        )
