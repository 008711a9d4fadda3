"""Sizes of a sampler, and the features it reads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from nemodiff_trt.errors import InvalidInputError

# Best tokens whose probabilities are features, and those of them whose embeddings are.
NUM_PROBABILITIES, NUM_CANDIDATES = 5, 3
# Scalar features of a position, in the order of the input matrix.
SCALARS = (
    "p1", "p2", "p3", "p4", "p5", "p1 - p2", "p1 + p2 + p3", "entropy of p1..p5", "is masked", "masked share",
    "ln p1", "1 - sum p^2", "relative position", "ln(masked + 1)", "ln(1 - p1)",
)  # fmt: skip
# Below it no logarithm is taken.
LEAST_PROBABILITY = 1e-9
# The same for 1 - p1, where float32 rounds: below it two backends would differ.
LEAST_DOUBT = 1e-5


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Geometry of a sampler and of the model it was trained on.

    Attributes:
        vocab_size, mask_token_id: of the model.
        embedding_size: numbers per token embedding; each position has four: current id, three best guesses.
        hidden_size, ffn_size, num_layers, num_heads: of the block transformer.
    """

    vocab_size: int
    mask_token_id: int
    embedding_size: int = 16
    hidden_size: int = 64
    ffn_size: int = 128
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name == "mask_token_id" else 1
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidInputError(field.name, value, f"an integer of at least {least}")
        if self.mask_token_id >= self.vocab_size:
            raise InvalidInputError("mask_token_id", self.mask_token_id, f"less than vocab_size = {self.vocab_size}")
        if self.vocab_size <= NUM_PROBABILITIES:
            raise InvalidInputError("vocab_size", self.vocab_size, f"more than {NUM_PROBABILITIES} tokens")
        if self.hidden_size % (2 * self.num_heads):
            raise InvalidInputError("hidden_size", self.hidden_size, f"a multiple of 2 x {self.num_heads} heads")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> SamplerSettings:
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            raise InvalidInputError("sampler config", sorted(content), f"exactly {', '.join(sorted(names))}")
        return cls(**content)
