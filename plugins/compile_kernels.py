"""Compiles the shipped kernels to machine code of several GPUs, on a machine with or without one, and reads what came out.

Files in the output folder: `<build>-sm<NN>.cubin`, `.ptx` and `.json`, and `report.json` over all of them. A kernel whose files
are there, unchanged and made from the same source by the same triton, is not compiled again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemodiff_trt.errors import NemodiffError
from nemodiff_trt.plugins import OPS, Form
from nemodiff_trt.plugins.gpus import GPUS, predict
from nemodiff_trt.plugins.sass import read_sass, read_usage
from nemodiff_trt.plugins.triton_build import KernelBuild, TritonForm

# Raised when what a record holds changes, so that older ones are not taken for it.
_RECORD_VERSION = 1
_WIDE_SHARE = 0.95
_SUFFIXES = ("cubin", "ptx")
Record = dict[str, Any]


class KernelError(NemodiffError):
    """A kernel could not be compiled, or its machine code not be read."""


def triton_forms() -> dict[str, TritonForm]:
    """Operator name -> form, of the operators that have one."""
    return {op.name: op.load(Form.TRITON) for op in OPS if Form.TRITON in op.forms}


def compile_all(forms: dict[str, TritonForm], sms: Sequence[int], output: Path) -> Record:
    """Compile every build of `forms` for every one of `sms` and write the report.

    Args:
        forms: operator name -> form.
        sms: keys of `GPUS`.
        output: folder to write, made where it is missing.

    Returns:
        The content of `report.json`: versions, a record for every kernel and GPU, figures of every operator.

    Raises:
        KernelError: see there.
    """
    import triton

    output.mkdir(parents=True, exist_ok=True)
    kernels = []
    for name, form in forms.items():
        for build in form.builds:
            kernels += [{"operator": name, **compile_build(build, sm, output)} for sm in sms]
    report = {
        "triton": triton.__version__,
        "sms": list(sms),
        "kernels": kernels,
        "operators": [figures for name, form in forms.items() for figures in _operator_figures(name, form, sms)],
        "warnings": [f"{kernel['name']} sm{kernel['sm']}: {text}" for kernel in kernels for text in kernel["warnings"]],
    }
    _write(output / "report.json", report)
    return report


def compile_build(build: KernelBuild, sm: int, output: Path) -> Record:
    """Compile one configuration for one GPU, or find it in `output`.

    Returns:
        What `<build>-sm<NN>.json` holds, and `is_cached`.

    Raises:
        KernelError: triton does not compile it, or the tools that read machine code failed.
    """
    key = build_key(build, sm)
    stem = output / f"{build.name}-sm{sm}"
    known = _read_record(stem, key)
    if known is not None:
        return {**known, "is_cached": True}
    compiled = compile_for(build, sm)
    contents = {"cubin": compiled.asm["cubin"], "ptx": compiled.asm["ptx"].encode()}
    for suffix, content in contents.items():
        _file(stem, suffix).write_bytes(content)
    record = {
        "key": key,
        "name": build.name,
        "sm": sm,
        "num_warps": build.num_warps,
        "constants": dict(build.constants),
        "files": {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()},
        **_resources(build, _file(stem, "cubin"), compiled.metadata.shared),
    }
    record["warnings"] = _warnings(build, sm, record)
    _write(_file(stem, "json"), record)
    return {**record, "is_cached": False}


def build_key(build: KernelBuild, sm: int) -> str:
    """Names the outcome of a compilation: source of the kernel and of what it calls, configuration, compiler, GPU."""
    import triton

    facts = (
        _RECORD_VERSION, triton.__version__, sm, build.kernel.cache_key, list(build.types.items()),
        sorted(build.constants.items()), sorted(build.aligned), build.num_warps, build.streams,
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def compile_for(build: KernelBuild, sm: int, ptx_version: int | None = None) -> Any:
    """Triton's own result: PTX and cubin under `asm`, and `metadata`.

    Args:
        build: a configuration.
        sm: compute capability without the dot.
        ptx_version: of the PTX language, 88 for 8.8; None for the newest that triton knows.

    Raises:
        KernelError: triton does not compile it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: build.types.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(build.kernel, signature, dict(build.constants), attributes)
    options = {"num_warps": build.num_warps, "enable_fp_fusion": True, "ptx_version": ptx_version}
    try:
        return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    except Exception as error:
        raise KernelError(f"{build.name} for SM{sm}: triton does not compile it: {error}") from error


def _resources(build: KernelBuild, cubin: Path, shared_bytes: int) -> Record:
    usage = read_usage(_cuobjdump("--dump-resource-usage", cubin))
    code = read_sass(_cuobjdump("-sass", cubin))
    return {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"] + usage["LOCAL"],
        "spill_loads": code.spill_loads,
        "spill_stores": code.spill_stores,
        "shared_bytes": shared_bytes,
        "instructions": code.instructions,
        "global_loads": {str(bits): count for bits, count in code.loads.items()},
        "wide_share": round(code.wide_share(), 4),
        "loaded_bytes_per_program": code.loaded_bytes(32 * build.num_warps),
    }


def _cuobjdump(option: str, cubin: Path) -> str:
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    result = subprocess.run([tool, option, str(cubin)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise KernelError(f"cuobjdump {option} {cubin.name}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def _warnings(build: KernelBuild, sm: int, record: Record) -> list[str]:
    found = []
    if record["stack_bytes"] or record["spill_loads"] or record["spill_stores"]:
        spills = record["spill_loads"] + record["spill_stores"]
        found.append(f"registers are spilled: {record['stack_bytes']} bytes of stack, {spills} instructions")
    if record["shared_bytes"] > GPUS[sm].shared_bytes:
        found.append(f"{record['shared_bytes']} bytes of shared memory, a program has {GPUS[sm].shared_bytes}")
    if build.streams and record["wide_share"] < _WIDE_SHARE:
        found.append(f"{record['wide_share']:.0%} of its global loads are 16 bytes wide")
    return found


def _operator_figures(name: str, form: TritonForm, sms: Iterable[int]) -> list[Record]:
    return [
        {
            "operator": name,
            "shape": traffic.shape,
            "kernels": list(traffic.kernels),
            "moved_bytes": traffic.moved,
            "minimum_bytes": traffic.minimum,
            "ratio": round(traffic.ratio, 4),
            "predictions": {str(sm): asdict(predict(traffic, GPUS[sm])) for sm in sms},
        }
        for traffic in form.traffic
    ]


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _write(path: Path, content: Record) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read_record(stem: Path, key: str) -> Record | None:
    """What was written for this key, if all its files are as they were."""
    try:
        record: Record = json.loads(_file(stem, "json").read_text(encoding="utf-8"))
        if record["key"] != key:
            return None
        for suffix in _SUFFIXES:
            if hashlib.sha256(_file(stem, suffix).read_bytes()).hexdigest() != record["files"][suffix]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record
