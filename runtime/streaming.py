"""Text of an answer while it grows: whole characters only, and nothing that may turn out to be part of a stop string."""

from __future__ import annotations

from nemodiff_trt.tokenizer import IncrementalDecoder, Tokenizer


class TextStream:
    """Turns tokens into text that can be shown at once.

    The pieces of `push` and the last one of `flush` together are the text of all tokens, cut before the first stop string to
    be completed (of two completed by the same character, the longer one).
    """

    __slots__ = ("_decoder", "_held", "_stop", "is_stopped")

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Append one token. Returns the text now certain, often empty; sets `is_stopped` when a stop string is complete."""
        return self._release(self._decoder.push((token_id,)))

    def flush(self) -> str:
        """Text still held back once there are no more tokens."""
        text = self._release(self._decoder.flush())
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        # A match that ends first wins, whatever pieces the text came in.
        matches = [(begin + len(stop), begin) for stop in self._stop if (begin := self._held.find(stop)) >= 0]
        if matches:
            released, self._held, self.is_stopped = self._held[: min(matches)[1]], "", True
            return released
        num_held = max(_overlap(self._held, stop) for stop in self._stop)
        released = self._held[: len(self._held) - num_held]
        self._held = self._held[len(released) :]
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself left out."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
