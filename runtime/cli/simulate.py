"""`nemodiff simulate`: what replicas would do with a trace of requests, without a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson, BlockLength, ModeName

if TYPE_CHECKING:
    from nemodiff_trt.runtime.planner import LatencyModel
    from nemodiff_trt.runtime.simulator import AcceptanceProfile, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateArguments:
    """Options of the command, in the order of its help."""

    latency: Annotated[
        Path | None, typer.Option("--latency", metavar="FILE", help="Step times measured by nemodiff calibrate.")
    ] = None
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Predict step times: b200, h100, rtx-pro-6000, rtx-5090, dgx-spark."),
    ] = None
    model: Annotated[str, typer.Option("--model", metavar="SIZE", help="3b, 8b or 14b, with --device.")] = "8b"
    precision: Annotated[str, typer.Option("--precision", metavar="P", help="bf16, fp8 or nvfp4, with --device.")] = "bf16"
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Requests, JSONL.")] = None
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="R", help="In place of a trace: Poisson arrivals, requests a second.")
    ] = None
    num_requests: Annotated[int, typer.Option("--num-requests", metavar="N", help="With --rate.")] = 1000
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="With --rate.")] = 500
    output_tokens: Annotated[int, typer.Option("--output-tokens", metavar="N", help="With --rate.")] = 250
    acceptance: Annotated[
        Path | None,
        typer.Option("--acceptance", metavar="FILE", help="Category -> {block_length, accepted}, JSON. Default: published."),
    ] = None
    mode: ModeName = "auto"
    block_length: BlockLength = None
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", help="Engine loops, each on a device.")] = 1
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", metavar="X", min=0, help="Of one replica, for the cost of tokens.")
    ] = None
    max_batch_size: Annotated[int, typer.Option("--max-batch-size", metavar="N", help="As built.")] = 64
    max_seq_len: Annotated[int, typer.Option("--max-seq-len", metavar="K", help="As built.")] = 8192
    prefill_chunk: Annotated[int, typer.Option("--prefill-chunk", metavar="N", help="As built.")] = 512
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of arrivals and acceptance.")] = 0
    as_json: AsJson = False


def simulate(arguments: SimulateArguments) -> int:
    """Throughput, latencies and cost of a trace, from step times and acceptance, by the engine loop that serves."""
    from nemodiff_trt.contract import Limits
    from nemodiff_trt.runtime.cli.output import write_json
    from nemodiff_trt.runtime.simulator import Deployment, summarize
    from nemodiff_trt.runtime.simulator import simulate as simulate_trace
    from nemodiff_trt.vocabulary import Mode

    if arguments.mode not in list(Mode):
        raise InvalidInputError("mode", arguments.mode, ", ".join(Mode))
    latency, trace = _latency(arguments), _trace(arguments)
    deployment = Deployment(
        latency=latency,
        limits=Limits(arguments.max_batch_size, arguments.max_seq_len, 32, arguments.prefill_chunk),
        acceptance=_acceptance(arguments),
        mode=Mode(arguments.mode),
        block_length=arguments.block_length,
        num_replicas=arguments.replicas,
    )
    outcomes = simulate_trace(trace, deployment, arguments.seed)
    summary = {"device": latency.device, "is_prediction": latency.is_prediction}
    summary |= summarize(outcomes, arguments.replicas, arguments.price_per_hour)
    if arguments.as_json:
        write_json(summary)
    else:
        for name, value in summary.items():
            typer.echo(f"{name}: {_text(value)}")
    return 0


def _latency(arguments: SimulateArguments) -> LatencyModel:
    from nemodiff_trt.full_size import full_size_config
    from nemodiff_trt.runtime.planner import LatencyModel
    from nemodiff_trt.runtime.planner.roofline import predicted_latency
    from nemodiff_trt.vocabulary import Precision

    if (arguments.latency is None) == (arguments.device is None):
        raise InvalidInputError("latency", arguments.latency, "one of --latency (measured) and --device (predicted)")
    if arguments.latency is not None:
        return LatencyModel.read(arguments.latency)
    if arguments.precision not in list(Precision):
        raise InvalidInputError("precision", arguments.precision, "bf16, fp8, nvfp4")
    config = full_size_config(f"nemotron-labs-diffusion-{arguments.model}")
    return predicted_latency(str(arguments.device), config, Precision(arguments.precision))


def _trace(arguments: SimulateArguments) -> list[TraceRequest]:
    from nemodiff_trt.runtime.simulator import poisson_trace, read_trace

    if (arguments.trace is None) == (arguments.rate is None):
        raise InvalidInputError("trace", arguments.trace, "one of --trace and --rate")
    if arguments.trace is not None:
        return read_trace(arguments.trace)
    sizes = arguments.num_requests, arguments.prompt_tokens, arguments.output_tokens
    return poisson_trace(arguments.rate or 0.0, *sizes, arguments.seed)


def _acceptance(arguments: SimulateArguments) -> dict[str, AcceptanceProfile]:
    from nemodiff_trt.runtime.simulator import AcceptanceProfile, read_acceptance
    from nemodiff_trt.runtime.simulator.acceptance import PUBLISHED_TOKENS
    from nemodiff_trt.runtime.simulator.trace import DEFAULT_CATEGORY

    if arguments.acceptance is None:
        return {DEFAULT_CATEGORY: AcceptanceProfile.from_means(PUBLISHED_TOKENS)}
    return read_acceptance(arguments.acceptance)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
