"""`nemodiff serve`: an HTTP server with the interface of the OpenAI API, and a chat page."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir, NumThreads, Verify
from nemodiff_trt.vocabulary import Objective

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# As they stand in a request.
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", help="Port; 0 for a free one.", min=0, max=65535)] = 8000
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="What clients call the model. Default: name of the bundle's folder.")
    ] = None
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key", metavar="KEY", help="Clients need one of these; repeatable. Others on the machine can read it."
        ),
    ] = None
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="F", help="The same, one key a line, readable for you alone.")
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="What requests may call this machine; repeatable. Default: its own names, if only it may come, without key.",
        ),
    ] = None
    max_active: Annotated[
        int | None, typer.Option("--max-active", metavar="N", help="Answers written at a time. Default: the built batch.")
    ] = None
    objective: Annotated[
        Objective | None,
        typer.Option("--objective", help="What mode auto goes for. Default: latency until requests wait, then throughput."),
    ] = None
    sampler: Annotated[
        Path | None, typer.Option("--sampler", metavar="DIR", help="Learned sampler for requests with learned_sampler.")
    ] = None
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", metavar="N", help="Answers that may wait; more are refused with status 429.")
    ] = 256
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Limit of any answer.")] = None
    max_answers: Annotated[int, typer.Option("--max-answers", metavar="N", help="Limit of answers in one request.")] = 32
    max_body_bytes: Annotated[int, typer.Option("--max-body-bytes", metavar="N", help="Limit of a request's body.")] = 4 << 20
    request_timeout: Annotated[
        float | None, typer.Option("--request-timeout", metavar="S", help="An answer ends after S seconds with what it has.")
    ] = None
    drain: Annotated[int, typer.Option("--drain", metavar="S", help="Seconds open requests get after SIGTERM.", min=0)] = 30
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")] = False
    as_json: AsJson = False
    num_threads: NumThreads = None
    verify: Verify = True


def serve(arguments: ServeArguments) -> None:
    """Serve a bundle over HTTP, as the OpenAI API does, with a chat page at /."""
    try:
        from nemodiff_trt.runtime.server.serve import Address
        from nemodiff_trt.runtime.server.serve import serve as run_server
    except ImportError as error:
        raise InvalidInputError("serve", error.name, "pip install 'nemodiff_trt[server]' first") from error
    from nemodiff_trt.runtime.engine import EngineOptions
    from nemodiff_trt.runtime.server.open_engine import open_engine
    from nemodiff_trt.runtime.server.options import ServerOptions

    keys = (*(arguments.api_key or ()), *_keys_of(arguments.api_key_file))
    is_local = arguments.host in _LOOPBACK
    options = ServerOptions(
        model_name=arguments.model_name or arguments.bundle.resolve().name.removesuffix(".bundle"),
        api_keys=keys,
        allowed_hosts=tuple(arguments.allowed_host or (_LOOPBACK_NAMES if is_local and not keys else ())),
        max_body_bytes=arguments.max_body_bytes,
        max_answers=arguments.max_answers,
        max_tokens=arguments.max_tokens,
        timeout_s=arguments.request_timeout,
        log_prompts=arguments.log_prompts,
    )
    if arguments.max_waiting < arguments.max_answers:
        allowed = f"at least {arguments.max_answers}, so that all answers of one request can wait (max_answers)"
        raise InvalidInputError("max_waiting", arguments.max_waiting, allowed)
    limits = EngineOptions(max_active=arguments.max_active, max_waiting=arguments.max_waiting)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    engine, model = open_engine(arguments.bundle, limits, arguments.num_threads, arguments.verify, arguments.objective)
    is_open = not is_local and not keys
    address = Address(arguments.host, arguments.port, arguments.drain)
    run_server(engine, model, options, address, lambda url: _tell(url, options.model_name, is_open, arguments.as_json))


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("api_key_file", str(path), f"a readable text file ({error})") from error
    if not keys:
        raise InvalidInputError("api_key_file", str(path), "a file with at least one key")
    return keys


def _tell(url: str, model_name: str, is_open: bool, as_json: bool) -> None:
    from nemodiff_trt.runtime.cli.output import notes, write_json

    console = notes()
    if is_open:
        console.print("warning: no API key, and other machines can reach this one", style="yellow")
    if as_json:
        write_json({"url": url, "model": model_name})
    else:
        console.print(f"{model_name}: API at {url}/v1, page at {url}/", markup=False)
