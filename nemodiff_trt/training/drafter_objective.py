"""Loss of the draft adapter: agree with the frozen verifier where it matters for acceptance (arXiv 2607.05722, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.training.dual_stream import HiddenStates, hidden_states
from nemodiff_trt.training.packing import PackedBatch

TEMPERATURE = 3.0
SUPPORT_SIZE = 200


@dataclass(frozen=True, slots=True)
class DraftBlocks:
    """Whole blocks of the noisy stream: `columns` [N,L] of row `rows` [N], L the block length; the first is the seed."""

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True)
class DrafterLoss:
    """`total` is differentiated; `mean_accepted` counts drafts that the verifier would have produced, per block."""

    total: Tensor
    divergence: float
    cross_entropy: float
    mean_accepted: float


def whole_blocks(batch: PackedBatch, block_length: int) -> DraftBlocks:
    """Blocks that have a seed; a batch holds blocks of one length here."""
    rows, seeds = torch.nonzero(batch.is_seed, as_tuple=True)
    return DraftBlocks(rows, seeds[:, None] + torch.arange(block_length)[None, :])


def support_divergence(verifier: Tensor, drafter: Tensor) -> Tensor:
    """Lam KL(p||q) + (1 - lam) TV per row of logits [N,V], lam = exp(-0.5 sum min(p,q)), on the union of both top supports.

    The softmax is taken at temperature 3 and renormalised over the support; lam carries no gradient.
    """
    size = min(SUPPORT_SIZE, verifier.shape[-1])
    is_supported = torch.zeros_like(verifier, dtype=torch.bool)
    for logits in (verifier, drafter.detach()):
        is_supported.scatter_(-1, logits.topk(size, dim=-1).indices, True)
    lowest = torch.finfo(verifier.dtype).min
    log_p = (verifier / TEMPERATURE).masked_fill(~is_supported, lowest).log_softmax(-1)
    log_q = (drafter / TEMPERATURE).masked_fill(~is_supported, lowest).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    divergence = torch.where(is_supported, p * (log_p - log_q), 0.0).sum(-1)
    variation = 0.5 * (p - q).abs().sum(-1)
    weight = torch.exp(-0.5 * torch.minimum(p, q).sum(-1)).detach()
    return weight * divergence + (1 - weight) * variation


def drafter_loss(
    decoder: TriModeDecoder,
    batch: PackedBatch,
    block_length: int,
    greedy_share: float,
    generator: torch.Generator,
    forward: HiddenStates = hidden_states,
) -> DrafterLoss:
    """Draft every whole block in one pass, verify it causally, take the loss on accepted positions plus the first rejection.

    Args:
        decoder: with an adapter; only the adapter's parameters ask for gradients.
        batch: every block of it has `block_length` tokens.
        block_length: seed included.
        greedy_share: part of the blocks drafted by argmax; the others are sampled at temperature 1.
        generator: of the samples.
        forward: `hidden_states` or its compiled form.
    """
    config = decoder.config
    is_noisy = torch.zeros_like(batch.is_seed)
    is_noisy[:, batch.num_clean :] = True
    masked = torch.where(is_noisy & ~batch.is_seed, config.mask_token_id, batch.ids)
    hidden = forward(decoder, masked, batch.position, batch.visibility(), batch.num_clean, is_noisy[..., None])

    blocks = whole_blocks(batch, block_length)
    drafter = decoder.diffusion_head(hidden[blocks.rows[:, None], blocks.columns[:, 1:]]).float()
    drafts = _draft(drafter.detach(), config.mask_token_id, greedy_share, generator)
    with torch.no_grad():
        drafted = batch.ids.clone()
        drafted[blocks.rows[:, None], blocks.columns[:, 1:]] = drafts
        causal = batch.visibility()
        causal[:, batch.num_clean :, batch.num_clean :] &= (
            batch.position[:, None, batch.num_clean :] <= batch.position[:, batch.num_clean :, None]
        )
        hidden = forward(decoder, drafted, batch.position, causal, batch.num_clean)
        verifier = decoder.diffusion_head(hidden[blocks.rows[:, None], blocks.columns[:, :-1]]).float()
    verifier[..., config.mask_token_id] = torch.finfo(verifier.dtype).min
    wanted = verifier.argmax(-1)
    matches = drafts == wanted
    # Nothing after the end of the answer is ever drafted, accepted or asked for.
    is_open = torch.cat((torch.ones_like(matches[:, :1]), (wanted != config.eos_token_id)[:, :-1]), dim=1).cumprod(1).bool()
    accepted = (matches & is_open).cumprod(1).bool()
    active = is_open & torch.cat((torch.ones_like(accepted[:, :1]), accepted[:, :-1]), dim=1)
    divergence = support_divergence(verifier[active], drafter[active]).mean()
    cross_entropy = functional.cross_entropy(drafter[active], wanted[active])
    mean_accepted = accepted.sum(1).float().mean().item()
    return DrafterLoss(divergence + cross_entropy, divergence.item(), cross_entropy.item(), mean_accepted)


def _draft(logits: Tensor, mask_token_id: int, greedy_share: float, generator: torch.Generator) -> Tensor:
    """Tokens [N,L-1] of each block: all greedy or all sampled; the mask id is never drafted."""
    logits = logits.clone()
    logits[..., mask_token_id] = -torch.inf
    probabilities = logits.softmax(-1).flatten(0, 1)
    sampled = torch.multinomial(probabilities, 1, generator=generator).view(logits.shape[:-1])
    is_greedy = torch.rand(logits.shape[0], 1, generator=generator) < greedy_share
    return torch.where(is_greedy, logits.argmax(-1), sampled)
