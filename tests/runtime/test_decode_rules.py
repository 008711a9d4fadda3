"""Every rule of decoding on scripted sessions, where each answer and each engine run is known beforehand."""

from __future__ import annotations

import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.engine import TokenEngine
from nemodiff_trt.runtime.events import DecodeStep
from nemodiff_trt.runtime.sequence import FinishReason, Sequence
from nemodiff_trt.runtime.stats import GenerationStats, RequestTimes
from nemodiff_trt.vocabulary import Mode, Role
from support.decoding import NO_REUSE, Request, decode, expected_ar, options_of, steps_of
from support.scripted_session import END_THINK, EOS, MASK, Guess, NextToken, Prefix, ScriptedSession, counting, guess_from

MODES = (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION)
PROMPT = (1, 50, 51)


def with_token_at(place: int, token: int) -> NextToken:
    """Counts, except for one token: the answer's token number `place` to `PROMPT`."""
    count = counting()
    return lambda prefix: token if len(prefix) == len(PROMPT) + place else count(prefix)


def always(*answers: tuple[int, float]) -> Guess:
    """The same (token, confidence) pairs for every block; the last pair repeats."""

    def guess(prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
        return [*answers, *[answers[-1]] * len(block)][: len(block)]

    return guess


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_stops_at_the_token_limit(self, mode: Mode) -> None:
        for limit in range(1, 20):
            result = decode(ScriptedSession(counting()), mode, [Request(PROMPT, max_new_tokens=limit)])
            assert result.tokens == [[203 + index for index in range(limit)]]
            assert result.sequences[0].finish_reason is FinishReason.LENGTH

    @pytest.mark.parametrize("block_length", range(2, 33))
    def test_any_block_length(self, mode: Mode, block_length: int) -> None:
        result = decode(ScriptedSession(counting()), mode, [Request(PROMPT, 37)], block_length)
        assert result.tokens == [[203 + index for index in range(37)]]

    def test_prompt_that_fills_the_context(self, mode: Mode) -> None:
        for room in (1, 2, 7, 8, 9):
            session = ScriptedSession(counting())
            prompt = tuple(range(1, 64 - room + 1))
            result = decode(session, mode, [Request(prompt, 1000), Request(PROMPT, 1000)])
            assert [len(tokens) for tokens in result.tokens] == [room, 61]
            assert [s.finish_reason for s in result.sequences] == [FinishReason.LENGTH] * 2
            assert result.tokens[0] == expected_ar(counting(), Request(prompt, 1000), 64)

    def test_refuses_a_prompt_without_room_before_anything_runs(self, mode: Mode) -> None:
        for length in (0, 64, 65):
            session = ScriptedSession(counting())
            with pytest.raises(InvalidInputError, match=f"prompt: got '{length} tokens'"):
                decode(session, mode, [Request((1,) * length)])
            assert session.runs == []

    @pytest.mark.parametrize("place", [1, 2, 6, 7, 8, 9, 15])
    def test_eos_ends_the_answer_and_stays_in_it(self, mode: Mode, place: int) -> None:
        session = ScriptedSession(with_token_at(place, EOS))
        result = decode(session, mode, [Request(PROMPT, 20)])
        assert result.tokens == [[*(203 + index for index in range(place)), EOS]]
        assert result.sequences[0].finish_reason is FinishReason.EOS

    @pytest.mark.parametrize("place", [0, 1, 6, 7, 8])
    def test_ignored_eos_is_a_token_like_others(self, mode: Mode, place: int) -> None:
        session = ScriptedSession(with_token_at(place, EOS))
        tokens = decode(session, mode, [Request(PROMPT, 20, ignore_eos=True)]).tokens[0]
        assert len(tokens) == 20
        assert tokens[place] == EOS

    def test_first_token_eos_ends_at_once(self, mode: Mode) -> None:
        session = ScriptedSession(with_token_at(0, EOS))
        result = decode(session, mode, [Request(PROMPT, 20)])
        assert result.tokens == [[EOS]]
        assert session.runs == [(Role.PREFILL, 3)]
        assert result.sequences[0].forward_passes == 0

    @pytest.mark.parametrize("budget", [0, 1, 2, 6, 7, 8, 9, 18])
    def test_thinking_budget_replaces_the_next_token_everywhere(self, mode: Mode, budget: int) -> None:
        count = counting()

        def next_token(prefix: Prefix) -> int:
            # The text after </think> depends on it, so a cache that holds another token would show.
            return 14 + prefix.index(END_THINK) if END_THINK in prefix else count(prefix)

        result = decode(ScriptedSession(next_token), mode, [Request(PROMPT, 20, budget=budget)])
        tail = [14 + len(PROMPT) + budget] * (19 - budget)
        assert result.tokens == [[*(203 + index for index in range(budget)), END_THINK, *tail]]

    @pytest.mark.parametrize("place", [0, 2, 5])
    def test_thinking_that_ends_in_time_is_left_alone(self, mode: Mode, place: int) -> None:
        next_token = with_token_at(place, END_THINK)
        for budget in (place, place + 1, 9):
            tokens = decode(ScriptedSession(next_token), mode, [Request(PROMPT, 20, budget=budget)]).tokens[0]
            assert tokens.count(END_THINK) == 1
            assert tokens == expected_ar(next_token, Request(PROMPT, 20), 64)

    def test_budget_that_is_not_reached(self, mode: Mode) -> None:
        for request in (Request(PROMPT, 5, budget=5), Request(PROMPT, 20, budget=30)):
            assert END_THINK not in decode(ScriptedSession(counting()), mode, [request]).tokens[0]
        eos_first = decode(ScriptedSession(with_token_at(3, EOS)), mode, [Request(PROMPT, 20, budget=4)]).tokens[0]
        assert eos_first == [203, 204, 205, EOS]

    def test_rows_finish_on_their_own(self, mode: Mode) -> None:
        requests = [Request((1, 60 + row, *range(20, 20 + 3 * row)), limit) for row, limit in enumerate((1, 30, 4, 17, 12))]
        result = decode(ScriptedSession(counting()), mode, requests)
        assert result.tokens == [expected_ar(counting(), request, 64) for request in requests]

    def test_row_can_be_finished_between_steps(self, mode: Mode) -> None:
        session = ScriptedSession(counting(), guess_from(counting(), 3, 0.7))
        requests = [Request(PROMPT, 30), Request((1, 9, 9, 9), 30)]
        alone = decode(session, mode, [requests[1]], 8, CommitRule(0.9)).tokens[0]
        for stop_after in range(8):
            sequences = [request.start(session) for request in requests]
            for index, _ in enumerate(
                steps_of(TokenEngine(session, NO_REUSE), sequences, options_of(mode, 8, CommitRule(0.9)))
            ):
                if index == stop_after:
                    sequences[0].finish(FinishReason.STOP, num_tokens=1)
            assert sequences[0].tokens == [203]
            assert sequences[1].tokens == alone

    def test_finishing_all_rows_ends_the_loop(self, mode: Mode) -> None:
        session = ScriptedSession(counting())
        for stop_after in range(4):
            sequences = [Request(PROMPT, 60).start(session), Request(PROMPT, 60).start(session)]
            steps = steps_of(TokenEngine(session, NO_REUSE), sequences, options_of(mode, 4, CommitRule(0.9)))
            for _ in range(stop_after + 1):
                next(steps)
            for sequence in sequences:
                sequence.finish(FinishReason.CANCELLED)
            assert list(steps) == []


class TestPrefill:
    def test_chunks_of_ragged_prompts(self) -> None:
        session = ScriptedSession(lambda prefix: 14 + sum(prefix) % 300)
        lengths = (1, 5, 16, 17, 32, 33, 62)
        result = decode(session, Mode.AR, [Request(tuple(range(100 + n, 100 + 2 * n)), 1) for n in lengths])
        assert result.tokens == [[14 + sum(range(100 + n, 100 + 2 * n)) % 300] for n in lengths]
        assert result.cache.length.tolist() == list(lengths)
        assert [sequence.prefill_passes for sequence in result.sequences] == [1, 1, 1, 2, 2, 3, 4]
        assert {step for _, step in session.runs} <= set(range(1, 17))

    def test_little_is_padded(self) -> None:
        session = ScriptedSession(counting())
        decode(session, Mode.AR, [Request((1,) * length, 1) for length in (16, 15, 1, 1, 1, 1)])
        assert session.runs == [(Role.PREFILL, 16), (Role.PREFILL, 1)]

    def test_prompts_of_full_length_beside_short_ones_stay_within_the_cache(self) -> None:
        limits = Limits(max_batch_size=3, max_seq_len=24, block_length=2, prefill_chunk=24)
        session = ScriptedSession(counting(), limits=limits)
        result = decode(session, Mode.AR, [Request((1,) * 23), Request((1,)), Request((1,) * 22)])
        assert [len(tokens) for tokens in result.tokens] == [1, 20, 2]


class TestSelfSpeculation:
    def run(self, accuracy: float, limit: int, block_length: int) -> tuple[Sequence, list[DecodeStep]]:
        session = ScriptedSession(counting(), guess_from(counting(), 1, accuracy))
        result = decode(session, Mode.SELF_SPECULATION, [Request(PROMPT, limit)], block_length)
        assert result.tokens == [[203 + index for index in range(limit)]]
        return result.sequences[0], result.steps

    def test_right_drafts_give_a_block_a_cycle(self) -> None:
        sequence, steps = self.run(1.0, limit=1 + 4 * 8, block_length=8)
        assert (sequence.cycles, sequence.forward_passes, sequence.accepted_drafts) == (4, 8, 4 * 7)
        verified = [step.rows[0] for step in steps if step.role is Role.VERIFY]
        assert all(len(report.emitted) == 8 and report.accepted == 7 for report in verified)

    def test_wrong_drafts_give_one_token_a_cycle(self) -> None:
        sequence, steps = self.run(0.0, limit=11, block_length=8)
        assert (sequence.cycles, sequence.forward_passes, sequence.accepted_drafts) == (10, 20, 0)
        assert all(step.rows[0].accepted == 0 for step in steps)

    def test_reports_show_drafts_and_their_fate(self) -> None:
        _, steps = self.run(0.8, limit=30, block_length=8)
        drafts = [step.rows[0] for step in steps if step.role is Role.DRAFT]
        verified = [step.rows[0] for step in steps if step.role is Role.VERIFY]
        assert [report.drafted for report in drafts] == [report.drafted for report in verified]
        assert len({report.accepted for report in verified}) > 2
        for report in verified:
            assert len(report.drafted) == 7
            assert report.emitted[: report.accepted] == list(report.drafted[: report.accepted])
        for report in verified[:-1]:
            assert len(report.emitted) == report.accepted + 1

    def test_last_cycle_is_trimmed(self) -> None:
        sequence, steps = self.run(1.0, limit=12, block_length=8)
        assert (len(steps[-1].rows[0].emitted), steps[-1].rows[0].accepted) == (3, 3)
        assert sequence.accepted_drafts == 7 + 3

    def test_threshold_drafts_in_passes(self) -> None:
        session = ScriptedSession(counting(), always(*((20 + n, n / 10) for n in range(8))))
        result = decode(session, Mode.SELF_SPECULATION, [Request(PROMPT, 2)], 8, CommitRule(0.55))
        drafts = [step.rows[0] for step in result.steps if step.role is Role.DRAFT]
        # Confident ones first, then one a pass, each once.
        assert [list(report.committed) for report in drafts] == [
            [(6, 26), (7, 27)], [(5, 25)], [(4, 24)], [(3, 23)], [(2, 22)], [(1, 21)],
        ]  # fmt: skip
        assert [list(report.drafted) for report in drafts] == [[]] * 5 + [[21, 22, 23, 24, 25, 26, 27]]
        assert (result.sequences[0].draft_passes, result.sequences[0].forward_passes) == (6, 7)

    def test_drafting_in_passes_does_not_hold_up_other_rows(self) -> None:
        def guess(prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
            return [(200 + len(prefix) + n, 0.9 if prefix[1] == 7 else 0.1) for n in range(len(block))]

        session = ScriptedSession(counting(), guess)
        result = decode(session, Mode.SELF_SPECULATION, [Request((1, 7), 9), Request((1, 8), 9)], 8, CommitRule(0.5))
        quick, slow = result.sequences
        assert (quick.draft_passes, slow.draft_passes) == (1, 7)
        assert (quick.forward_passes, slow.forward_passes) == (2, 8)

    def test_mask_like_drafts_are_just_wrong(self) -> None:
        session = ScriptedSession(counting(), always((MASK, 1.0)))
        for threshold in (0.0, 0.5):
            result = decode(session, Mode.SELF_SPECULATION, [Request(PROMPT, 6)], 4, CommitRule(threshold))
            assert result.tokens == [[203, 204, 205, 206, 207, 208]]

    def test_shortest_block_drafts_one_token(self) -> None:
        sequence, _ = self.run(1.0, limit=9, block_length=2)
        assert (sequence.cycles, sequence.accepted_drafts) == (4, 4)

    def test_budget_cut_reports_only_drafts_of_the_answer_as_accepted(self) -> None:
        result = decode(ScriptedSession(counting()), Mode.SELF_SPECULATION, [Request(PROMPT, 20, budget=3)], 8)
        report = next(step.rows[0] for step in result.steps if step.role is Role.VERIFY)
        assert (report.emitted, report.accepted) == ([204, 205, END_THINK], 2)


class TestDiffusion:
    def test_one_pass_and_one_commit_a_block_when_all_is_certain(self) -> None:
        session = ScriptedSession(counting(), lambda prefix, block: [(200 + len(prefix) + n, 0.95) for n in range(len(block))])
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 25)], 8, CommitRule(0.9))
        assert session.runs[1:] == [(Role.DENOISE, 8), (Role.VERIFY, 8)] * 3
        assert result.sequences[0].forward_passes == 6

    @pytest.mark.parametrize(("steps", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (5, [2, 2, 1, 1, 1]), (40, [1] * 7)])
    def test_even_schedule(self, steps: int, sizes: list[int]) -> None:
        session = ScriptedSession(counting(), guess_from(counting(), 5, 0.5))
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 60)], 8, CommitRule(None, steps))
        committed = [len(step.rows[0].committed) for step in result.steps if step.role is Role.DENOISE]
        assert committed[: len(sizes)] == sizes
        assert committed[len(sizes) : 2 * len(sizes)] == sizes

    def test_threshold_keeps_the_best_and_all_that_reach_it(self) -> None:
        confidences = [0, 0.3, 0.5, 0.4, 0.8, 0.6, 0.79, 0.1]
        session = ScriptedSession(counting(), always(*((20 + n, confidences[n]) for n in range(8))))
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 8)], 8, CommitRule(0.5))
        steps = [step for step in result.steps if step.role is Role.DENOISE]
        assert [[offset for offset, _ in step.rows[0].committed] for step in steps] == [[2, 4, 5, 6], [3], [1], [7]]
        # Emitted as soon as nothing is masked before it.
        assert [step.rows[0].emitted for step in steps] == [[], [], [21, 22, 23, 24, 25, 26], [27]]

    def test_equal_confidence_goes_to_the_lowest_offset(self) -> None:
        session = ScriptedSession(counting(), always(*((20 + n, 0.25) for n in range(5))))
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 5)], 5, CommitRule(0.5))
        committed = [step.rows[0].committed for step in result.steps if step.role is Role.DENOISE]
        assert committed == [[(1, 21)], [(2, 22)], [(3, 23)], [(4, 24)]]

    def test_eos_waits_for_masks_before_it_but_not_behind_it(self) -> None:
        confidences = [0, 0.2, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1]
        tokens = [0, 21, 22, EOS, 24, 25, 26, 27]
        session = ScriptedSession(counting(), always(*zip(tokens, confidences, strict=True)))
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 20)], 8, CommitRule(0.99))
        assert result.tokens == [[203, 21, 22, EOS]]
        # EOS, 22, 21; nothing behind is filled, and nothing is committed for a row that has ended.
        assert session.runs[1:] == [(Role.DENOISE, 8)] * 3
        assert result.cache.length.tolist() == [len(PROMPT)]

    def test_ended_row_does_not_stop_others_and_keeps_its_masks_out(self) -> None:
        def guess(prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
            ends = prefix[1] == 7
            return [(EOS if ends and n == 2 else 200 + len(prefix) + n, 0.9 - n / 20) for n in range(len(block))]

        session = ScriptedSession(counting(), guess)
        result = decode(session, Mode.DIFFUSION, [Request((1, 7), 30), Request((1, 8), 30)], 8, CommitRule(0.95))
        assert result.tokens == [[202, 203, EOS], [202 + index for index in range(30)]]
        ended, other = result.sequences
        assert (ended.forward_passes, ended.draft_passes) == (2, 2)
        assert other.forward_passes == 4 * 8 - 3

    def test_rows_count_their_own_runs_only(self) -> None:
        def guess(prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
            return [(200 + len(prefix) + n, 0.9 if prefix[1] == 7 else 0.1) for n in range(len(block))]

        session = ScriptedSession(counting(), guess)
        result = decode(session, Mode.DIFFUSION, [Request((1, 7), 17), Request((1, 8), 17)], 8, CommitRule(0.5))
        quick, slow = result.sequences
        assert (quick.draft_passes, slow.draft_passes) == (2, 14)
        assert (quick.forward_passes, slow.forward_passes) == (4, 16)

    def test_budget_cuts_the_block_and_takes_the_seed_behind_the_cut(self) -> None:
        session = ScriptedSession(counting(), always((20, 0.5)))
        result = decode(session, Mode.DIFFUSION, [Request(PROMPT, 12, budget=4)], 8, CommitRule(0.0))
        # Seed 203, three guesses, the cut; then the causal successor of </think>, and guesses again.
        assert result.tokens == [[203, 20, 20, 20, END_THINK, 200 + 8, 20, 20, 20, 20, 20, 20]]
        assert result.cache.keys[0][0, 0, : 3 + 5].tolist() == [*PROMPT, 203, 20, 20, 20, END_THINK]


class TestAccounting:
    def stats(self, mode: Mode, limit: int, rule: CommitRule, accuracy: float = 1.0) -> GenerationStats:
        session = ScriptedSession(counting(), guess_from(counting(), 2, accuracy))
        sequence = decode(session, mode, [Request(PROMPT, limit)], 8, rule).sequences[0]
        stats = GenerationStats.of(sequence, mode, RequestTimes(queue_s=0.25, prefill_s=0.5, decode_s=2.0, engine_s=1.0))
        assert stats.forward_passes == len(session.runs) - 1
        return stats

    def test_ar_gives_exactly_one_token_a_forward(self) -> None:
        for limit in (2, 3, 10, 33):
            stats = self.stats(Mode.AR, limit, CommitRule(None))
            assert (stats.tokens_per_forward, stats.reference_nfe, stats.mean_accepted) == (1.0, limit, None)

    def test_self_speculation(self) -> None:
        stats = self.stats(Mode.SELF_SPECULATION, 33, CommitRule(0.0))
        assert (stats.tokens_per_forward, stats.mean_accepted, stats.mean_accepted_drafts) == (4.0, 8.0, 7.0)
        assert stats.reference_nfe == 1 + 4 * 2

    def test_diffusion(self) -> None:
        stats = self.stats(Mode.DIFFUSION, 33, CommitRule(0.0))
        # Four blocks of a pass and a commit give 28 tokens and four seeds.
        assert (stats.forward_passes, stats.tokens_per_forward, stats.mean_accepted) == (8, 4.0, None)
        assert stats.reference_nfe == 8

    def test_diffusion_one_position_a_pass(self) -> None:
        stats = self.stats(Mode.DIFFUSION, 33, CommitRule(None, 7))
        assert (stats.forward_passes, stats.tokens_per_forward) == (32, 1.0)

    def test_one_token_has_no_rates(self) -> None:
        for mode in MODES:
            stats = self.stats(mode, 1, CommitRule(0.0))
            assert (stats.new_tokens, stats.forward_passes, stats.prefill_passes) == (1, 0, 1)
            assert stats.tokens_per_forward is stats.mean_accepted is None

    def test_times(self) -> None:
        stats = self.stats(Mode.AR, 9, CommitRule(None))
        assert (stats.queue_ms, stats.prefill_ms, stats.decode_ms, stats.engine_ms) == (250.0, 500.0, 2000.0, 1000.0)
        assert stats.tokens_per_second == 4.0
