"""Every name used of the TensorRT modules exists in them. The type checker holds the code to these protocols."""

from __future__ import annotations

from typing import Any

import pytest

from nemodiff_trt.contract import ITEM_BYTES
from nemodiff_trt.runtime.tensorrt_api import DATA_TYPES, RTX_CLASSES, USED_CLASSES, Api, RtxApi
from support.rtx_networks import require_tensorrt_rtx
from support.tensorrt_members import MEMBERS


def members(protocol: type) -> set[str]:
    """Names a protocol asks for, those of its bases included."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return {name for name in names if not name.startswith("_")} | (names & {"__version__"})


def missing(protocol: type, owner: Any) -> set[str]:
    return {name for name in members(protocol) if not hasattr(owner, name)}


def test_members_are_seen() -> None:
    assert {"execute_async_v3", "is_stream_capturable"} <= members(RTX_CLASSES["IExecutionContext"])
    assert {"cuda_graph_strategy", "set_execution_context_allocation_strategy"} <= members(RTX_CLASSES["IRuntimeConfig"])
    assert {"__version__", "Runtime", "CudaGraphStrategy"} <= members(RtxApi)
    assert missing(Api, object()) == members(Api)


def test_data_types_have_a_size() -> None:
    assert DATA_TYPES.keys() == ITEM_BYTES.keys()


class TestInstalledModule:
    @pytest.mark.parametrize(("name", "protocol"), [*USED_CLASSES.items(), *RTX_CLASSES.items()])
    def test_class(self, name: str, protocol: type) -> None:
        assert missing(protocol, getattr(require_tensorrt_rtx(), name)) == set()

    def test_module(self) -> None:
        api = require_tensorrt_rtx()
        assert missing(RtxApi, api) == set()
        assert all(hasattr(api.DataType, name) for name in DATA_TYPES.values())

    def test_signatures(self) -> None:
        """What pybind writes into its docstrings: names and number of the arguments."""
        api = require_tensorrt_rtx()
        for owner, name, arguments in (
            (api.IExecutionContext, "set_device_memory", "memory: typing.SupportsInt, size: typing.SupportsInt) -> None"),
            (api.IExecutionContext, "set_tensor_address", "name: str, memory: typing.SupportsInt) -> bool"),
            (api.IExecutionContext, "set_input_shape", "name: str, shape: tuple) -> bool"),
            (api.IExecutionContext, "set_optimization_profile_async", "profile_index: typing.SupportsInt, stream_handle"),
            (api.IExecutionContext, "execute_async_v3", "stream_handle: typing.SupportsInt) -> bool"),
            (api.ICudaEngine, "create_execution_context", "runtime_config: "),
            (api.IRuntimeCache, "deserialize", "blob: typing_extensions.Buffer) -> bool"),
            (api.Runtime, "deserialize_cuda_engine", "serialized_engine: typing_extensions.Buffer)"),
        ):
            assert arguments in getattr(owner, name).__doc__, name


class TestFullTensorRT:
    """`tensorrt` itself cannot be installed everywhere; names of its version 10.13 are in support/tensorrt_members.py."""

    @pytest.mark.parametrize(("name", "protocol"), list(USED_CLASSES.items()))
    def test_class(self, name: str, protocol: type) -> None:
        assert members(protocol) - MEMBERS[name] == set()

    def test_module(self) -> None:
        assert members(Api) - {"__version__"} == USED_CLASSES.keys() & members(Api)

    def test_what_only_rtx_has_is_not_asked_of_it(self) -> None:
        assert "cuda_graph_strategy" in members(RTX_CLASSES["IRuntimeConfig"]) - MEMBERS["IRuntimeConfig"]
        assert "is_stream_capturable" in members(RTX_CLASSES["IExecutionContext"]) - MEMBERS["IExecutionContext"]
