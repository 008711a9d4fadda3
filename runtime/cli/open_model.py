"""Open a bundle for commands that generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemodiff_trt.runtime.prompts import Prompt, PromptLine
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM


def open_model(bundle_dir: Path, num_threads: int | None, verify: bool, sampler: Path | None = None) -> TriModeLM:
    """Model of the bundle at `bundle_dir`, with the learned sampler in the folder `sampler` if there is one."""
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

    return TriModeLM.from_bundle(bundle_dir, verify=verify, num_threads=num_threads, sampler=sampler)


def as_chat(prompts: list[PromptLine], model: TriModeLM, use_chat: bool | None, thinking: bool) -> list[Prompt]:
    """Wrap texts into a chat of one user message where wanted, which by default is where the model has a chat template.

    Raises:
        InvalidInputError: a chat or thinking was asked for without a template, or messages were given and a chat refused.
    """
    from nemodiff_trt.runtime.prompts import as_asked, wants_chat

    is_chat = wants_chat(model.tokenizer, use_chat, thinking)
    return [as_asked(prompt, is_chat) for prompt in prompts]
