"""`nemodiff batch` as a user calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.command_line import run_app
from nemodiff_trt.runtime.cli.app import build_app


@pytest.fixture
def run(tiny_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"row {index}"}) + "\n" for index in range(5)))

    def run_with(*options: object) -> tuple[int, str, str]:
        arguments = ("batch", "--bundle", tiny_bundle_dir, "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out")
        code = run_app(build_app(), "nemodiff", [str(part) for part in (*arguments, "--max-new-tokens", 3, *options)])
        return (code, *capsys.readouterr())

    return run_with


def test_json_tells_what_was_done(run: Any, tmp_path: Path) -> None:
    code, out, err = run("--shard-size", 2, "--json")
    summary = json.loads(out)
    assert code == 0
    assert err.splitlines() == ["2 of 5 rows", "4 of 5 rows", "5 of 5 rows"]
    assert list(summary) == [
        "answers", "rows", "bad_rows", "new_tokens", "forward_passes", "shards", "reused_shards", "answered_rows", "workers",
        "seconds",
    ]  # fmt: skip
    assert (summary["rows"], summary["shards"], summary["answered_rows"]) == (5, 3, 5)
    assert len(Path(summary["answers"]).read_bytes().splitlines()) == 5
    assert run("--shard-size", 2)[1] == f"{tmp_path}/out/answers.jsonl: 5 rows, 5 of them by earlier runs, 15 tokens\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "slurm"), "backend: got 'slurm', allowed: local or ray"),
        (("--workers", 2), "workers: got 2, allowed: 1 with backend local"),
        (("--max-active", 99), "max_active: got 99"),
        (("--num-threads", 0), "num_threads: got 0"),
        (("--max-attempts", 0), "max-attempts: got 0"),
        (("--shard-size", 0), "shard-size: got 0"),
        (("--mode", "fast"), "mode: got 'fast'"),
    ],
)
def test_bad_options_are_refused_in_one_line(run: Any, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_ray_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "nemodiff_trt.runtime.batch.ray_executor", raising=False)
    code, _, err = run("--backend", "ray")
    assert code == 2
    assert "backend: got 'ray', allowed: local, or pip install 'nemodiff_trt[ray]' first" in err
