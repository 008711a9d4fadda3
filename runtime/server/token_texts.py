"""Text and bytes of single tokens, for log-probabilities and traces."""

from __future__ import annotations

from nemodiff_trt.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _byte_of_character() -> dict[str, int]:
    """Byte-level vocabularies write every byte as one printable character; those that are not printable from U+0100 on.

    The mapping is that of the GPT-2 tokenizer, in use by byte-level vocabularies ever since.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class TokenTexts:
    """Looks tokens up one by one."""

    __slots__ = ("_bytes", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = _byte_of_character()

    def text(self, token: int) -> str:
        """What a token adds to a text, special tokens by their name. Bytes that are no character become U+FFFD."""
        return self._tokenizer.decode((token,), skip_special_tokens=False)

    def utf8(self, token: int) -> list[int] | None:
        """The bytes of a token; None where the vocabulary does not tell the bytes of an incomplete character."""
        text = self.text(token)
        if _REPLACEMENT not in text:
            return list(text.encode())
        written = self._tokenizer.token_text(token) or ""
        if not written or any(character not in self._bytes for character in written):
            return None
        found = bytes(self._bytes[character] for character in written)
        # A vocabulary of another kind would not agree.
        return list(found) if found.decode(errors="replace") == text else None
