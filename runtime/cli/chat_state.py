"""Settings and history of a chat, and the slash commands that change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

Number = TypeVar("Number", int, float)

NO_VALUE = ("none", "default", "max")


@dataclass(slots=True)
class ChatState:
    """What the next turn starts from."""

    model: TriModeLM
    options: GenerationOptions
    is_shown: bool = False
    pause_s: float = 0.0
    messages: list[dict[str, str]] = field(default_factory=list)

    def change(self, **changes: object) -> None:
        """Change options.

        Raises:
            InvalidInputError: the value is not usable, or not with these engines; nothing has changed then.
        """
        options = self.options.changed(**changes)
        self.model.engine.check_options(options)
        self.options = options

    def fit_messages(self) -> int:
        """Drop the oldest exchanges until question and answer fit the context; returns how many messages went."""
        limit = self.model.session.limits.max_seq_len
        num_dropped = 0
        while True:
            text = self.model.tokenizer.apply_chat_template(self.messages, enable_thinking=self.options.enable_thinking)
            num_tokens = len(self.model.tokenizer.encode(text))
            wanted = min(self.options.max_new_tokens, limit // 2)
            begin = 1 if self.messages[0]["role"] == "system" else 0
            if num_tokens + wanted <= limit or len(self.messages) - begin < 3:
                return num_dropped
            del self.messages[begin : begin + 2]
            num_dropped += 2

    def settings(self) -> str:
        """One line."""
        options = self.options
        block = options.block_length or self.model.session.limits.block_length
        threshold = "default" if options.threshold is None else f"{options.threshold:g}"
        parts = (
            f"mode {options.mode}",
            f"block {block}",
            f"threshold {threshold}",
            f"temperature {options.sampling.temperature:g}",
            f"up to {options.max_new_tokens} tokens",
            f"thinking {_on(options.enable_thinking)}",
            f"show {_on(self.is_shown)}",
        )
        return " · ".join(parts)


def _on(value: bool) -> str:
    return "on" if value else "off"


def run_command(state: ChatState, line: str) -> str:
    """Carry out a line that starts with a slash; returns what to print.

    Raises:
        InvalidInputError: there is no such command, or its value is not usable.
    """
    name, _, value = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise InvalidInputError("command", f"/{name}", ", ".join(f"/{known}" for known in COMMANDS) + ", /quit")
    return COMMANDS[name][1](state, value.strip())


def _mode(state: ChatState, value: str) -> str:
    from nemodiff_trt.vocabulary import Mode

    # A threshold of one mode means nothing in another.
    changes: dict[str, object] = {"mode": value, "threshold": None}
    if value != Mode.DIFFUSION:
        changes["steps"] = None
    state.change(**changes)
    return state.settings()


def _block(state: ChatState, value: str) -> str:
    state.change(block_length=None if value in NO_VALUE else _number("block", value, int, "an integer"))
    return state.settings()


def _threshold(state: ChatState, value: str) -> str:
    state.change(threshold=None if value in NO_VALUE else _number("threshold", value, float, "a number"))
    return state.settings()


def _temperature(state: ChatState, value: str) -> str:
    state.change(temperature=_number("temperature", value, float, "a number"))
    return state.settings()


def _tokens(state: ChatState, value: str) -> str:
    state.change(max_new_tokens=_number("tokens", value, int, "an integer"))
    return state.settings()


def _thinking(state: ChatState, value: str) -> str:
    state.change(enable_thinking=_switch("thinking", value, state.options.enable_thinking))
    return state.settings()


def _show(state: ChatState, value: str) -> str:
    state.is_shown = _switch("show", value, state.is_shown)
    return state.settings()


def _slow(state: ChatState, value: str) -> str:
    seconds = _number("slow", value, float, "a number")
    if not 0 <= seconds <= 10:
        raise InvalidInputError("slow", value, "0 to 10 seconds after each engine run")
    state.pause_s = float(seconds)
    return f"{seconds:g} s after each engine run while tokens are shown"


def _clear(state: ChatState, value: str) -> str:
    if value:
        raise InvalidInputError("clear", value, "no value")
    state.messages = [message for message in state.messages if message["role"] == "system"]
    return "a new conversation"


def _help(state: ChatState, value: str) -> str:
    del value
    return "\n".join([*(text for text, _ in COMMANDS.values()), "/quit                 leave", "", state.settings()])


COMMANDS: dict[str, tuple[str, Callable[[ChatState, str], str]]] = {
    "help": ("/help                 this text", _help),
    "mode": ("/mode M               ar, diffusion or self_speculation", _mode),
    "block": ("/block B              tokens of a block, or max", _block),
    "threshold": ("/threshold X          0 to 1, or default", _threshold),
    "temperature": ("/temperature T        0 is greedy", _temperature),
    "tokens": ("/tokens N             limit of an answer", _tokens),
    "thinking": ("/thinking [on|off]    open a think section", _thinking),
    "show": ("/show [on|off]        drafted, accepted and denoised tokens as they appear", _show),
    "slow": ("/slow S               seconds to wait after each engine run while they are shown", _slow),
    "clear": ("/clear                forget the conversation", _clear),
}


def _number(field_name: str, value: str, kind: Callable[[str], Number], allowed: str) -> Number:
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidInputError(field_name, value, allowed) from error


def _switch(field_name: str, value: str, current: bool) -> bool:
    if not value:
        return not current
    if value not in ("on", "off"):
        raise InvalidInputError(field_name, value, "on or off")
    return value == "on"
