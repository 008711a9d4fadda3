"""The bracket text in a plan: `key=value`, `key={ words and fields }`, names in quotes. Nothing in here knows what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

_TOKEN = re.compile(r'"([^"]*)"|([{}=])|([^\s{}="]+)')
_MARK = 2
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


def parse(text: str) -> Group:
    """The whole text as one group.

    Raises:
        PlanTextError: braces that do not match or are nested too deep.
    """
    # Plans of large models hold millions of tokens: one loop, and no call for a token.
    enclosing: list[tuple[str, list[str], list[tuple[str, Value]]]] = []
    key, words, fields = "", list[str](), list[tuple[str, Value]]()
    # The last loose word: a key if "=" or "{" follows.
    pending: str | None = None
    wants_value = False
    for match in _TOKEN.finditer(text):
        kind = match.lastindex
        word = match[kind or 0]
        if kind != _MARK:
            if wants_value:
                fields.append((pending or "", word))
                pending, wants_value = None, False
            else:
                if pending is not None:
                    words.append(pending)
                pending = word
        elif word == "=":
            wants_value = pending is not None
        elif word == "{":
            if len(enclosing) >= _MAX_DEPTH:
                raise PlanTextError("braces nested too deep")
            enclosing.append((key, words, fields))
            key, words, fields = pending or "", [], []
            pending, wants_value = None, False
        else:
            if not enclosing:
                raise PlanTextError("a closing brace without an opening one")
            if pending is not None and not wants_value:
                words.append(pending)
            closed = key, Group(tuple(words), tuple(fields))
            key, words, fields = enclosing.pop()
            fields.append(closed)
            pending, wants_value = None, False
    if enclosing:
        raise PlanTextError("a brace that is never closed")
    if pending is not None and not wants_value:
        words.append(pending)
    return Group(tuple(words), tuple(fields))
