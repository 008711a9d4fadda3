"""The same weights in the Ministral3 of `transformers`: what a user would run without this project."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import Ministral3Config, Ministral3ForCausalLM

from nemodiff_trt.checkpoint import Checkpoint

_FIELDS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip


class ReferenceModel:
    """Greedy `generate` in fp32 with the default attention of `transformers`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the weights into memory, in fp32."""
        config = checkpoint.config
        self._eos_token_id = config.eos_token_id
        self.model: Any = Ministral3ForCausalLM(
            Ministral3Config(
                **{name: getattr(config, name) for name in _FIELDS},
                rope_parameters=dataclasses.asdict(config.rope_parameters),
                tie_word_embeddings=False,
                pad_token_id=None,
                bos_token_id=config.bos_token_id,
                eos_token_id=config.eos_token_id,
            )
        )
        renamed = {
            name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): checkpoint.tensor(name).float()
            for name in checkpoint.names()
        }
        self.model.load_state_dict(renamed)
        self.model.train(False)

    def generate(self, prompt: list[int], max_new_tokens: int, **options: Any) -> tuple[int, ...]:
        """Answer to one prompt, the end-of-sequence token included; `options` go to the `generate` of `transformers`."""
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self._eos_token_id,
                pad_token_id=self._eos_token_id,
                **options,
            )
        return tuple(output[0, len(prompt) :].tolist())
