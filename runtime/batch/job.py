"""A job: which rows are answered how. What is recorded of it decides whether a later run may go on with its folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.batch.input_file import InputFile
from nemodiff_trt.runtime.options import GenerationOptions

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """What decides the content of the answers.

    Attributes:
        options: of rows that give none of their own.
        use_chat: whether texts become chats; None for where the model has a chat template.
        skip_bad_rows: a row that cannot be served gets an error in place of an answer; otherwise it ends the job.
        keep_token_ids: answers carry them.
    """

    options: GenerationOptions
    use_chat: bool | None = None
    skip_bad_rows: bool = False
    keep_token_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """All that a worker has to know; paths are those of its own node.

    Attributes:
        bundle_dir: bundle with the build key `build_key`.
        input_path: the input file.
        output_dir: folder of the job.
        settings: of the answers.
        max_active: rows answered at a time; None for the built batch.
        num_threads: CPU threads of a step; None for what the backend takes by itself.
        verify: compare the checksum of every file of the bundle first.
        max_attempts: how often a shard may be begun in a run before the job fails, because its workers die.

    Raises:
        InvalidInputError: `max_attempts` is not positive.
    """

    bundle_dir: Path
    build_key: str
    input_path: Path
    output_dir: Path
    settings: AnswerSettings
    max_active: int | None = None
    num_threads: int | None = None
    verify: bool = True
    max_attempts: int = 4

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidInputError("max-attempts", self.max_attempts, "an integer of at least 1")


def job_record(source: InputFile, shard_size: int, settings: AnswerSettings, build_key: str) -> dict[str, Any]:
    """What must be the same when a job is resumed, as plain values by the names of the command line."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "input": source.sha256,
        "rows": source.num_rows,
        "bundle": build_key,
        "shard-size": shard_size,
        "chat": settings.use_chat,
        "skip-bad-rows": settings.skip_bad_rows,
        "token-ids": settings.keep_token_ids,
        **dataclasses.asdict(settings.options),
    }
    # As it is after it was written and read: with lists for tuples, and texts for names.
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain
