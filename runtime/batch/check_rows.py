"""Every row of the input is tried before any engine is opened."""

from __future__ import annotations

from collections.abc import Iterator

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.batch.input_file import InputFile
from nemodiff_trt.runtime.batch.job import AnswerSettings
from nemodiff_trt.runtime.batch.requests import RequestReader, at_line
from nemodiff_trt.runtime.engine.request_checks import RequestChecks
from nemodiff_trt.runtime.planner.latency_model import latency_file
from nemodiff_trt.runtime.prompts import wants_chat
from nemodiff_trt.tokenizer import Tokenizer


def checks_of(bundle: Bundle) -> RequestChecks:
    """What the bundle can be asked for."""
    manifest = bundle.manifest
    return RequestChecks(
        model=manifest.model,
        limits=manifest.limits,
        roles=frozenset(manifest.roles),
        has_logits=manifest.keep_logits,
        can_plan=latency_file(bundle.path).exists(),
        tokenizer=Tokenizer.from_dir(bundle.tokenizer_dir),
    )


def check_settings(checks: RequestChecks, settings: AnswerSettings) -> None:
    """Refuse options of the whole job that the bundle cannot serve.

    Raises:
        InvalidInputError: names the option.
    """
    wants_chat(checks.tokenizer, settings.use_chat, settings.options.enable_thinking)
    checks.check_options(settings.options)


def check_rows(checks: RequestChecks, source: InputFile, settings: AnswerSettings) -> Iterator[int]:
    """Try the rows, shard by shard; gives the number of rows of each shard that is all right.

    Raises:
        InvalidInputError: names file, line and field of the first row that cannot be served.
    """
    reader = RequestReader(checks.tokenizer, settings.options, settings.use_chat)
    for shard in source.shards:
        for row in source.rows(shard):
            try:
                request = reader.read(row)
                checks.check(request.prompt, request.options)
            except InvalidInputError as error:
                raise at_line(error, source.path.name, row) from error
        yield shard.num_rows
