"""One place that compares tensors with the layout: names first, then shape and dtype of each."""

from __future__ import annotations

from collections.abc import Mapping

from nemodiff_trt.errors import CheckpointError


def check_names(found: Mapping[str, object], wanted: Mapping[str, object], where: str) -> None:
    """Names must match exactly.

    Raises:
        CheckpointError: names the first tensor that is missing from or left over in `where`, and counts the others.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(missing[0], "missing", f"a tensor in {where} ({len(missing)} missing in all)")
    left_over = [name for name in found if name not in wanted]
    if left_over:
        raise CheckpointError(
            left_over[0], "left over", f"only the tensors of the layout in {where} ({len(left_over)} too many)"
        )


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Every shape must be the one that follows from the configuration.

    Raises:
        CheckpointError: names the first tensor of another shape.
    """
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(name, f"shape {list(found[name])}", f"{list(shape)} by {_source(name)}")


def check_one_dtype(dtypes: Mapping[str, str]) -> str:
    """All tensors must share one dtype, which is returned.

    Raises:
        CheckpointError: names the first tensor whose dtype differs from that of most.
    """
    counts: dict[str, int] = {}
    for dtype in dtypes.values():
        counts[dtype] = counts.get(dtype, 0) + 1
    common = max(counts, key=lambda dtype: counts[dtype])
    for name, dtype in dtypes.items():
        if dtype != common:
            raise CheckpointError(name, f"dtype {dtype}", f"{common} as the other tensors")
    return common


def _source(name: str) -> str:
    return "config.json and adapter_config.json" if ".lora_" in name else "config.json"
