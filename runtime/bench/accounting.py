"""From answers to numbers: tokens per forward in two accountings, acceptance, latency and speed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from nemodiff_trt.runtime.bench.trace import Trace

Numbers = dict[str, Any]


def counts(traces: Sequence[Trace], correct: Sequence[bool | None]) -> Numbers:
    """What does not depend on the clock. Ratios are of totals, so long answers weigh more than short ones.

    `tokens_per_forward` leaves out prefill and the first token, which comes from it. `reference_tokens_per_forward` is what the
    published code reports: all tokens by its own number of forward evaluations. `computed_tokens` are the tokens that runs
    after prefill computed for each one of the answers behind the first. None stands for a ratio without denominator.
    """
    graded = [is_correct for is_correct in correct if is_correct is not None]
    later = sum(trace.later_tokens for trace in traces)
    new, forwards = sum(len(trace.token_ids) for trace in traces), sum(trace.forward_passes for trace in traces)
    evaluations = sum(trace.reference_nfe for trace in traces)
    return {
        "answers": len(traces),
        "new_tokens": new,
        "forward_passes": forwards,
        "reference_nfe": evaluations,
        "tokens_per_forward": _ratio(later, forwards),
        "reference_tokens_per_forward": _ratio(new, evaluations),
        "computed_tokens": _ratio(sum(trace.step_tokens for trace in traces), later),
        "accuracy": _ratio(sum(graded), len(graded)),
        "graded": len(graded),
        "acceptance": acceptance([cycle for trace in traces for cycle in trace.cycles], later),
    }


def acceptance(cycles: Sequence[tuple[int, int]], later_tokens: int) -> Numbers | None:
    """How far drafts were right; None without cycles.

    `histogram[n]` counts cycles that accepted n drafts. `by_position[n]` is the share of the cycles that offered a draft at
    position n (the first is 0) in which it was accepted, hence all before it too. A cycle that ends an answer counts the drafts
    that entered it. `mean` is tokens a cycle, the verifier's own included.
    """
    if not cycles:
        return None
    longest = max(drafted for drafted, _ in cycles)
    histogram = [0] * (longest + 1)
    for _, accepted in cycles:
        histogram[accepted] += 1
    by_position = [
        sum(accepted > place for _, accepted in cycles) / sum(drafted > place for drafted, _ in cycles)
        for place in range(longest)
    ]
    return {
        "cycles": len(cycles),
        "mean": later_tokens / len(cycles),
        "mean_drafts": sum(accepted for _, accepted in cycles) / len(cycles),
        "histogram": histogram,
        "by_position": by_position,
    }


def times(rounds: Sequence[Sequence[Trace]], seconds: Sequence[float]) -> Numbers:
    """What depends on the clock, over all timed rounds.

    `user_tokens_per_second` is the median over answers of tokens after the first by decode time, `system_tokens_per_second` the
    median over rounds of all tokens by the round's wall time. `prefill_s` ends when the first token is computed;
    `time_to_first_token_ms` when a caller has it, which is at the end of the step of the engine loop, after a first cycle that
    may be part of it. Both start when the request gets its slot. `inter_token_ms` is decode time by token, for each answer;
    `burst_gap_ms` lies between two arrivals of tokens. `engine_share` is the part of decode time inside engine runs.
    """
    traces = [trace for each in rounds for trace in each]
    longer = [trace for trace in traces if trace.later_tokens and trace.decode_s > 0]
    gaps = [(after - before) * 1e3 for trace in traces for before, after in itertools.pairwise(trace.arrivals_s)]
    new_tokens = [sum(len(trace.token_ids) for trace in each) for each in rounds]
    return {
        "timed_answers": len(rounds[0]),
        "seconds": list(seconds),
        "prefill_s": statistics.median(sum(trace.prefill_s for trace in each) for each in rounds),
        "decode_s": statistics.median(sum(trace.decode_s for trace in each) for each in rounds),
        "time_to_first_token_ms": percentiles([trace.first_token_s * 1e3 for trace in traces]),
        "inter_token_ms": percentiles([trace.decode_s / trace.later_tokens * 1e3 for trace in longer]),
        "burst_gap_ms": percentiles(gaps),
        "user_tokens_per_second": statistics.median(trace.later_tokens / trace.decode_s for trace in longer)
        if longer
        else None,
        "engine_share": _engine_share(rounds),
        "system_tokens_per_second": statistics.median(num / taken for num, taken in zip(new_tokens, seconds, strict=True)),
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th and 99th percentile by nearest rank; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{share}": ordered[max(-(-share * len(ordered) // 100) - 1, 0)] for share in (50, 95, 99)}


def _engine_share(rounds: Sequence[Sequence[Trace]]) -> float | None:
    """Median over rounds; None where engine runs cannot be told apart, or nothing was decoded."""
    shares = []
    for traces in rounds:
        engine_s = [trace.engine_s for trace in traces if trace.engine_s is not None]
        decode_s = sum(trace.decode_s for trace in traces)
        if len(engine_s) == len(traces) and decode_s:
            shares.append(sum(engine_s) / decode_s)
    return statistics.median(shares) if shares else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
