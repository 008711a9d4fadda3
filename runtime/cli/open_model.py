"""Open a bundle for commands that generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemodiff_trt.errors import InvalidInputError

if TYPE_CHECKING:
    from nemodiff_trt.runtime.cli.prompt_source import PromptLine
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM


def open_model(bundle_dir: Path, num_threads: int | None, verify: bool, sampler: Path | None = None) -> TriModeLM:
    """Model of the bundle at `bundle_dir`, with the learned sampler in the folder `sampler` if there is one."""
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

    return TriModeLM.from_bundle(bundle_dir, verify=verify, num_threads=num_threads, sampler=sampler)


def as_chat(prompts: list[PromptLine], model: TriModeLM, use_chat: bool | None, thinking: bool) -> list[Any]:
    """Wrap texts into a chat of one user message where wanted, which by default is where the model has a chat template.

    Raises:
        InvalidInputError: a chat or thinking was asked for without a template, or messages were given and a chat refused.
    """
    has_template = model.tokenizer.has_chat_template
    if use_chat and not has_template:
        raise InvalidInputError("chat", True, "no-chat: the bundle's tokenizer has no chat template")
    wants_chat = has_template if use_chat is None else use_chat
    if thinking and not wants_chat:
        raise InvalidInputError("thinking", True, "a chat, whose template opens the think section")
    if not wants_chat and any(not isinstance(prompt, str) for prompt in prompts):
        raise InvalidInputError("messages", "given", "plain prompts only, without a chat template")
    if not wants_chat:
        return list(prompts)
    return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
