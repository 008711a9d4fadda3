"""The learned sampler at decoding time: a numpy forward of its few thousand weights, so that it needs no backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.sampler.files import read_sampler
from nemodiff_trt.sampler.settings import LEAST_DOUBT, LEAST_PROBABILITY, NUM_CANDIDATES, NUM_PROBABILITIES, SamplerSettings

_ROTARY_THETA = 1e4
_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class LearnedSampler:
    """Scores of the guesses of a denoising step. Weights are float32, named as in `SamplerNetwork`."""

    settings: SamplerSettings
    weights: dict[str, np.ndarray]

    @classmethod
    def open(cls, directory: Path | str) -> LearnedSampler:
        """Read a folder that `nemodiff train sampler` wrote.

        Raises:
            InvalidInputError: a file is missing, or a tensor is not what the configuration asks for.
        """
        settings, weights = read_sampler(Path(directory))
        return cls(settings, weights)

    def check_for(self, vocab_size: int, mask_token_id: int) -> None:
        """Refuse a model of another vocabulary.

        Raises:
            InvalidInputError: the sampler was trained with another one.
        """
        own = self.settings
        if (own.vocab_size, own.mask_token_id) != (vocab_size, mask_token_id):
            value = f"vocab_size {own.vocab_size}, mask_token_id {own.mask_token_id}"
            raise InvalidInputError("sampler", value, f"vocab_size {vocab_size}, mask_token_id {mask_token_id} of the model")

    def scores(self, block: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Probability float32 [S] that the best guess of each position stays.

        Args:
            block: int64 [S], what the step read.
            logits: float32 [S,V], what it gave.
        """
        return self.score_ranked(block, *best_guesses(logits, self.settings.mask_token_id))

    def score_ranked(self, block: np.ndarray, tokens: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """The same from the best tokens int64 [S,5] and their probabilities float32 [S,5], best first."""
        weights = self.weights
        scalars = (_scalars(block, probabilities, self.settings.mask_token_id) - weights["mean"]) / weights["spread"]
        ids = np.concatenate((block[:, None], tokens[:, :NUM_CANDIDATES]), 1)
        x = self._linear("input", np.concatenate((scalars, weights["embedding.weight"][ids].reshape(len(block), -1)), 1))
        for layer in range(self.settings.num_layers):
            x = self._layer(f"layers.{layer}.", x)
        logits = self._linear("head", self._norm("norm", x))[:, 0]
        scores: np.ndarray = 1 / (1 + np.exp(-logits))
        return scores

    def _layer(self, name: str, x: np.ndarray) -> np.ndarray:
        step, width = x.shape
        heads = self._linear(f"{name}qkv", self._norm(f"{name}norm_attention", x))
        query, key, value = heads.reshape(step, 3, self.settings.num_heads, -1).transpose(1, 2, 0, 3)
        match = _rotate(query) @ _rotate(key).transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        match = np.exp(match - match.max(-1, keepdims=True))
        mixed = (match / match.sum(-1, keepdims=True)) @ value
        x = x + self._linear(f"{name}output", mixed.transpose(1, 0, 2).reshape(step, width))
        result: np.ndarray = x + self._linear(f"{name}down", _gelu(self._linear(f"{name}up", self._norm(f"{name}norm_ffn", x))))
        return result

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return result

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(_NORM_EPS))
        result: np.ndarray = centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return result


def best_guesses(logits: np.ndarray, mask_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Best tokens int64 [S,5] and their probabilities float32 [S,5] of `logits` float32 [S,V].

    As `nemodiff::decision_top_k`: the mask id is no guess but counts in the softmax; ties go to the lowest id.
    """
    shifted = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(shifted)
    probabilities /= probabilities.sum(-1, keepdims=True)
    shifted[:, mask_token_id] = -np.inf
    tokens = np.empty((len(logits), NUM_PROBABILITIES), np.int64)
    rows = np.arange(len(logits))
    for rank in range(NUM_PROBABILITIES):
        tokens[:, rank] = shifted.argmax(-1)
        shifted[rows, tokens[:, rank]] = -np.inf
    return tokens, np.take_along_axis(probabilities, tokens, 1)


def _scalars(block: np.ndarray, p: np.ndarray, mask_token_id: int) -> np.ndarray:
    """Features float32 [S,15], in the order of `nemodiff_trt.sampler.settings.SCALARS`."""
    step = len(block)
    masked = (block == mask_token_id).astype(np.float32)
    count = masked.sum()
    logs = np.log(np.maximum(p, LEAST_PROBABILITY))
    columns = (
        p[:, 0] - p[:, 1],
        p[:, :3].sum(-1),
        -(p * logs).sum(-1),
        masked,
        np.full(step, count / step),
        logs[:, 0],
        1 - np.square(p).sum(-1),
        np.arange(step) / max(step - 1, 1),
        np.full(step, np.log1p(count)),
        np.log(np.maximum(1 - p[:, 0], LEAST_DOUBT)),
    )
    return np.concatenate((p, np.stack(columns, 1)), 1).astype(np.float32)


def _rotate(x: np.ndarray) -> np.ndarray:
    """Rotary embedding of x [heads,S,D]; neighbouring numbers are a pair."""
    step, dim = x.shape[-2:]
    rates = _ROTARY_THETA ** (-np.arange(0, dim, 2, dtype=np.float32) / dim)
    angles = np.arange(step, dtype=np.float32)[:, None] * rates
    cos, sin = np.cos(angles), np.sin(angles)
    result = np.empty_like(x)
    result[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    result[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return result


def _gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    result: np.ndarray = 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)))
    return result
