"""Small program texts in the form a plan holds them, written for the tests of the plan audit."""

from __future__ import annotations

from collections.abc import Iterable

HEADER = """header {{
  version = 5
  region = {{ name=device size=4096 place=accelerator }}
  region = {{ name=host_sizes size=64 place=host }}
  region = {{ name=consts size=64 place=accelerator constant=true }}
  inputs={{ {inputs} }}
  outputs={{ {outputs} }}
  shape_inputs={{ {shape_inputs} }}
  accelerators={{{accelerators}}}
}}
"""


def quoted(names: Iterable[str]) -> str:
    return " ".join(f'"{name}"' for name in names)


def tensor(name: str, dims: str, dtype: str = "bf16", region: str = "", payload_bytes: int | None = None) -> str:
    """`dims` as in a plan: numbers and quoted names of sizes."""
    payload = "" if payload_bytes is None else f"const_payload_size={payload_bytes} "
    return f'  tensor={{ alignment=16 {payload}dims={{ {dims} }} name="{name}" offset=0 region="{region}" type={dtype} }}'


def view(name: str, base: str, dims: str, dtype: str = "bf16", offset: int = 0) -> str:
    return f'  sub_tensor={{ base="{base}" const_offset={offset} dims={{ {dims} }} name="{name}" offset=0 type={dtype} }}'


def size(name: str, region: str = "host_sizes") -> str:
    return tensor(name, "1", "int64", region)


def function(name: str, inputs: Iterable[str], outputs: Iterable[str], extra: str = "") -> str:
    args = f"input_args={{ {quoted(inputs)} }} shape_args_count=0 output_args={{ {quoted(outputs)} }}"
    return f"  function={{ name={name} fqn={name}_0x1 {args} binary = 0 grid = {{ 1 1 1 }} {extra}}}"


def gemm(inputs: Iterable[str], output: str) -> str:
    args = f'output={{"{output}" }} input={{{quoted(inputs)} }}'
    return f'  fully_connected={{ name="(Layer 1) [Matrix Multiply]" {args} stream=0 }}'


def fusion(inputs: Iterable[str], output: str, binary: int = 0) -> str:
    args = f'input_args={{ {quoted(inputs)} }} output_args={{ "{output}" }}'
    return f"  runtime_fusion={{ name=__myl_FcAdd {args} binary={binary} backbone=gemm }}"


def scalar(kind: str, inputs: Iterable[str], output: str) -> str:
    """One operation of `shape_main`."""
    return f'  {kind}={{ name="{kind}_{output}" output={{"{output}" }} input={{{quoted(inputs)} }} stream=0 layers="" }}'


def memset(output: str, value: str) -> str:
    return f'  memset={{ name="init" output={{"{output}" }}  src="{value}" stream=0 }}'


def program(
    inputs: Iterable[str],
    outputs: Iterable[str],
    descriptors: Iterable[str],
    main: Iterable[str],
    shape: Iterable[str] = (),
    shape_inputs: Iterable[str] = (),
    accelerators: str = "sm120 ",
) -> str:
    header = HEADER.format(
        inputs=quoted(inputs), outputs=quoted(outputs), shape_inputs=quoted(shape_inputs), accelerators=accelerators
    )
    parts = ("descriptors {", *descriptors, "}", "main {", " label bb1: ", *main, "}", "shape_main {", *shape, "}")
    return header + "\n".join(parts) + "\n"


def plan(*texts: str, rest: bytes = b"") -> bytes:
    """A plan with these programs between other bytes; `rest` follows the last one."""
    return b"vtrt\0\x01" + b"".join(b"\0\x07" + text.encode("latin-1") + b"\0\xff\xfe" for text in texts) + rest
