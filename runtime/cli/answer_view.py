"""An answer as rich text while it is made: what was drafted, accepted, refused and committed, each in a style of its own."""

from __future__ import annotations

from rich.text import Text

from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.tokenizer import IncrementalDecoder, Tokenizer
from nemodiff_trt.vocabulary import Role

ACCEPTED, OWN, DRAFTED, REFUSED, COMMITTED, PLAIN = "green", "bold yellow", "dim italic", "dim strike red", "cyan", ""
MASK = "░"
LEGEND = Text.assemble(
    ("drafted", DRAFTED), " → ", ("accepted", ACCEPTED), " ", ("verifier's own", OWN), " ", ("refused", REFUSED), "   ",
    ("denoised", COMMITTED), " ", (MASK, DRAFTED), " not yet",
)  # fmt: skip


class AnswerView:
    """Follows the events of one answer. `text()` is what to show after the last of them."""

    __slots__ = ("_block", "_block_length", "_decoder", "_done", "_num_emitted", "_tail", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, block_length: int) -> None:
        """`block_length`: of the diffusion blocks, the seed included."""
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._block_length = block_length
        self._done = Text()
        self._tail = Text()
        # Tokens of the current diffusion block by offset, and how many offsets are part of the answer.
        self._block: dict[int, int] = {}
        self._num_emitted = 1

    def push(self, event: StreamEvent) -> None:
        """Take in one engine run."""
        self._tail = Text()
        if event.role is Role.DENOISE:
            self._push_denoise(event)
        elif event.role is Role.DRAFT:
            self._emit(event.token_ids, [PLAIN] * len(event.token_ids))
            drafted = event.step.drafted or [token for _, token in event.step.committed]
            self._show(drafted, DRAFTED)
        elif event.step.drafted:
            accepted = event.step.accepted
            self._emit(event.token_ids, [ACCEPTED] * accepted + [OWN] * (len(event.token_ids) - accepted))
            self._show(event.step.drafted[accepted:], REFUSED)
        else:
            self._block, self._num_emitted = {}, 1
            self._emit(event.token_ids, [PLAIN] * len(event.token_ids))
        if event.result is not None:
            self._tail = Text()

    def text(self) -> Text:
        return self._done + self._tail

    def _push_denoise(self, event: StreamEvent) -> None:
        self._block.update(event.step.committed)
        self._emit(event.token_ids, [COMMITTED] * len(event.token_ids))
        self._num_emitted += len(event.token_ids)
        for offset in range(self._num_emitted, self._block_length):
            if offset in self._block:
                self._show((self._block[offset],), COMMITTED)
            else:
                self._tail.append(MASK, DRAFTED)

    def _emit(self, token_ids: tuple[int, ...], styles: list[str]) -> None:
        for token, style in zip(token_ids, styles, strict=True):
            self._done.append(self._decoder.push((token,)), style)

    def _show(self, token_ids: object, style: str) -> None:
        """Tokens that are not part of the answer (yet)."""
        for token in token_ids:  # type: ignore[attr-defined]
            self._tail.append(self._tokenizer.decode((token,)), style)
