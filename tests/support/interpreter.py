"""Runs Triton forms on the CPU, in a process of their own: how triton runs kernels is settled when it is imported."""

from __future__ import annotations

import functools
import importlib
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

# A kernel that hangs must not hang the tests with it.
CALL_TIMEOUT_S = 55


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@functools.cache
def _repair_products() -> None:
    """Let the interpreter multiply bfloat16 matrices: it keeps their bits, and `tl.dot` would multiply those as integers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            # Products of two bfloat16 numbers are exact in fp32.
            a, b = (builder.cast_impl(x, tl.float32) for x in (a, b))
        return multiply(builder, a, b, *others)

    InterpreterBuilder.create_dot = create_dot


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed))


def _pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _launch(name: str, packed: bytes) -> bytes:
    from nemodiff_trt.plugins import Form, find_op

    _repair_products()
    form, arguments = find_op(name).load(Form.TRITON), _unpack(packed)
    refusal = form.refuses(*arguments)
    if refusal is not None:
        raise ValueError(f"{name} refuses: {refusal}")
    return _pack(form.launch(*arguments))


def _run(module: str, kernel: str, grid: tuple[int, ...], packed: bytes) -> bytes:
    """Run one kernel on arguments in the order of its parameters; what it wrote is seen in the tensors among them."""
    arguments, constants = _unpack(packed)
    getattr(importlib.import_module(module), kernel)[grid](*arguments, **constants)
    return _pack(arguments)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    _repair_products()
    return function(*arguments)


def _through_torch(name: str, packed: bytes) -> bytes:
    from nemodiff_trt.plugins.kernels import register_kernels

    register_kernels("cpu")
    return _pack(getattr(torch.ops.nemodiff, name)(*_unpack(packed)))


class Interpreter:
    """A worker process that interprets kernels. Arguments and results are copied, so nothing it does can be seen in them."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)

    def launch(self, name: str, *arguments: Any) -> Any:
        """The Triton form of the operator `name`."""
        return _unpack(self._pool.submit(_launch, name, _pack(arguments)).result(CALL_TIMEOUT_S))

    def run(self, kernel: Any, grid: tuple[int, ...], arguments: list[Any], constants: dict[str, int]) -> list[Any]:
        """One kernel alone. Returns its arguments as it left them."""
        packed = _pack((arguments, constants))
        source = kernel.fn
        found = self._pool.submit(_run, source.__module__, source.__name__, grid, packed).result(CALL_TIMEOUT_S)
        return list(_unpack(found))

    def through_torch(self, name: str, *arguments: Any) -> Any:
        """`torch.ops.nemodiff.<name>` after its kernels were registered for the CPU of the worker."""
        return _unpack(self._pool.submit(_through_torch, name, _pack(arguments)).result(CALL_TIMEOUT_S))

    def call(self, function: Any, *arguments: Any) -> Any:
        """Any function of a module, which the worker imports."""
        return self._pool.submit(_call, function, arguments).result(CALL_TIMEOUT_S)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
