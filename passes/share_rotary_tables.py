"""Rotate queries with the tables of the keys where both are the same numbers.

before: rotary(q, query_cos, query_sin, positions)
after:  rotary(q, key_cos, key_sin, positions)      when no position of the cache is scaled

The query tables carry the query scale 1 + beta ln(1 + floor(position / original)), which is exactly 1 below the original
context. Two tables fewer to store; and compilers join the rotations of queries and keys into one kernel once they read the same
rows.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import StepGraph, weight_name

_ROTARY = torch.ops.nemodiff.rotary.default
_TABLES = {"query_cos": "key_cos", "query_sin": "key_sin"}
_TABLE_ARGUMENTS = (1, 2)


def scales_queries(options: PassOptions) -> bool:
    """Whether some position of the cache has a query scale other than 1."""
    rope = options.model.rope_parameters
    return rope.llama_4_scaling_beta != 0 and options.cache_capacity > rope.original_max_position_embeddings


def share_rotary_tables(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: rotations of queries that now read the key tables."""
    name, shared, refusals = share_rotary_tables.__name__, 0, []
    tables = {str(node.target): node for node in graph.weight_nodes() if node.target in _TABLES.values()}
    for node in graph.calls(_ROTARY):
        if not all(weight_name(node.args[index]) in _TABLES for index in _TABLE_ARGUMENTS):
            refusals.append(Refusal(node.name, "does not read the query tables"))
        elif scales_queries(options):
            original = options.model.rope_parameters.original_max_position_embeddings
            refusals.append(Refusal(node.name, f"queries are scaled from position {original} on"))
        elif len(tables) < len(_TABLES):
            refusals.append(Refusal(node.name, "the graph has no key tables"))
        else:
            _read_key_tables(node, tables)
            shared += 1
    return PassReport(name, shared, tuple(refusals))


def _read_key_tables(node: fx.Node, tables: dict[str, fx.Node]) -> None:
    for index in _TABLE_ARGUMENTS:
        node.update_arg(index, tables[_TABLES[str(weight_name(node.args[index]))]])
