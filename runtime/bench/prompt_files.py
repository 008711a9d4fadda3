"""Prompts from files: one JSON object a line, in the forms that benchmarks of speculative decoding use.

- our own: `prompt` or `messages`, optionally `category`, `answer` (exact) and `thinking`.
- Spec-Bench `question.jsonl`: `question_id`, `category`, `turns` (texts of the user), optionally `reference`.
- SPEED-Bench: `question_id`, `category`, `turns` as published (also as parquet, with pyarrow installed), or `messages` as its
  preparation script writes them.

Of a conversation the first question is asked: later ones depend on answers that differ from model to model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.workload import BenchPrompt, Workload
from nemodiff_trt.runtime.numbered_lines import read_numbered_lines

# What SPEED-Bench publishes where the licence of a source does not let it publish the text.
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
FORMS = "an object with a text in prompt, texts in turns or a chat in messages"


def read_workload(path: Path, limit: int | None = None) -> Workload:
    """The first `limit` prompts of a file, named after it.

    Raises:
        InvalidInputError: names file and line of what cannot be used; or the file is unreadable or empty.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    prompts: list[BenchPrompt] = []
    for number, row in rows:
        # The whole file is read, so that a bad line is found whatever the limit.
        prompt = _prompt_of(row, f"{path}, line {number}", path.stem)
        if limit is None or len(prompts) < limit:
            prompts.append(prompt)
    if not prompts:
        raise InvalidInputError("workload", str(path), "a file with at least one prompt")
    return Workload(path.stem, tuple(prompts))


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in read_numbered_lines(path, "workload"):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number}", line[:40], f"a JSON object ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise InvalidInputError("workload", str(path), "a .jsonl file, or an installed pyarrow to read parquet") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InvalidInputError("workload", str(path), f"a readable parquet file ({error})") from error
    yield from enumerate(rows, start=1)


def _prompt_of(row: object, where: str, default_category: str) -> BenchPrompt:
    if not isinstance(row, dict):
        raise InvalidInputError(where, row, FORMS)
    given = [name for name in ("prompt", "turns", "messages") if row.get(name) is not None]
    if len(given) != 1:
        raise InvalidInputError(where, sorted(map(str, row)), FORMS)
    category, answer, thinking = row.get("category", default_category), row.get("answer"), row.get("thinking", False)
    if not isinstance(category, str) or not category:
        raise InvalidInputError(f"{where}, category", category, "a text")
    if answer is not None and not isinstance(answer, str):
        raise InvalidInputError(f"{where}, answer", answer, "a text")
    if not isinstance(thinking, bool):
        raise InvalidInputError(f"{where}, thinking", thinking, "true or false")
    return BenchPrompt(category, _messages_of(row, given[0], where), answer, thinking)


def _messages_of(row: dict[str, Any], field: str, where: str) -> tuple[dict[str, Any], ...]:
    content = row[field]
    if field != "messages":
        texts = [content] if field == "prompt" else content
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError(f"{where}, {field}", content, "a text" if field == "prompt" else "a list of texts")
        return ({"role": "user", "content": _usable(texts[0], f"{where}, {field}")},)
    if not isinstance(content, list) or not all(isinstance(message, dict) for message in content):
        raise InvalidInputError(f"{where}, messages", content, "a list of objects with role and content")
    messages: list[dict[str, Any]] = []
    for message in content:
        role, text = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(text, str):
            raise InvalidInputError(f"{where}, messages", message, "texts in role and content")
        messages.append({"role": role, "content": _usable(text, f"{where}, messages")})
        if role == "user":
            return tuple(messages)
    raise InvalidInputError(f"{where}, messages", content, "a message of the role user")


def _usable(text: str, where: str) -> str:
    if not text.strip():
        raise InvalidInputError(where, text, "a text that is not blank")
    if PLACEHOLDER in text:
        raise InvalidInputError(where, text[:60], "the full text: run the data set's preparation script first")
    return text
