"""The sampler in torch: what is trained, and the reference of the runtime's form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nemodiff_trt.sampler.settings import LEAST_DOUBT, LEAST_PROBABILITY, NUM_CANDIDATES, SCALARS, SamplerSettings

ROTARY_THETA = 1e4
# Of embeddings and of what a layer adds, in training: states of one block resemble each other, so few are many.
EMBEDDING_DROPOUT, LAYER_DROPOUT = 0.3, 0.1


def scalar_features(input_ids: Tensor, probabilities: Tensor, mask_token_id: int) -> Tensor:
    """Scalars fp32 [N,S,15] of blocks int64 [N,S] and their best probabilities fp32 [N,S,5]; the order is that of `SCALARS`."""
    p = probabilities
    masked = (input_ids == mask_token_id).to(p.dtype)
    count = masked.sum(-1, keepdim=True).expand_as(masked)
    step = input_ids.shape[1]
    position = torch.arange(step, dtype=p.dtype, device=p.device) / max(step - 1, 1)
    logs = p.clamp_min(LEAST_PROBABILITY).log()
    rest = (
        p[..., 0] - p[..., 1],
        p[..., :3].sum(-1),
        -(p * logs).sum(-1),
        masked,
        count / step,
        logs[..., 0],
        1 - p.square().sum(-1),
        position.expand_as(masked),
        count.log1p(),
        (1 - p[..., 0]).clamp_min(LEAST_DOUBT).log(),
    )
    return torch.cat((p, torch.stack(rest, -1)), -1)


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of x [N,heads,S,D] by its place in the block; neighbouring numbers are a pair."""
    step, dim = x.shape[-2:]
    rates = ROTARY_THETA ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(step, dtype=torch.float32)[:, None] * rates
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()), -1).flatten(-2)


class SamplerLayer(nn.Module):
    """Bidirectional attention over the block and a feed-forward, each behind a LayerNorm."""

    def __init__(self, settings: SamplerSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, settings.ffn_size), nn.Linear(settings.ffn_size, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, step, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(rows, step, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(rotate(heads[0]), rotate(heads[1]), heads[2])
        x = x + self._drop(self.output(mixed.transpose(1, 2).reshape(rows, step, width)))
        return x + self._drop(self.down(functional.gelu(self.up(self.norm_ffn(x)), approximate="tanh")))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, LAYER_DROPOUT, self.training)


class SamplerNetwork(nn.Module):
    """Scores blocks; standardises the scalars by stored mean and spread."""

    mean: Tensor
    spread: Tensor

    def __init__(self, settings: SamplerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.embedding_size)
        num_inputs = len(SCALARS) + (1 + NUM_CANDIDATES) * settings.embedding_size
        self.input = nn.Linear(num_inputs, settings.hidden_size)
        self.layers = nn.ModuleList(SamplerLayer(settings) for _ in range(settings.num_layers))
        self.norm = nn.LayerNorm(settings.hidden_size)
        self.head = nn.Linear(settings.hidden_size, 1)
        self.register_buffer("mean", torch.zeros(len(SCALARS)))
        self.register_buffer("spread", torch.ones(len(SCALARS)))

    def forward(self, input_ids: Tensor, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Logits fp32 [N,S]: the sigmoid is the probability that the best guess stays.

        Args:
            input_ids: int64 [N,S], what the denoising step read.
            tokens: int64 [N,S,5], its best guesses, best first, never the mask id.
            probabilities: fp32 [N,S,5], of these.
        """
        scalars = scalar_features(input_ids, probabilities, self.settings.mask_token_id)
        ids = torch.cat((input_ids[..., None], tokens[..., :NUM_CANDIDATES]), -1)
        embedded = functional.dropout(self.embedding(ids).flatten(-2), EMBEDDING_DROPOUT, self.training)
        x = self.input(torch.cat(((scalars - self.mean) / self.spread, embedded), -1))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))[..., 0]  # type: ignore[no-any-return]
