"""A whole run on a random checkpoint, what it refuses to time, and (slow) its report in headless Chromium."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.report import render
from nemodiff_trt.runtime.bench.result_file import describe_run
from nemodiff_trt.runtime.bench.run import Bench, OutputsDifferError
from nemodiff_trt.runtime.bench.settings import BASELINES, BenchSettings
from nemodiff_trt.runtime.bench.trace import EngineSubject
from nemodiff_trt.runtime.bench.workload import BenchPrompt, Workload
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode

WORKLOAD = Workload("two", tuple(BenchPrompt(name, ({"role": "user", "content": name},)) for name in ("ab", "c")))
SETTINGS = BenchSettings(block_lengths=(4,), max_new_tokens=8, num_repeats=1)


@pytest.fixture(scope="module")
def bench(tiny_bundle: Bundle) -> Bench:
    return Bench(OnnxRuntimeSession.open(tiny_bundle, num_threads=1), Tokenizer.from_dir(tiny_bundle.tokenizer_dir))


def test_lossless_cases_and_baselines_answer_like_ar(bench: Bench, tiny_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    from nemodiff_trt.runtime.bench.reference_model import ReferenceModel

    model = Bench(bench.session, bench.tokenizer, ReferenceModel(tiny_checkpoint))
    settings = BenchSettings(block_lengths=(4,), max_new_tokens=8, num_repeats=1, concurrency=(1, 2), baselines=BASELINES)
    runs = model.run([WORKLOAD], settings)
    by_case = {(run["case"], run["concurrency"]): run for run in runs}
    # Those of transformers take one request at a time.
    assert len(by_case) == 6 + 4
    assert all(run["answers_unlike_ar"] == 0 for run in runs if run["is_lossless"])
    assert by_case["ar", 1]["tokens_per_forward"] == by_case["transformers", 1]["tokens_per_forward"] == 1.0
    assert by_case["ar", 2]["categories"].keys() == {"ab", "c"}
    lookup = by_case["prompt_lookup B=4", 1]
    assert lookup["acceptance"]["cycles"] == lookup["forward_passes"]
    # One token a run, and as many as drafted and verified.
    assert by_case["ar", 1]["computed_tokens"] == by_case["transformers", 1]["computed_tokens"] == 1.0
    speculative = by_case["self_speculation B=4", 1]
    assert speculative["computed_tokens"] == pytest.approx(4 / speculative["tokens_per_forward"])
    described = describe_run(tiny_bundle, [WORKLOAD], settings, 1, runs, [])
    assert [(each["block_length"], each["workload"]) for each in described["lookup_verdicts"]] == [(4, "two")]
    json.dumps(described, allow_nan=False)


def test_all_prompts_are_checked_and_the_first_ones_timed(bench: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, num_timed_prompts=2, concurrency=(1, 2), baselines=())
    for run in bench.run([Workload("four", (*WORKLOAD.prompts, *WORKLOAD.prompts, *WORKLOAD.prompts))], settings):
        # Two waves at least.
        assert (run["answers"], run["timed_answers"]) == (6, 2 * run["concurrency"])
        assert {name: each["answers"] for name, each in run["categories"].items()} == {"ab": 3, "c": 3}


def test_a_first_token_is_there_when_the_step_that_computed_it_ends(bench: Bench) -> None:
    ticks = itertools.count()
    options = GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=8, block_length=4)
    subject = EngineSubject(bench.session, bench.tokenizer, options, concurrency=1)
    (trace,) = subject.answer([[1, 200, 300]], clock=lambda: float(next(ticks)))
    # The step that ends the prompt drafts and verifies, too, and a caller hears of all of it at its end.
    assert trace.first_token_s > trace.prefill_s
    assert list(trace.arrivals_s) == sorted(set(trace.arrivals_s))
    assert len(trace.arrivals_s) == len(trace.cycles)


def test_a_case_that_differs_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemodiff_trt.runtime.bench import trace

    monkeypatch.setattr(trace._Recorder, "take_in", _one_token_less(trace._Recorder.take_in))
    with pytest.raises(OutputsDifferError, match="self_speculation B=4 differs from ar on prompts"):
        bench.run([WORKLOAD], SETTINGS)


def _one_token_less(take_in: object) -> object:
    def cut(recorder: object, event: object, now_s: float, is_speculative: bool) -> None:
        take_in(recorder, event, now_s, is_speculative)  # type: ignore[operator]
        found = recorder.result  # type: ignore[attr-defined]
        if found is not None and is_speculative:
            recorder.result = dataclasses.replace(found, token_ids=found.token_ids[:-1])  # type: ignore[attr-defined]

    return cut


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (BenchSettings(block_lengths=(4,), concurrency=(10**4,)), "concurrency"),
        (BenchSettings(block_lengths=(10**4,)), "block_length"),
        (BenchSettings(block_lengths=(4,), baselines=BASELINES), "baselines"),
    ],
)
def test_what_the_engines_cannot_serve_is_refused_first(bench: Bench, settings: BenchSettings, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        bench.run([WORKLOAD], settings)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(bench: Bench, tiny_bundle: Bundle, tmp_path: Path, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    page_file = tmp_path / "report.html"
    runs = bench.run([WORKLOAD], SETTINGS)
    page_file.write_text(render(describe_run(tiny_bundle, [WORKLOAD], SETTINGS, 1, runs, [])), encoding="utf-8")
    told: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert page.screenshot()
        assert page.get_by_role("img").count() == 4
        assert page.get_by_role("heading", name="Drafts of the model and look-up, B=4").is_visible()
        # Panels name their kind, and the legend their cases.
        assert page.locator("svg text", has_text="prompt_lookup").count() > 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    expected = ("rgb(255, 255, 255)", "rgb(27, 31, 36)") if scheme == "light" else ("rgb(20, 23, 26)", "rgb(232, 234, 237)")
    assert (paper, ink) == expected
