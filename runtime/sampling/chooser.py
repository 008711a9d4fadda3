"""The tokens of one request, chosen from logits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.sampling.filters import keeps_all, kept_tokens
from nemodiff_trt.runtime.sampling.noise import derived_seed, gumbel, gumbel_of, hashes, stream_key, stream_uniforms
from nemodiff_trt.runtime.sampling.options import SamplingOptions
from nemodiff_trt.runtime.sampling.penalties import Penalties
from nemodiff_trt.runtime.sampling.position_noise import PositionNoise
from nemodiff_trt.runtime.sampling.workspace import SamplingWorkspace

# The noise that answers are drawn with. Other streams may be used for what must be independent of it.
ANSWER_STREAM = 0
# Up to this many tokens it costs less to give all of them noise than to look for those that can win.
_SMALL_VOCABULARY = 2048
# Leading bits of a hash, as many as float32 holds.
_LEADING_BITS = 24


class TokenChooser:
    """Chooses by the Gumbel-max rule: the token with the largest log-probability plus noise is a sample.

    A choice is a pure function of logits, options, seed, the position in the answer and, with penalties, the tokens before. So
    it is the same whatever mode asks, and a draft is most often what verification chooses, because both add the same noise
    (the coupling of arXiv 2408.07978). Nothing is drawn from a generator with state, and logits are not changed.
    """

    __slots__ = ("_noise", "_penalties", "_work", "chooses_at_once", "options", "seed")

    def __init__(
        self,
        options: SamplingOptions,
        workspace: SamplingWorkspace,
        prompt: Iterable[int] = (),
        answer: Sequence[int] = (),
        index: int = 0,
    ) -> None:
        """Prepare the choices of one answer.

        Args:
            options: how to choose. Without a seed, one is drawn here.
            workspace: of the model; choosers that do not run at the same time may share it.
            prompt: token ids, for the repetition penalty.
            answer: the list that the caller appends emitted tokens to; penalties read it at every choice.
            index: which of several answers to the prompt this is; each has a seed of its own.
        """
        self.options = options
        self.seed = derived_seed(secrets.randbits(64) if options.seed is None else options.seed, index)
        self._work = workspace
        self._penalties = Penalties(options, workspace.vocab_size, prompt, answer)
        # Whether a block costs little more than a token: nothing about scores is changed, whatever the tokens before it are.
        self.chooses_at_once = (
            workspace.vocab_size <= _SMALL_VOCABULARY
            and not (options.is_greedy or options.has_penalties or options.bias_pairs)
            and keeps_all(options, workspace.vocab_size)
        )
        self._noise = PositionNoise(workspace.counter, self.seed, ANSWER_STREAM)

    def choose(self, logits: np.ndarray, position: int, pending: Sequence[int] = (), stream: int = ANSWER_STREAM) -> int:
        """One token.

        Args:
            logits: float32 [V].
            position: of the token in the answer, from 0.
            pending: tokens that are taken to stand between the answer so far and this one; only penalties look at them.
            stream: of the noise.

        Raises:
            InvalidInputError: a logit is NaN or plus infinity.
        """
        scores, best_id, best = self._scored(logits, pending)
        if self.options.is_greedy:
            return best_id
        ids = kept_tokens(scores, best, self.options, self._work.weights)
        key = stream_key(self.seed, position, stream)
        if ids is None:
            return self._draw_from_all(scores, best_id, key)
        return self._draw(scores, ids, best, key)

    def choose_block(
        self, logits: np.ndarray, first_position: int, offsets: np.ndarray | None = None, stream: int = ANSWER_STREAM
    ) -> np.ndarray:
        """Tokens of several positions at once; for penalties, the answer so far is what stands before each.

        Args:
            logits: float32 [S,V]; row s is for the token at `first_position` + s.
            first_position: in the answer, from 0.
            offsets: rows to choose for, int64 [N]; None for all.
            stream: of the noise.

        Returns:
            int64 [N].
        """
        if self.chooses_at_once and stream == ANSWER_STREAM:
            return self._choose_at_once(logits, first_position, offsets)
        rows = range(len(logits)) if offsets is None else offsets.tolist()
        tokens = [self.choose(logits[row], first_position + row, stream=stream) for row in rows]
        return np.array(tokens, np.int64)

    def probabilities(self, logits: np.ndarray, pending: Sequence[int] = ()) -> np.ndarray:
        """The distribution that `choose` draws from: float64 [V], zero for tokens that are left out."""
        scores, best_id, best = self._scored(logits, pending)
        result = np.zeros(self._work.vocab_size)
        if self.options.is_greedy:
            result[best_id] = 1.0
            return result
        ids = kept_tokens(scores, best, self.options, self._work.weights)
        kept = slice(None) if ids is None else ids
        weights = np.exp((scores[kept].astype(np.float64) - best) / self.options.temperature)
        result[kept] = weights / weights.sum()
        return result

    def uniforms(self, position: int, count: int, stream: int) -> np.ndarray:
        """Numbers float64 [count] in (0,1) for other decisions about `position`."""
        return stream_uniforms(stream_key(self.seed, position, stream), count)

    def _scored(self, logits: np.ndarray, pending: Sequence[int]) -> tuple[np.ndarray, int, float]:
        """Scores float32 [V] after penalties and bias, valid until the next call, the best token and its score."""
        scores, mask = self._work.scores, self._work.mask_token_id
        np.copyto(scores, logits)
        self._penalties.apply(scores, pending)
        scores[mask] = -np.inf
        best_id = int(scores.argmax())
        best = float(scores[best_id])
        if not math.isfinite(best):
            raise _not_finite(best)
        return scores, best_id, best

    def _choose_at_once(self, logits: np.ndarray, first_position: int, offsets: np.ndarray | None) -> np.ndarray:
        """`choose_block` where `chooses_at_once`. Every number is computed as `choose` does, so equal scores stay equal."""
        noise = self._noise.at(first_position, len(logits))
        if offsets is not None:
            logits, noise = logits[offsets], noise[offsets]
        scores = self._work.block(len(logits))
        np.copyto(scores, logits)
        scores[:, self._work.mask_token_id] = -np.inf
        best = scores.max(axis=1, keepdims=True)
        is_finite = np.isfinite(best)
        if not is_finite.all():
            raise _not_finite(float(best[~is_finite][0]))
        scores -= best
        scores /= self.options.temperature
        scores += noise
        tokens: np.ndarray = scores.argmax(axis=1)
        return tokens

    def _draw(self, scores: np.ndarray, ids: np.ndarray, best: float, key: int) -> int:
        """The winner among `ids`; noise is made for these only."""
        noise = gumbel_of(self._work.counter[ids], key)
        return int(ids[((scores[ids].astype(np.float64) - best) / self.options.temperature + noise).argmax()])

    def _draw_from_all(self, scores: np.ndarray, best_id: int, key: int) -> int:
        """The winner among all tokens, with exact noise only for those that can be it.

        With uniform v, noise is -log(-log(1-v)) <= -log(v). So a token that beats the most probable one, which has noise g, has
        v <= exp(score/temperature - g), scores relative to the best. The leading bits of its hash bound v from below.
        """
        work, best, temperature = self._work, float(scores[best_id]), self.options.temperature
        bits = hashes(work.counter, key, work.bits, work.shifted)
        if work.vocab_size <= _SMALL_VOCABULARY:
            return int(((scores.astype(np.float64) - best) / temperature + gumbel(bits)).argmax())
        noise = float(gumbel(bits[best_id : best_id + 1])[0])
        limit, leading = work.weights, work.shifted.view(np.float32)[: work.vocab_size]
        np.subtract(scores, np.float32(best), out=limit)
        np.divide(limit, np.float32(temperature), out=limit)
        np.exp(limit, out=limit)
        # Single precision: a thousandth is far above its error, for any term that is not far below the reach of v.
        np.multiply(limit, np.float32(1.001 * np.exp(-noise) * 2.0**_LEADING_BITS), out=limit)
        np.right_shift(bits, np.uint64(64 - _LEADING_BITS), out=bits)
        np.copyto(leading, bits, casting="unsafe")
        return self._draw(scores, np.flatnonzero(leading <= limit), best, key)


def _not_finite(best: float) -> InvalidInputError:
    """For scores whose largest is NaN, as it is with any NaN among them, or infinite."""
    return InvalidInputError("logits", best, "finite numbers: the engine computed something else")
