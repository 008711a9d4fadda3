"""`nemodiff check`: is this bundle intact, do its engines compute what the model says, is self-speculation lossless."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.cli.options import AsJson, BlockLength, BundleDir, NumThreads

if TYPE_CHECKING:
    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

PARTS = ("checksums", "parity", "losslessness")
DEFAULT_PROMPTS = (
    "Count from 3 to 12.",
    "Repeat this text exactly: the quick brown fox jumps over the lazy dog",
    "Anna has 12 apples and buys 30 more. How many apples does she have?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="T", help="Prompt for the losslessness test; may be repeated.")
    ] = None
    prompts_file: Annotated[str | None, typer.Option("--prompts-file", metavar="F", help="As of generate.")] = None
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Of each answer.")] = 64
    block_length: BlockLength = None
    as_json: AsJson = False
    num_threads: NumThreads = None


def check(arguments: CheckArguments) -> int:
    """Test checksums, every engine against the eager model, and that greedy self_speculation equals greedy ar."""
    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.cli.open_model import as_chat, open_model
    from nemodiff_trt.runtime.cli.output import write_json
    from nemodiff_trt.runtime.cli.prompt_source import read_prompts
    from nemodiff_trt.runtime.prompts import PromptLine

    lines: list[PromptLine] = list(DEFAULT_PROMPTS)
    if arguments.prompt or arguments.prompts_file:
        lines = read_prompts(arguments.prompt or [], arguments.prompts_file, None)
    findings: dict[str, Any] = {
        "bundle": str(arguments.bundle),
        "ok": False,
        "checksums": None,
        "parity": None,
        "losslessness": None,
    }
    try:
        bundle = Bundle.open(arguments.bundle)
    except BundleError as error:
        findings["checksums"] = {"ok": False, "num_files": None, "error": str(error)}
    else:
        findings["checksums"] = {"ok": True, "num_files": len(bundle.manifest.files), "error": None}
        model = open_model(arguments.bundle, arguments.num_threads, verify=False)
        prompts = as_chat(lines, model, None, thinking=False)
        findings["parity"] = _parity(bundle, model)
        findings["losslessness"] = _losslessness(bundle, model, prompts, arguments)
    findings["ok"] = all(
        part is None or part["ok"] for part in (findings[name] for name in ("checksums", "parity", "losslessness"))
    )
    if arguments.as_json:
        write_json(findings)
    else:
        _print(findings)
    return 0 if findings["ok"] else 1


def _parity(bundle: Bundle, model: TriModeLM) -> dict[str, Any]:
    """Every role against the eager decoder over the bundle's own weights."""
    from nemodiff_trt.runtime.parity import TOLERANCES, compare_sessions
    from nemodiff_trt.runtime.session_eager import EagerSession

    precision = bundle.manifest.precision
    token_ids = model.tokenizer.encode("\n".join(DEFAULT_PROMPTS))
    found = compare_sessions(model.session, EagerSession.from_bundle(bundle), token_ids)
    roles = {str(role): {"ok": parity.is_within(precision), **dataclasses.asdict(parity)} for role, parity in found.items()}
    confidence, cache = TOLERANCES[precision]
    return {
        "ok": all(entry["ok"] for entry in roles.values()),
        "tolerance": {"confidence": confidence, "cache": cache},
        "roles": roles,
    }


def _losslessness(bundle: Bundle, model: TriModeLM, prompts: list[Any], arguments: CheckArguments) -> dict[str, Any] | None:
    """Token ids of both modes, in batches; None where the bundle lacks one of them."""
    from nemodiff_trt.runtime.options import GenerationOptions
    from nemodiff_trt.vocabulary import Mode, Precision

    if not {Mode.AR, Mode.SELF_SPECULATION}.issubset(bundle.manifest.modes):
        return None
    limit = arguments.max_new_tokens
    plain = model.generate(prompts, GenerationOptions(mode=Mode.AR, max_new_tokens=limit))
    options = GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=limit, block_length=arguments.block_length)
    fast = model.generate(prompts, options)
    differing = [index for index, pair in enumerate(zip(plain, fast, strict=True)) if pair[0].token_ids != pair[1].token_ids]
    # Half precision rounds a step of one token and a step of a block differently: equality is promised for fp32.
    is_required = bundle.manifest.precision is Precision.FP32
    return {
        "ok": not differing or not is_required,
        "required": is_required,
        "num_prompts": len(prompts),
        "num_tokens": sum(len(result.token_ids) for result in plain),
        "differing_prompts": differing,
    }


def _print(findings: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    marks = {True: "[green]ok[/]    ", False: "[red]FAILED[/]"}
    checksums, parity, lossless = findings["checksums"], findings["parity"], findings["losslessness"]
    detail = f"{checksums['num_files']} files" if checksums["ok"] else checksums["error"]
    console.print(f"{marks[checksums['ok']]} checksums     ", end="")
    console.print(detail, markup=False)
    for role, entry in parity["roles"].items() if parity else ():
        console.print(
            f"{marks[entry['ok']]} {role:13} confidence error {entry['max_confidence_error']:.1e}, cache error"
            f" {entry['max_cache_error']:.1e}, other tokens {entry['num_mismatches']} of {entry['num_tokens']}"
        )
    if lossless:
        differing = len(lossless["differing_prompts"])
        required = "" if lossless["required"] else " (not required in half precision)"
        console.print(
            f"{marks[lossless['ok']]} losslessness  self_speculation differs from ar on {differing} of"
            f" {lossless['num_prompts']} prompts, {lossless['num_tokens']} tokens{required}"
        )
