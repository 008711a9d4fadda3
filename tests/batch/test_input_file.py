"""Splitting the input: every row in exactly one shard, under its number and line, whatever the file looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.errors import BatchError, InvalidInputError
from nemodiff_trt.runtime.batch.input_file import InputFile

LINES = st.lists(
    st.sampled_from([b"", b"  ", b"\r", b'{"prompt": "a"}', b'{"prompt": "b"}\r', b"\xff\xfe", b"x\x0by"]), max_size=30
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("input") / "rows.jsonl"


@settings(deadline=None)
@given(lines=LINES, ends_with_newline=st.booleans(), shard_size=st.integers(1, 12))
def test_every_row_is_in_one_shard(path: Path, lines: list[bytes], ends_with_newline: bool, shard_size: int) -> None:
    content = b"\n".join(lines) + b"\n" * ends_with_newline
    path.write_bytes(content)
    wanted = [(line, text.strip()) for line, text in enumerate(content.split(b"\n"), start=1) if text.strip()]
    if not wanted:
        with pytest.raises(InvalidInputError, match="at least one line"):
            InputFile.scan(path, shard_size)
        return
    source = InputFile.scan(path, shard_size)
    rows = [row for shard in source.shards for row in source.rows(shard)]
    assert [(row.line, row.content) for row in rows] == wanted
    assert [row.index for row in rows] == list(range(source.num_rows)) == list(range(len(wanted)))
    assert [shard.index for shard in source.shards] == list(range(len(source.shards)))
    assert {shard.num_rows for shard in source.shards[:-1]} <= {shard_size}


@pytest.mark.parametrize("changed", [b"one\ntwo\nsix\n", b"one\ntwo\n", b""])
def test_a_changed_file_is_refused(tmp_path: Path, changed: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"one\ntwo\ntre\n")
    source = InputFile.scan(path, 2)
    path.write_bytes(changed)
    with pytest.raises(BatchError, match="changed since"):
        source.rows(source.shards[1])


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"input: .*readable file"):
        InputFile.scan(tmp_path / "missing.jsonl", 2)
    (tmp_path / "rows.jsonl").write_bytes(b"a\n")
    with pytest.raises(InvalidInputError, match="shard-size: got 0"):
        InputFile.scan(tmp_path / "rows.jsonl", 0)
