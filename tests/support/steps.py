"""Steps of the eager decoder under the names of the step contract."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt import contract
from nemodiff_trt.model import LayoutTensors, TriModeDecoder

TABLES = ("query_cos", "query_sin", "key_cos", "key_sin")


@dataclass(frozen=True, slots=True)
class EagerStep:
    """Inputs of one step by contract name, those of all roles, and the decoder that answers them."""

    decoder: TriModeDecoder
    inputs: dict[str, Tensor]

    @classmethod
    def random(
        cls, decoder: TriModeDecoder, lengths: tuple[int, ...], num_tokens: int, capacity: int, seed: int = 0
    ) -> EagerStep:
        """Random tokens after caches full of random numbers; every row selects another position. The layout is random too: a
        token sees itself and about half of the others, and takes the adapter or not.
        """
        generator = torch.Generator().manual_seed(seed)
        config, batch = decoder.config, len(lengths)
        inputs = {
            contract.INPUT_IDS: torch.randint(config.vocab_size, (batch, num_tokens), generator=generator),
            contract.CACHE_LENGTH: torch.tensor(lengths),
            contract.LAST_INDEX: torch.arange(batch) % num_tokens,
        }
        sees = torch.rand((batch, num_tokens, num_tokens), generator=generator) < 0.5
        inputs |= {
            contract.POSITION_OFFSET: torch.randint(num_tokens, (batch, num_tokens), generator=generator),
            contract.STEP_MASK: sees | torch.eye(num_tokens, dtype=torch.bool),
            contract.ADAPTER_ROWS: torch.randint(2, (batch, num_tokens), generator=generator).float(),
        }
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        for layer in range(config.num_hidden_layers):
            for name in (contract.past_key(layer), contract.past_value(layer)):
                inputs[name] = torch.randn(shape, generator=generator, dtype=decoder.key_cos.dtype)
        return cls(decoder, inputs)

    @property
    def layout(self) -> LayoutTensors:
        return LayoutTensors(*(self.inputs[name] for name in contract.LAYOUT))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Everything a graph may read: decoder parameters, those of the adapter included, and rotary tables."""
        return dict(self.decoder.state_dict()) | {name: getattr(self.decoder, name) for name in TABLES}

    def run(self, causal: bool, use_adapter: bool = False, with_layout: bool = False) -> dict[str, Tensor]:
        """Logits and caches of the eager decoder, by contract name and in its order."""
        layers = range(self.decoder.config.num_hidden_layers)
        keys = [self.inputs[contract.past_key(layer)] for layer in layers]
        values = [self.inputs[contract.past_value(layer)] for layer in layers]
        ids, lengths = self.inputs[contract.INPUT_IDS], self.inputs[contract.CACHE_LENGTH]
        logits, keys, values = self.decoder(
            ids, lengths, keys, values, causal, use_adapter, self.layout if with_layout else None
        )
        outputs = {contract.LOGITS: logits}
        for layer in layers:
            outputs |= {contract.present_key(layer): keys[layer], contract.present_value(layer): values[layer]}
        return outputs
