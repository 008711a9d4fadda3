"""What a bundle can be asked for, known from its facts alone: no engine has to be open."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt, encode_prompt
from nemodiff_trt.runtime.sequence import check_prompt_length
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestChecks:
    """Refuses requests that engines cannot serve.

    Attributes:
        model: facts of the model.
        limits: what the engines were built for.
        roles: the roles there are engines for.
        has_logits: whether engines return them.
        can_plan: whether step times are known, which mode `auto` chooses by.
        tokenizer: of the model.
        has_sampler: whether there is a learned sampler.
    """

    model: ModelConfig
    limits: Limits
    roles: frozenset[Role]
    has_logits: bool
    can_plan: bool
    tokenizer: Tokenizer
    has_sampler: bool = False

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse options that the engines cannot serve.

        Raises:
            InvalidInputError: an option is not usable with these engines.
        """
        options.check_for(self.limits, self.roles)
        if options.mode is Mode.AUTO and not self.can_plan:
            allowed = "a fixed mode, because no step times are known: nemodiff calibrate measures them"
            raise InvalidInputError("mode", str(options.mode), allowed)
        if options.learned_sampler and not (self.has_sampler and self.has_logits):
            allowed = "false without a sampler given to the engine, and engines built with --sampling"
            raise InvalidInputError("learned_sampler", True, allowed)
        options.sampling.check_for(self.model.vocab_size, self.model.mask_token_id, self.has_logits)
        if options.num_leaves and not self.has_logits:
            raise InvalidInputError("num_leaves", options.num_leaves, "0: build the engines with --sampling for others")
        if options.max_thinking_tokens is not None and self.tokenizer.end_think_token_id is None:
            raise InvalidInputError("max_thinking_tokens", options.max_thinking_tokens, "nothing: there is no </think> token")

    def check(self, prompt: Prompt, options: GenerationOptions, field: str = "prompt") -> tuple[str, list[int]]:
        """Text and token ids of a prompt, if prompt and options can be served.

        Raises:
            InvalidInputError: one of them cannot; `field` names the prompt.
        """
        self.check_options(options)
        text, token_ids = encode_prompt(prompt, field, self.tokenizer, self.model, options.enable_thinking)
        check_prompt_length(len(token_ids), self.limits.max_seq_len, field)
        return text, token_ids
