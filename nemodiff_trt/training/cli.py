"""`nemodiff train`: train a small tri-mode checkpoint and its draft adapter from generated text. No data is read from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from nemodiff_trt.training.loop import Progress

app = typer.Typer(help="Train a small checkpoint, then its draft adapter, on generated problems.", no_args_is_help=True)

NUM_TOKENIZER_PROBLEMS = 20_000

RunFolder = Annotated[
    Path, typer.Option("--output", help="Run folder: state, loss log, plot, checkpoint/. Resumed if it exists.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Fuse the forward with torch.compile; wants a C++ compiler.")]


@app.command("model")
def train_model_command(
    output: RunFolder,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of weights, data, masks and tokenizer.")] = 1,
    vocab_size: Annotated[int, typer.Option(min=400, help="Tokens of the byte-level BPE tokenizer.")] = 1024,
    compiled: Compiled = False,
) -> None:
    """Train tokenizer and model with the joint objective L_AR + 0.3 L_diff; writes OUTPUT/checkpoint."""
    from nemodiff_trt.checkpoint import write_checkpoint
    from nemodiff_trt.tokenizer import Tokenizer
    from nemodiff_trt.training.options import TrainingOptions, tiny_model_config
    from nemodiff_trt.training.samples import chat_encoder
    from nemodiff_trt.training.train_model import train_model
    from nemodiff_trt.training.vocabulary_builder import save_tokenizer, tokenizer_texts, train_tokenizer

    options = TrainingOptions(num_steps=steps, seed=seed, compiled=compiled, model=tiny_model_config(vocab_size))
    checkpoint_dir = output / "checkpoint"
    if not (checkpoint_dir / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(tokenizer_texts(seed, NUM_TOKENIZER_PROBLEMS), vocab_size), checkpoint_dir)
    encoder = chat_encoder(Tokenizer.from_dir(checkpoint_dir), options.model.eos_token_id)
    with progress_bar("model", steps) as progress:
        decoder = train_model(encoder, options, output, progress)
    write_checkpoint(checkpoint_dir, options.model, decoder.state_dict())
    typer.echo(str(checkpoint_dir))


@app.command("drafter")
def train_drafter_command(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint whose weights stay frozen and verify the drafts.")],
    output: RunFolder,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 600,
    seed: Annotated[int, typer.Option(help="Of adapter, data and sampled drafts.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="r of the low-rank branch.")] = 32,
    alpha: Annotated[int, typer.Option(min=1, help="The branch is scaled by alpha / r.")] = 128,
    compiled: Compiled = False,
) -> None:
    """Train the o_proj draft adapter of a frozen checkpoint; writes OUTPUT/checkpoint with both."""
    import torch

    from nemodiff_trt.checkpoint import AdapterSettings, Checkpoint, write_checkpoint
    from nemodiff_trt.tokenizer import Tokenizer
    from nemodiff_trt.training.samples import chat_encoder
    from nemodiff_trt.training.train_drafter import DrafterOptions, train_drafter
    from nemodiff_trt.training.train_model import MAX_POSITIONS
    from nemodiff_trt.training.vocabulary_builder import copy_tokenizer

    options = DrafterOptions(num_steps=steps, seed=seed, rank=rank, alpha=alpha, compiled=compiled)
    source = Checkpoint.open(checkpoint)
    decoder = source.load_decoder(MAX_POSITIONS, torch.float32, adapter=False)
    encoder = chat_encoder(Tokenizer.from_dir(checkpoint), source.config.eos_token_id)
    with progress_bar("drafter", steps) as progress:
        train_drafter(decoder, encoder, options, output, progress)
    copy_tokenizer(checkpoint, output / "checkpoint")
    write_checkpoint(output / "checkpoint", source.config, decoder.state_dict(), AdapterSettings(rank, alpha))
    typer.echo(str(output / "checkpoint"))


@app.command("sampler")
def train_sampler_command(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint whose denoising is learned; its weights stay frozen.")],
    output: RunFolder,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of data, weights and batches.")] = 1,
    chunks: Annotated[
        int, typer.Option(min=2, help="Files of denoising states to collect, 15 s each; 1 in 8 is held out.")
    ] = 24,
) -> None:
    """Collect denoising states of a frozen checkpoint and train its learned sampler; writes OUTPUT/sampler."""
    import dataclasses

    import torch

    from nemodiff_trt.checkpoint import Checkpoint
    from nemodiff_trt.sampler.files import write_sampler
    from nemodiff_trt.tokenizer import Tokenizer
    from nemodiff_trt.training.samples import chat_encoder
    from nemodiff_trt.training.train_model import MAX_POSITIONS
    from nemodiff_trt.training.train_sampler import SamplerOptions, train_sampler

    options = SamplerOptions(num_steps=steps, seed=seed, num_chunks=chunks)
    source = Checkpoint.open(checkpoint)
    decoder = source.load_decoder(MAX_POSITIONS, torch.float32, adapter=False)
    encoder = chat_encoder(Tokenizer.from_dir(checkpoint), source.config.eos_token_id)
    with progress_bar("sampler", steps) as progress:
        network, area = train_sampler(decoder, encoder, options, output, progress)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    training = {**dataclasses.asdict(options), "held_out_area_under_curve": round(area, 5)}
    write_sampler(output / "sampler", network.settings, weights, training)
    typer.echo(str(output / "sampler"))


@contextmanager
def progress_bar(title: str, num_steps: int) -> Iterator[Progress]:
    """A bar on standard error with the latest losses; yields the callback that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=num_steps, losses="")

        def advance(step: int, entry: dict[str, float]) -> None:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in entry.items() if name not in ("step", "learning_rate"))
            bar.update(task, completed=step, losses=losses)

        yield advance
