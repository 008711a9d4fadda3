"""What a server knows of the model it serves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.engine import TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import MODE_ROLES, Mode, Role


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Facts that answers and the list of models tell.

    `build_key` identifies the engines, "" where there is none; `can_plan` tells whether mode `auto` is available.
    """

    tokenizer: Tokenizer
    limits: Limits
    roles: frozenset[Role]
    has_logits: bool
    build_key: str = ""
    can_plan: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: TriModeEngine, build_key: str = "", can_plan: bool = False) -> ServedModel:
        """Of an engine that is not running yet."""
        session = engine.session
        return cls(engine.tokenizer, session.limits, session.roles, session.has_logits, build_key, can_plan)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What the engines were built for."""
        return tuple(
            mode for mode in Mode if self.roles.issuperset(MODE_ROLES[mode]) and (mode is not Mode.AUTO or self.can_plan)
        )

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.build_key[:12] or 'unknown'}"

    def defaults(self, server: ServerOptions) -> GenerationOptions:
        """Of requests that name no mode and no limit."""
        usual = GenerationOptions().mode
        mode = usual if usual in self.modes else self.modes[0]
        return GenerationOptions(mode=mode, max_new_tokens=server.max_tokens or self.limits.max_seq_len)

    def describe(self, name: str) -> dict[str, Any]:
        """An entry of GET /v1/models."""
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "nemodiff_trt",
            "modes": [str(mode) for mode in self.modes],
            "has_logits": self.has_logits,
            "has_chat_template": self.tokenizer.has_chat_template,
            "max_model_len": self.limits.max_seq_len,
            "max_block_length": self.limits.block_length,
            "max_quadratic_block_length": self.limits.quadratic_block_length,
            "num_slots": self.limits.max_batch_size,
        }
