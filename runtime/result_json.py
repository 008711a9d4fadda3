"""A result as the command line writes it."""

from __future__ import annotations

from typing import Any

from nemodiff_trt.runtime.answer import GenerationResult

# The stable part of the statistics; the Python API has more.
STATS_FIELDS = (
    "new_tokens", "forward_passes", "prefill_passes", "tokens_per_forward", "mean_accepted", "prefill_ms", "decode_ms",
    "tokens_per_second",
)  # fmt: skip


def to_json(result: GenerationResult) -> dict[str, Any]:
    """The documented fields of a result."""
    content = result.to_dict()
    content["token_ids"] = list(result.token_ids)
    content["stats"] = {name: content["stats"][name] for name in STATS_FIELDS}
    if not result.logprobs:
        del content["logprobs"]
    return content
