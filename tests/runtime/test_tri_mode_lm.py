"""`TriModeLM` over scripted and eager sessions: text, batches, streams, stop strings, errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nemodiff_trt
from nemodiff_trt import GenerationOptions, GenerationResult, StreamEvent, TriModeLM
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role
from support.checkpoints import random_decoder, tiny_config, write_tokenizer
from support.scripted_session import END_THINK, EOS, Prefix, ScriptedSession, counting, guess_from

MODES = ("ar", "diffusion", "self_speculation")
LIMITS = Limits(max_batch_size=3, max_seq_len=160, block_length=16, prefill_chunk=32)
SPOKEN = "Hello 🌍! Stop here, please. — Ünïcödé €5 the end. "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer.from_dir(directory)


def speaker(tokenizer: Tokenizer, text: str = SPOKEN, accuracy: float = 0.8) -> TriModeLM:
    """A model that says `text` over and over, ending in EOS after each time, whatever it is asked; prompts end in `:`."""
    spoken, colon = [*tokenizer.encode(text), EOS], tokenizer.encode(":")[0]

    def next_token(prefix: Prefix) -> int:
        begin = max(index for index, token in enumerate(prefix) if token == colon or index == 0)
        return spoken[(len(prefix) - begin - 1) % len(spoken)]

    return TriModeLM(ScriptedSession(next_token, guess_from(next_token, 0, accuracy), LIMITS), tokenizer)


def eager_lm(tokenizer: Tokenizer, seed: int = 0) -> TriModeLM:
    decoder = random_decoder(tiny_config(hidden_size=32, head_dim=8), LIMITS.cache_capacity, seed).double()
    return TriModeLM(EagerSession(decoder, LIMITS), tokenizer)


def streamed(events: list[StreamEvent]) -> GenerationResult:
    """The result of a stream, which only its last event has, checked against the pieces."""
    assert [event.result for event in events[:-1]] == [None] * (len(events) - 1)
    result = events[-1].result
    assert result is not None
    assert "".join(event.text for event in events) == result.text
    assert tuple(token for event in events for token in event.token_ids) == result.token_ids
    return result


def essence(result: GenerationResult) -> tuple[Any, ...]:
    return result.text, result.token_ids, result.finish_reason


@pytest.mark.parametrize("mode", ["ar", "self_speculation"])
class TestText:
    def test_answer_ends_with_eos_which_is_no_text(self, tokenizer: Tokenizer, mode: str) -> None:
        (result,) = speaker(tokenizer).generate("Say:", mode=mode, max_new_tokens=120)
        assert result.text == SPOKEN
        assert result.token_ids == (*tokenizer.encode(SPOKEN), EOS)
        assert (result.prompt, result.finish_reason, result.mode) == ("Say:", "eos", mode)

    @pytest.mark.parametrize("stop", ["Stop", "!", "ö", " €5", "🌍! Stop here", "H"])
    def test_stop_string_ends_the_answer_alike_in_every_way(self, tokenizer: Tokenizer, mode: str, stop: str) -> None:
        lm = speaker(tokenizer)
        options = GenerationOptions(mode=Mode(mode), stop=(stop, "never"), max_new_tokens=120)
        (result,) = lm.generate("Say:", options)
        assert result.text == SPOKEN[: SPOKEN.index(stop)]
        assert result.finish_reason == "stop"
        # The token that completed the stop string is the last.
        kept = tokenizer.decode(result.token_ids)
        assert stop in kept
        assert stop not in tokenizer.decode(result.token_ids[:-1])
        assert result.stats.new_tokens == len(result.token_ids)
        assert essence(streamed(list(lm.stream("Say:", options)))) == essence(result)
        assert [essence(r) for r in lm.generate(["Say:"] * 3, options)] == [essence(result)] * 3

    def test_ignored_eos(self, tokenizer: Tokenizer, mode: str) -> None:
        (result,) = speaker(tokenizer, "ab").generate("Say:", mode=mode, max_new_tokens=8, ignore_eos=True)
        assert (result.text, result.finish_reason) == ("ababab"[:6], "length")

    def test_thinking_budget(self, tokenizer: Tokenizer, mode: str) -> None:
        (result,) = speaker(tokenizer).generate("Say:", mode=mode, max_new_tokens=9, max_thinking_tokens=4)
        assert result.token_ids[4] == END_THINK
        assert result.text[:4] == SPOKEN[:4]

    def test_chat_is_rendered(self, tokenizer: Tokenizer, mode: str) -> None:
        lm, chat = speaker(tokenizer), [{"role": "user", "content": "Say:"}]
        for thinking in (False, True):
            rendered = tokenizer.apply_chat_template(chat, enable_thinking=thinking)
            (result,) = lm.generate(chat, mode=mode, enable_thinking=thinking, max_new_tokens=3)
            assert result.prompt == rendered
            assert essence(lm.generate([rendered], mode=mode, max_new_tokens=3)[0]) == essence(result)
        assert [r.prompt for r in lm.generate([chat, "b:"], mode=mode)] == [tokenizer.apply_chat_template(chat), "b:"]

    def test_token_ids_as_prompt(self, tokenizer: Tokenizer, mode: str) -> None:
        lm = speaker(tokenizer)
        assert essence(lm.generate(tokenizer.encode("Say:"), mode=mode)[0]) == essence(lm.generate("Say:", mode=mode)[0])

    def test_empty_text_starts_from_the_begin_token(self, tokenizer: Tokenizer, mode: str) -> None:
        lm = speaker(tokenizer)
        assert essence(lm.generate("", mode=mode)[0]) == essence(lm.generate([1], mode=mode)[0])


class TestBatches:
    def test_results_in_the_order_of_prompts_whatever_the_batches(self, tokenizer: Tokenizer) -> None:
        lm = eager_lm(tokenizer)
        prompts = ["x" * length for length in (50, 1, 9, 120, 2, 30, 7)]
        for mode in MODES:
            together = lm.generate(prompts, mode=mode, max_new_tokens=12)
            assert [r.prompt for r in together] == prompts
            assert [essence(r) for r in together] == [
                essence(lm.generate([p], mode=mode, max_new_tokens=12)[0]) for p in prompts
            ]

    def test_results_come_as_they_are_finished(self, tokenizer: Tokenizer) -> None:
        session = ScriptedSession(counting(), limits=LIMITS)
        arriving = TriModeLM(session, tokenizer).complete(["a", "bbb", "cc", "dddd"], mode="ar", max_new_tokens=2)
        assert session.runs == []
        assert [next(arriving)[0] for _ in range(3)] == [0, 2, 1]
        assert len(session.runs) == 2
        assert next(arriving)[0] == 3

    def test_several_sampled_answers_to_each_prompt(self, tokenizer: Tokenizer) -> None:
        lm, prompts = eager_lm(tokenizer), ["one", "second"]
        options = GenerationOptions(mode=Mode.AR, max_new_tokens=12).changed(temperature=2.0, seed=5)
        together = lm.generate(prompts, options, n=3)
        assert [result.prompt for result in together] == ["one"] * 3 + ["second"] * 3
        assert len({result.token_ids for result in together}) == 6
        # Each is drawn from a seed of its own, the first from the one that was given.
        assert [essence(r) for r in lm.generate(prompts, options)] == [essence(together[0]), essence(together[3])]
        assert [essence(r) for r in lm.generate(prompts, options, n=3)] == [essence(r) for r in together]
        with pytest.raises(InvalidInputError, match="n: got 0"):
            lm.generate(prompts, options, n=0)

    def test_no_prompts(self, tokenizer: Tokenizer) -> None:
        assert speaker(tokenizer).generate([]) == []

    def test_stats(self, tokenizer: Tokenizer) -> None:
        for mode in MODES:
            for result in speaker(tokenizer).generate(["a:", "b" * 40 + ":"], mode=mode, ignore_eos=True, max_new_tokens=40):
                stats = result.stats
                assert stats.new_tokens == 40
                assert stats.tokens_per_forward == pytest.approx(39 / stats.forward_passes)
                assert 0 < stats.engine_ms <= stats.decode_ms
                assert stats.prefill_ms > 0
                assert stats.prefill_passes == (1 if len(result.prompt) < 32 else 2)
                assert (stats.mean_accepted is None) == (mode != "self_speculation")

    def test_result_as_json(self, tokenizer: Tokenizer) -> None:
        (result,) = speaker(tokenizer).generate("Say:", max_new_tokens=5)
        content = json.loads(json.dumps(result.to_dict()))
        assert content["mode"] == "self_speculation"
        assert content["finish_reason"] == "length"
        assert content["token_ids"] == list(result.token_ids)
        assert content["stats"] == dataclasses.asdict(result.stats)


class TestStream:
    @settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
    @given(
        prompt=st.text(max_size=20),
        seed=st.integers(0, 2),
        stop=st.lists(st.text("aeio€\N{REPLACEMENT CHARACTER}<", min_size=1, max_size=2), max_size=3).map(tuple),
        mode=st.sampled_from(MODES),
    )
    def test_stream_equals_generate(
        self, tokenizer: Tokenizer, prompt: str, seed: int, stop: tuple[str, ...], mode: str
    ) -> None:
        lm = eager_lm(tokenizer, seed)
        options = GenerationOptions(mode=Mode(mode), stop=stop, max_new_tokens=24, block_length=8)
        (result,) = lm.generate(prompt, options)
        assert essence(streamed(list(lm.stream(prompt, options)))) == essence(result)
        whole = tokenizer.decode(result.token_ids)
        assert whole.startswith(result.text)
        assert not any(word in result.text for word in stop)

    def test_events_follow_the_engine_runs(self, tokenizer: Tokenizer) -> None:
        lm = speaker(tokenizer)
        events = list(lm.stream("x" * 40 + ":", mode="self_speculation", max_new_tokens=30, block_length=8))
        assert [event.role for event in events[:4]] == [Role.PREFILL, Role.PREFILL, Role.DRAFT, Role.VERIFY]
        for draft, verify in zip(events[2::2], events[3::2], strict=True):
            assert draft.step.drafted == verify.step.drafted
            assert verify.token_ids[: verify.step.accepted] == tuple(verify.step.drafted[: verify.step.accepted])
        events = list(lm.stream("Say:", mode="diffusion", threshold=0.8, max_new_tokens=16))
        offsets = [offset for event in events if event.role is Role.DENOISE for offset, _ in event.step.committed]
        assert len(offsets) == len(set(offsets)) > 4

    def test_cut_step_reports_what_was_kept(self, tokenizer: Tokenizer) -> None:
        events = list(speaker(tokenizer, accuracy=1.0).stream("Say:", mode="self_speculation", stop="Hel"))
        assert events[-1].token_ids == (*tokenizer.encode("el"),)
        assert events[-1].step.accepted == 2
        result = streamed(events)
        assert (result.text, result.stats.mean_accepted_drafts) == ("", 2.0)

    def test_streams_can_be_interleaved_and_abandoned(self, tokenizer: Tokenizer) -> None:
        lm = eager_lm(tokenizer)
        expected = [essence(lm.generate(prompt, mode="ar", max_new_tokens=9)[0]) for prompt in ("one", "second")]
        first, second = (list(lm.stream(prompt, mode="ar", max_new_tokens=9)) for prompt in ("one", "second"))
        abandoned = lm.stream("third", mode="ar")
        next(abandoned)
        one, two = lm.stream("one", mode="ar", max_new_tokens=9), lm.stream("second", mode="ar", max_new_tokens=9)
        pairs = list(zip(one, two, strict=True))
        abandoned.close()  # type: ignore[attr-defined]
        interleaved = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
        for events, plain, wanted in zip(interleaved, (first, second), expected, strict=True):
            assert essence(streamed(events)) == essence(streamed(plain)) == wanted

    def test_one_cache_serves_all(self, tokenizer: Tokenizer) -> None:
        lm = speaker(tokenizer)
        lm.session.create_cache = lambda *_: pytest.fail("a cache for one request")  # type: ignore[method-assign]
        for _ in range(3):
            lm.generate(["a:", "b:"])
        list(lm.stream("a:"))

    def test_abandoned_results_free_their_slots(self, tokenizer: Tokenizer) -> None:
        lm = eager_lm(tokenizer)
        arriving = lm.complete(["a"] * 7, mode="ar", max_new_tokens=9)
        next(arriving)
        arriving.close()  # type: ignore[attr-defined]
        lm.engine.step()
        assert not lm.engine.has_work


class TestErrors:
    @pytest.mark.parametrize(
        ("prompts", "changes", "field"),
        [
            ("a", {"mode": "quick"}, "mode"),
            ("a", {"heat": 0.5}, "heat"),
            ("a", {"block_length": 17}, "block_length"),
            (["a", "b" * 160], {}, "prompts[1]"),
            ([["a"]], {}, "prompts[0]"),
            (["a", []], {}, "prompts[1]"),
            (["a", None], {}, "prompts[1]"),
            ([[5, 400]], {}, "prompts[0]"),
            ([[5, -1]], {}, "prompts[0]"),
            ([{"role": "user"}], {}, "messages[0].content"),
        ],
    )
    def test_bad_input_is_named_before_anything_runs(
        self, tokenizer: Tokenizer, prompts: Any, changes: dict[str, Any], field: str
    ) -> None:
        session = ScriptedSession(counting(), limits=LIMITS)
        with pytest.raises(InvalidInputError) as caught:
            TriModeLM(session, tokenizer).generate(prompts, **changes)
        assert caught.value.field == field
        assert session.runs == []

    def test_stream_checks_when_it_is_called(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(InvalidInputError, match="prompt: got '160 tokens', allowed: 1 to 159 tokens"):
            speaker(tokenizer).stream("b" * 160)

    def test_tokenizer_of_another_model(self, tokenizer: Tokenizer) -> None:
        decoder = random_decoder(tiny_config(vocab_size=300), LIMITS.cache_capacity)
        with pytest.raises(InvalidInputError, match="tokenizer: got"):
            TriModeLM(EagerSession(decoder, LIMITS), tokenizer)

    def test_unknown_public_name(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'TriModeML'"):
            nemodiff_trt.TriModeML  # noqa: B018


def test_public_names_are_found_and_load_nothing_before() -> None:
    script = "import nemodiff_trt, sys; print('torch' in sys.modules, *dir(nemodiff_trt))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    has_torch, *names = result.stdout.split()
    assert has_torch == "False"
    for name in ("TriModeLM", "TriModeEngine", "AsyncTriModeEngine", "GenerationOptions", "GenerationResult", "StreamEvent"):
        assert name in names
        assert getattr(nemodiff_trt, name).__name__ == name
