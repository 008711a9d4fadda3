"""Axis letters of a captured graph: the symbols torch.export invents, named as the contract names them."""

from __future__ import annotations

from torch import Tensor

from nemodiff_trt.contract import INPUT_IDS, past_key
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

_CACHE_CAPACITY_AXIS = 2


def axis_letters(graph: StepGraph) -> dict[str, str]:
    """Symbol -> B, S or K, read off the inputs that define these axes; fixed axes have no symbol."""
    inputs = {name: node.meta[NODE_VALUE] for name, node in graph.inputs.items()}
    letters: dict[str, str] = {}
    if INPUT_IDS in inputs:
        letters |= {str(inputs[INPUT_IDS].shape[0]): "B", str(inputs[INPUT_IDS].shape[1]): "S"}
    if past_key(0) in inputs:
        letters[str(inputs[past_key(0)].shape[_CACHE_CAPACITY_AXIS])] = "K"
    return {symbol: letter for symbol, letter in letters.items() if not symbol.isdigit()}


def shape_with_letters(value: Tensor, letters: dict[str, str]) -> tuple[int | str, ...]:
    """Shape of a fake tensor with letters for dynamic axes; an unknown symbol stays as it is."""
    return tuple(_extent(str(extent), letters) for extent in value.shape)


def _extent(text: str, letters: dict[str, str]) -> int | str:
    return int(text) if text.isdigit() else letters.get(text, text)
