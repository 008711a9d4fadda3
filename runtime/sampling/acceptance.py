"""Which drafted tokens an answer keeps, and the token behind them."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.decisions import accept_draft
from nemodiff_trt.runtime.sampling.chooser import TokenChooser

# Streams of noise that rejection draws from. They must be independent of each other, and a position that is drafted again must
# be drafted anew: drafts are keyed by where their block begins as well.
_ACCEPT_STREAM = 1
_FIRST_DRAFT_STREAM = 2


def accept_coupled(chooser: TokenChooser, drafts: np.ndarray, logits: np.ndarray, position: int) -> list[int]:
    """Tokens to emit: `drafts` as far as `ar` would choose the same, then what it would choose there.

    Args:
        chooser: of the request.
        drafts: int64 [N], tokens of the answer from `position` on.
        logits: float32 [N+1,V], of a causal run: row n for the token at `position` + n if the drafts before it are right.
        position: in the answer, from 0.
    """
    if chooser.chooses_at_once:
        chosen = chooser.choose_block(logits, position)
        found: list[int] = chosen[: accept_draft(drafts, chosen) + 1].tolist()
        return found
    tokens: list[int] = []
    for row, draft in enumerate([*drafts.tolist(), None]):
        tokens.append(chooser.choose(logits[row], position + row, pending=tokens))
        if tokens[-1] != draft:
            break
    return tokens


def accept_by_rejection(
    draft_tokens: np.ndarray, draft_probabilities: np.ndarray, verify_probabilities: np.ndarray, uniforms: np.ndarray
) -> tuple[int, int]:
    """Speculative rejection sampling: what is emitted is distributed as if drawn from p, whatever q is.

    Method: arXiv 2211.17192 and 2302.01318. Draft n stays with probability min(1, p/q); the first that does not is replaced by
    a draw from (p-q)+, normalised. If all stay, one more token is drawn from the last row of p.

    Args:
        draft_tokens: int64 [N], token n drawn from row n of q.
        draft_probabilities: q, float64 [N,V], as processed for drawing. Row n must not depend on how later drafts came out.
        verify_probabilities: p, float64 [N+1,V], as processed for drawing.
        uniforms: float64 [N+1] in (0,1), independent of each other and of the drafts.

    Returns:
        The number of drafts kept, 0 to N, and the token behind them.
    """
    for row, token in enumerate(draft_tokens.tolist()):
        p, q = verify_probabilities[row], draft_probabilities[row]
        if uniforms[row] * q[token] >= p[token]:
            residual = np.maximum(p - q, 0.0)
            # Without any, p equals q up to rounding.
            return row, _drawn(residual if residual.any() else p, uniforms[-1])
    return len(draft_tokens), _drawn(verify_probabilities[len(draft_tokens)], uniforms[-1])


def draft_for_rejection(chooser: TokenChooser, logits: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Draft a block in one pass.

    Args:
        chooser: of the request.
        logits: float32 [N,V], of a draft run: row n for the token at `position` + n.
        position: in the answer, from 0.

    Returns:
        Tokens int64 [N], and q float64 [N,V].
    """
    tokens = chooser.choose_block(logits, position, stream=_FIRST_DRAFT_STREAM + position)
    return tokens, np.stack([chooser.probabilities(row) for row in logits])


def verify_by_rejection(
    chooser: TokenChooser, drafts: np.ndarray, draft_probabilities: np.ndarray, logits: np.ndarray, position: int
) -> list[int]:
    """Tokens to emit by `accept_by_rejection`: the drafts kept, and the one behind them.

    Args:
        chooser: of the request.
        drafts: int64 [N], of `draft_for_rejection` with the same `position`.
        draft_probabilities: float64 [N,V], of the same.
        logits: float32 [N+1,V], of a causal run, as for `accept_coupled`.
        position: in the answer, from 0.
    """
    before = drafts.tolist()
    verified = np.stack([chooser.probabilities(row, pending=before[:index]) for index, row in enumerate(logits)])
    uniforms = chooser.uniforms(position, len(drafts) + 1, _ACCEPT_STREAM)
    num_kept, token = accept_by_rejection(drafts, draft_probabilities, verified, uniforms)
    return [*before[:num_kept], token]


def _drawn(weights: np.ndarray, uniform: float) -> int:
    """Index drawn in proportion to `weights` float64 [V], by inversion."""
    cumulated = np.cumsum(weights)
    drawn = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    # A product that rounds up to the sum lies behind every entry.
    return min(drawn, int(np.flatnonzero(weights)[-1]))
