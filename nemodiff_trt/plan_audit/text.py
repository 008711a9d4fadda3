"""The bracket text in a plan: `key=value`, `key={ words and fields }`, names in quotes. Nothing in here knows what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

_TOKEN = re.compile(r'"([^"]*)"|([{}=])|([^\s{}="]+)')
# Deeper than any program seen by far; ends the reading of garbage.
_MAX_DEPTH = 32


class PlanTextError(ValueError):
    """Text that is not of the form this module reads."""


@dataclass(frozen=True, slots=True)
class Group:
    """What stands between two braces: loose words and key-value pairs, each in their order. Keys repeat."""

    words: tuple[str, ...] = ()
    fields: tuple[tuple[str, Value], ...] = ()

    def word(self, key: str, default: str = "") -> str:
        """The first value of `key` that is a plain word."""
        return next((value for name, value in self.fields if name == key and isinstance(value, str)), default)

    def group(self, key: str) -> Group:
        """The first value of `key` that is a group; an empty one if there is none."""
        return next(iter(self.groups(key)), Group())

    def groups(self, key: str) -> tuple[Group, ...]:
        return tuple(value for name, value in self.fields if name == key and isinstance(value, Group))


Value: TypeAlias = str | Group


class _Open:
    """A group that is not closed yet."""

    __slots__ = ("fields", "key", "pending", "wants_value", "words")

    def __init__(self, key: str) -> None:
        self.key = key
        self.words: list[str] = []
        self.fields: list[tuple[str, Value]] = []
        # The last loose word: a key if "=" or "{" follows.
        self.pending: str | None = None
        self.wants_value = False

    def take(self, word: str) -> None:
        if self.wants_value:
            self.fields.append((self.pending or "", word))
            self.pending, self.wants_value = None, False
            return
        self._flush()
        self.pending = word

    def take_key(self) -> str:
        key, self.pending, self.wants_value = self.pending or "", None, False
        return key

    def closed(self) -> Group:
        if not self.wants_value:
            self._flush()
        return Group(tuple(self.words), tuple(self.fields))

    def _flush(self) -> None:
        if self.pending is not None:
            self.words.append(self.pending)
            self.pending = None


def parse(text: str) -> Group:
    """The whole text as one group.

    Raises:
        PlanTextError: braces that do not match or are nested too deep.
    """
    stack = [_Open("")]
    for match in _TOKEN.finditer(text):
        quoted, mark, word = match.groups()
        top = stack[-1]
        if mark == "{":
            if len(stack) > _MAX_DEPTH:
                raise PlanTextError("braces nested too deep")
            stack.append(_Open(top.take_key()))
        elif mark == "}":
            if len(stack) == 1:
                raise PlanTextError("a closing brace without an opening one")
            stack.pop()
            stack[-1].fields.append((top.key, top.closed()))
        elif mark == "=":
            top.wants_value = top.pending is not None
        else:
            top.take(word if quoted is None else quoted)
    if len(stack) > 1:
        raise PlanTextError("a brace that is never closed")
    return stack[0].closed()
