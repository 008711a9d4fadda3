"""Batch jobs in one process: answers in order, each exactly once whatever dies, and refusals before anything costly."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BatchError, InvalidInputError
from nemodiff_trt.runtime.batch.executors import run_locally
from nemodiff_trt.runtime.batch.input_file import InputFile
from nemodiff_trt.runtime.batch.job_folder import JobFolder
from nemodiff_trt.runtime.batch.worker import ShardWorker
from nemodiff_trt.runtime.sampling.noise import derived_seed
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from support.batch_jobs import OPTIONS, Job, OneEngine, WorkerDiedError, make_job
from support.bundles import build_bundle

PROMPTS = ["one", "two words", "three words here", "4", "fünf", "six " * 6, "seven"]
ROWS = [{"prompt": text, "id": f"row-{place}"} for place, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def model(tiny_bundle_dir: Path) -> TriModeLM:
    return TriModeLM.from_bundle(tiny_bundle_dir, num_threads=1)


@pytest.fixture
def job(model: TriModeLM, tiny_bundle_dir: Path, tmp_path: Path) -> Job:
    made = make_job(model, tiny_bundle_dir, tmp_path)
    made.write(ROWS)
    return made


def texts(job: Job) -> list[str]:
    return [answer["text"] for answer in job.answers()]


class TestAnswers:
    def test_they_are_those_of_generate(self, job: Job, model: TriModeLM) -> None:
        summary = job.run()
        chats: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
        expected = model.generate(chats, OPTIONS)
        assert [tuple(answer["token_ids"]) for answer in job.answers()] == [result.token_ids for result in expected]
        assert [answer["id"] for answer in job.answers()] == [row["id"] for row in ROWS]
        assert list(job.answers()[0]) == ["index", "id", "key", "text", "token_ids", "finish_reason", "mode", "stats"]
        assert (summary.totals.rows, summary.totals.bad_rows, summary.num_shards) == (7, 0, 3)
        assert summary.totals.new_tokens == sum(result.stats.new_tokens for result in expected)

    def test_a_row_has_options_of_its_own(self, job: Job, model: TriModeLM) -> None:
        rows = [
            {"prompt": "a b c", "max_new_tokens": 2},
            {"prompt": "a b c", "mode": "diffusion", "threshold": 0.5, "block_length": 4},
            {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "x"}], "mode": "ar"},
            {"prompt": "a b c"},
        ]
        job.write(rows)
        job.run()
        assert [answer["mode"] for answer in job.answers()] == ["self_speculation", "diffusion", "ar", "self_speculation"]
        for answer, row in zip(job.answers(), rows, strict=True):
            changes = {name: value for name, value in row.items() if name not in ("prompt", "messages")}
            prompt: Any = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            assert tuple(answer["token_ids"]) == model.generate(prompt, OPTIONS, **changes)[0].token_ids

    def test_the_local_backend_opens_the_bundle_and_checks_which_it_is(self, job: Job) -> None:
        source = InputFile.scan(job.setup.input_path, 4)
        job.setup.output_dir.mkdir()
        assert [report.totals.rows for report in run_locally(job.setup, source.shards)] == [4, 3]
        other = dataclasses.replace(job.setup, build_key="another")
        with pytest.raises(BatchError, match="is another bundle: build key"):
            list(run_locally(other, source.shards))

    def test_without_merging_there_are_parts_only(self, job: Job) -> None:
        assert job.run(merge=False).totals.rows == len(ROWS)
        names = sorted(path.name for path in job.setup.output_dir.glob("*.jsonl"))
        assert names == ["part-00000.jsonl", "part-00001.jsonl", "part-00002.jsonl"]


def test_a_seed_gives_every_row_one_of_its_own(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    bundle_dir = build_bundle(tiny_checkpoint_dir, tmp_path / "sampling", sampling=True)
    model = TriModeLM.from_bundle(bundle_dir, num_threads=1)
    sampled = OPTIONS.changed(temperature=1.0, seed=7, mode="ar", max_new_tokens=12)
    job = make_job(model, bundle_dir, tmp_path).changed(options=sampled)
    job.write([{"prompt": "same"}] * 4 + [{"prompt": "same", "seed": 5}, {"prompt": "same", "logit_bias": {"200": 100.0}}])
    job.run(shard_size=2)
    answers = texts(job)
    assert len(set(answers[:4])) == 4
    chat: Any = [{"role": "user", "content": "same"}]
    seeds = [derived_seed(7, index) for index in range(4)] + [5]
    assert answers[:5] == [model.generate(chat, sampled, seed=seed)[0].text for seed in seeds]
    assert set(job.answers()[5]["token_ids"]) == {200}


class TestExactlyOnce:
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        num_rows=st.integers(1, 9),
        shard_size=st.integers(1, 4),
        deaths=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=3),
    )
    def test_whatever_dies(
        self,
        model: TriModeLM,
        tiny_bundle_dir: Path,
        tmp_path_factory: pytest.TempPathFactory,
        num_rows: int,
        shard_size: int,
        deaths: list[tuple[int, bool]],
    ) -> None:
        job = make_job(model, tiny_bundle_dir, tmp_path_factory.mktemp("job"))
        job.write([{"prompt": f"row {index}", "max_new_tokens": 2} for index in range(num_rows)])
        num_answered = 0
        for dies_after, is_torn in [*deaths, (99, False)]:
            execute = OneEngine(model, dies_after, is_torn)
            try:
                job.run(shard_size, execute)
            except WorkerDiedError:
                assert not (job.setup.output_dir / "answers.jsonl").exists()
            num_answered += execute.num_answered
        assert [answer["index"] for answer in job.answers()] == list(range(num_rows))
        assert num_answered == num_rows
        assert not list(job.setup.output_dir.glob(".*.partial"))

    def test_a_shard_that_comes_twice_is_answered_once(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        answered = Counter[str]()
        check = job.model.engine.check
        monkeypatch.setattr(job.model.engine, "check", lambda *given: answered.update([str(given[0])]) or check(*given))
        source = InputFile.scan(job.setup.input_path, 3)
        job.setup.output_dir.mkdir()
        worker = ShardWorker(job.model.engine, job.setup)
        first = [worker.run(shard).totals for shard in source.shards]
        assert [worker.run(shard).totals for shard in source.shards] == first
        assert set(answered.values()) == {1}
        assert len(answered) == len(ROWS)

    def test_a_shard_that_kills_its_workers_ends_the_job(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        def die(*given: Any) -> None:
            raise WorkerDiedError

        setup = dataclasses.replace(job.setup, max_attempts=2)
        worker = ShardWorker(job.model.engine, setup)
        shard = InputFile.scan(setup.input_path, 3).shards[0]
        setup.output_dir.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(job.model.engine, "check", die)
            for _ in range(2):
                with pytest.raises(WorkerDiedError):
                    worker.run(shard)
        with pytest.raises(BatchError, match=r"part-00000\.jsonl was begun 2 times"):
            worker.run(shard)

    def test_two_runs_at_once_are_refused(self, job: Job) -> None:
        with JobFolder(job.setup.output_dir), pytest.raises(InvalidInputError, match="no other run is writing"):
            job.run()
        assert job.run().answered_rows == len(ROWS)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda lines: lines[:-1], "ends before row 2"),
            (lambda lines: [*lines, lines[0]], "answers to no row"),
            (lambda lines: [lines[0], *lines[:-1]], "another answer where that to row 1"),
            (lambda lines: [lines[0], lines[1][:20], lines[2]], "damaged where row 1"),
        ],
        ids=["missing", "extra", "doubled", "torn"],
    )
    def test_a_damaged_part_is_named(self, job: Job, damage: Any, message: str) -> None:
        job.run()
        part = job.setup.output_dir / "part-00000.jsonl"
        whole = part.read_bytes()
        part.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in damage(whole.splitlines(keepends=True))))
        with pytest.raises(BatchError, match=f"part-00000.jsonl .*{message}"):
            job.run()
        part.unlink()
        assert job.run().answered_rows == 3


class TestResuming:
    def test_a_finished_job_is_left_as_it_is(self, job: Job) -> None:
        job.run()
        before = (job.setup.output_dir / "answers.jsonl").read_bytes()
        summary = job.run()
        assert (summary.answered_rows, summary.reused_shards, summary.totals.rows) == (0, 3, 7)
        assert (job.setup.output_dir / "answers.jsonl").read_bytes() == before

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"options": OPTIONS.changed(max_new_tokens=5)}, "max_new_tokens: got 5, allowed: 4"),
            ({"options": OPTIONS.changed(seed=3)}, "seed: got 3, allowed: None"),
            ({"use_chat": False}, "chat: got False"),
            ({"skip_bad_rows": True}, "skip-bad-rows: got True"),
            ({"keep_token_ids": False}, "token-ids: got False"),
        ],
    )
    def test_with_other_settings_is_refused(self, job: Job, changes: dict[str, Any], field: str) -> None:
        job.run()
        with pytest.raises(InvalidInputError, match=field):
            job.changed(**changes).run()

    def test_with_another_input_bundle_or_shard_size_is_refused(self, job: Job) -> None:
        job.run()
        with pytest.raises(InvalidInputError, match="shard-size: got 4, allowed: 3"):
            job.run(shard_size=4)
        other = dataclasses.replace(job, setup=dataclasses.replace(job.setup, build_key="another"))
        with pytest.raises(InvalidInputError, match="bundle: got 'another'"):
            other.run()
        job.write([*ROWS[:-1], {"prompt": "changed"}])
        with pytest.raises(InvalidInputError, match="input: got"):
            job.run()

    def test_a_folder_of_something_else_is_refused(self, job: Job) -> None:
        job.setup.output_dir.mkdir()
        (job.setup.output_dir / "thesis.txt").write_text("mine")
        with pytest.raises(InvalidInputError, match=r"output: .*new or empty folder"):
            job.run()
        assert [path.name for path in job.setup.output_dir.iterdir()] == ["thesis.txt"]


BAD_ROWS = [
    ("{", "row: got '{'"),
    ("[1]", "row: got .*JSON object"),
    ({"text": "no prompt"}, "row: got .*allowed: a text in"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "row: got"),
    ({"prompt": "a", "temprature": 1}, "temprature: got 1"),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens: got 0"),
    ({"prompt": "a", "temperature": 1.0}, "temperature: got 1.0"),
    ({"prompt": "a", "block_length": 64}, "block_length: got 64"),
    ({"prompt": "a", "id": 1.5}, "id: got 1.5"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias: got"),
    ({"prompt": "a", "sampling": {}}, "sampling: got"),
    ({"prompt": "long " * 200}, "prompt: got '.* tokens'"),
    ({"messages": [{"role": "nobody", "content": "b"}]}, "messages: got"),
]


class TestBadRows:
    @pytest.mark.parametrize(("row", "message"), BAD_ROWS)
    def test_they_are_refused_by_line_before_an_engine_is_opened(self, job: Job, row: Any, message: str) -> None:
        job.write(["", ROWS[0], "", row, ROWS[1]])  # type: ignore[list-item]
        execute = OneEngine(job.model)
        with pytest.raises(InvalidInputError, match=f"rows.jsonl line 4: {message}"):
            job.run(execute=execute)
        assert execute.num_answered == 0
        job.write(ROWS)
        assert job.run().answered_rows == len(ROWS), "nothing of the refused job is in the way"

    def test_they_get_an_error_if_they_are_to_be_skipped(self, job: Job) -> None:
        skipping = job.changed(skip_bad_rows=True)
        skipping.write([ROWS[0], *(row for row, _ in BAD_ROWS), {"prompt": 1, "id": "mine"}, ROWS[1]])  # type: ignore[list-item]
        summary = skipping.run()
        answers = skipping.answers()
        assert (summary.totals.rows, summary.totals.bad_rows) == (len(answers), len(BAD_ROWS) + 1)
        assert [answer["index"] for answer in answers] == list(range(len(BAD_ROWS) + 3))
        assert ["text" in answer for answer in answers] == [True, *[False] * (len(BAD_ROWS) + 1), True]
        assert "max_new_tokens: got 0" in answers[6]["error"]
        assert answers[-2]["id"] == "mine"

    def test_options_of_the_job_are_refused_even_so(self, job: Job) -> None:
        bad = job.changed(skip_bad_rows=True, options=OPTIONS.changed(block_length=64))
        with pytest.raises(InvalidInputError, match="block_length: got 64"):
            bad.run()
        assert not job.setup.output_dir.exists()


def test_rows_are_checked_for_what_the_bundle_says_as_the_engine_does(job: Job, tiny_bundle: Bundle) -> None:
    """The check before any engine is open, and that of the open engine, refuse and take the same."""
    from nemodiff_trt.runtime.batch.check_rows import checks_of

    checks = checks_of(tiny_bundle)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    for changes in ({}, {"mode": "quadratic"}, {"mode": "auto"}, {"temperature": 0.5}, {"max_thinking_tokens": 3}):
        options = OPTIONS.changed(**changes)
        outcomes = [json.dumps(_outcome(check, chats[1], options)) for check in (checks.check, job.model.engine.check)]
        assert outcomes[0] == outcomes[1]


def _outcome(check: Any, prompt: Any, options: Any) -> Any:
    try:
        return check(prompt, options)
    except InvalidInputError as error:
        return str(error)
