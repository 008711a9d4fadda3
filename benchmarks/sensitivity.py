"""Which layer suffers from which format in which role: one layer of the eager decoder is quantised at a time.

Held-out problems run through all roles (see `nemodiff_trt.quantization.calibration_text`). Reported per layer, format and role:
mean Kullback-Leibler divergence of the decisions from those of the unquantised model, in nats a token, and the share of tokens
whose most likely candidate changed. `all` is the whole decoder at once. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.contract import Limits
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.quantization.calibration_text import CalibrationSequence, plan_sequences
from nemodiff_trt.quantization.formats import (
    amax_of,
    fake_quantize_fp8,
    fake_quantize_nvfp4,
    fp8_scale,
    nvfp4_global_scale,
    pack_fp8,
    pack_nvfp4,
)
from nemodiff_trt.quantization.ranges import find_ranges
from nemodiff_trt.quantization.recipe import ActivationRange
from nemodiff_trt.quantization.statistics import ActivationStatistics
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems
from nemodiff_trt.training.samples import chat_encoder
from nemodiff_trt.vocabulary import LinearFormat, Role

SEED = 9_000_001
ROLES = (Role.PREFILL, Role.VERIFY, Role.DENOISE, Role.DRAFT)
LIMITS = Limits(max_batch_size=1, max_seq_len=512, block_length=32, prefill_chunk=256)
# Layers that engines multiply as one matrix.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate|up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}

ROUND = {LinearFormat.FP8: fake_quantize_fp8, LinearFormat.NVFP4: fake_quantize_nvfp4}


@contextmanager
def quantised(
    decoder: TriModeDecoder, linears: Sequence[str], form: LinearFormat, statistics: ActivationStatistics
) -> Iterator[None]:
    """While it lasts, `linears`, which are one matrix or several, have quantised weights and inputs."""
    changed: list[tuple[Any, Tensor, Any]] = []
    for name in linears:
        module: Any = decoder.get_submodule(name)
        group = next(parts for parts in GROUPS.values() if name.endswith(parts))
        prefix = name[: -len(next(part for part in group if name.endswith(part)))]
        # Weights are replaced below, when all ranges are known.
        amax = torch.stack([amax_of(decoder.get_parameter(f"{prefix}{part}.weight")) for part in group]).max()
        range_of_input = torch.tensor(statistics.input_amax(name))
        if form is LinearFormat.FP8:
            matrix, scale = pack_fp8(module.weight, amax).dequantize(), fp8_scale(range_of_input)
        else:
            matrix, scale = pack_nvfp4(module.weight, amax).dequantize(), nvfp4_global_scale(range_of_input)
        hook = module.register_forward_pre_hook(lambda _, args, s=scale: (ROUND[form](args[0], s),))
        changed.append((module, matrix, hook))
    kept = [module.weight.data for module, _, _ in changed]
    for module, matrix, _ in changed:
        module.weight.data = matrix
    try:
        yield
    finally:
        for (module, _, hook), weight in zip(changed, kept, strict=True):
            module.weight.data = weight
            hook.remove()


def decisions(decoder: TriModeDecoder, sequences: Sequence[CalibrationSequence]) -> dict[Role, Tensor]:
    """Log probabilities [tokens,V] by role."""
    config = decoder.config
    found: dict[Role, list[Tensor]] = {role: [] for role in ROLES}
    with torch.inference_mode():
        for sequence in sequences:
            capacity = len(sequence.token_ids) + LIMITS.block_length
            shape = (1, config.num_key_value_heads, capacity, config.head_dim)
            empty = [[torch.zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2)]
            logits, keys, values = decoder(torch.tensor([sequence.token_ids]), torch.tensor([0]), *empty)
            found[Role.PREFILL].append(logits[0].log_softmax(-1))
            for step in sequence.steps:
                ids, start = torch.tensor([step.token_ids]), torch.tensor([step.start])
                logits, *_ = decoder(ids, start, keys, values, step.role.is_causal, step.role.uses_adapter)
                found[step.role].append(logits[0].log_softmax(-1))
    return {role: torch.cat(parts) for role, parts in found.items()}


def measure(checkpoint: Checkpoint, num_prompts: int, calibration: Path | None) -> list[dict[str, Any]]:
    statistics = find_ranges(checkpoint, calibration, LIMITS, ActivationRange.MAX)
    encoder = chat_encoder(Tokenizer.from_dir(checkpoint.path), checkpoint.config.eos_token_id)
    samples = [encoder(problem) for problem in held_out_problems(num_prompts, SEED)]
    sequences = plan_sequences(samples, checkpoint.config, LIMITS.block_length, 256, ROLES)
    decoder = checkpoint.load_decoder(512, torch.float32, adapter=True)
    reference = decisions(decoder, sequences)
    layers = range(checkpoint.config.num_hidden_layers)
    groups = {
        f"{layer} {group}": [f"encoder.layers.{layer}.{name}" for name in names]
        for layer in layers
        for group, names in GROUPS.items()
    }
    groups["all"] = [name for names in groups.values() for name in names]
    rows = []
    for title, linears in groups.items():
        for form in LinearFormat:
            with quantised(decoder, linears, form, statistics):
                changed = decisions(decoder, sequences)
            for role in ROLES:
                divergence = (reference[role].exp() * (reference[role] - changed[role])).sum(-1).mean()
                differing = (reference[role].argmax(-1) != changed[role].argmax(-1)).float().mean()
                row = {
                    "layer": title,
                    "format": form,
                    "role": role,
                    "divergence": float(divergence),
                    "changed": float(differing),
                }
                rows.append(row)
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "layer", *(f"{form} {role}" for form in LinearFormat for role in ROLES), title="divergence, 0.001 nats a token"
    )
    for title in dict.fromkeys(row["layer"] for row in rows):
        cells = [f"{1000 * row['divergence']:.2f}" for row in rows if row["layer"] == title]
        table.add_row(title, *cells)
    return table


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Divergence by layer, one line a role, a panel a format."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "nemodiff"
    from matplotlib import pyplot as plt

    titles = [title for title in dict.fromkeys(row["layer"] for row in rows) if title != "all"]
    figure, axes = plt.subplots(1, len(LinearFormat), figsize=(11, 3.2))
    for axis, form in zip(axes, LinearFormat, strict=True):
        for role in ROLES:
            values = [
                row["divergence"] for row in rows if row["format"] == form and row["role"] == role and row["layer"] != "all"
            ]
            axis.plot(range(len(titles)), values, marker=".", label=role)
        axis.set_yscale("log")
        axis.set_xticks(range(len(titles)), titles, rotation=90, fontsize=7)
        axis.set_title(f"{form}, one layer quantised: nats a token", fontsize=9)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="nemodiff-tiny")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--calibration", type=Path, help="prompts, or calibration.json of a bundle")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    rows = measure(Checkpoint.open(resolve_checkpoint(arguments.checkpoint)), arguments.num_prompts, arguments.calibration)
    Console().print(table_of(rows))
    if arguments.plot:
        plot(rows, arguments.plot)
    print(json.dumps({"num_prompts": arguments.num_prompts, "rows": rows}))


if __name__ == "__main__":
    main()
