"""What a Triton form consists of. No triton is loaded by this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def addresses(types: Mapping[str, str]) -> frozenset[str]:
    """The arguments that are addresses, all of which are multiples of 16."""
    return frozenset(name for name in types if name.endswith("_ptr"))


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """One configuration of a kernel that is shipped.

    Attributes:
        name: unique; names the files of the compiled kernel.
        kernel: function decorated with `triton.jit`.
        types: Triton type of every argument that is no constant, in order: "*bf16", "i32", ...
        constants: value of every `tl.constexpr`.
        aligned: arguments known to be multiples of 16: addresses, and extents that keep rows on 16-byte borders.
        num_warps: of one program.
        streams: it reads nearly all bytes of its operator, so its loads have to be 16 bytes wide.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, int]
    aligned: frozenset[str]
    num_warps: int = 4
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of device memory that one call of an operator moves, all of its kernels together, at one shape.

    Attributes:
        shape: in words.
        kernels: names of the builds that run.
        moved: bytes read and written by design, intermediate results included.
        minimum: bytes of the arguments that have to be read and of the results.
        operations: multiplications and additions of matrix products; 0 where memory alone decides.
    """

    shape: str
    kernels: tuple[str, ...]
    moved: int
    minimum: int
    operations: int = 0

    @property
    def ratio(self) -> float:
        return self.moved / self.minimum


@dataclass(frozen=True, slots=True)
class TritonForm:
    """An operator in Triton.

    Attributes:
        launch: takes the operator's arguments and returns its results.
        refuses: takes the same arguments; why the kernels cannot take them, or None.
        builds: configurations to compile ahead of time.
        traffic: of the shapes that the figures are given for.
    """

    launch: Callable[..., Any]
    refuses: Callable[..., str | None]
    builds: tuple[KernelBuild, ...]
    traffic: tuple[Traffic, ...]
