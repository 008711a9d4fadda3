"""Which tensors the weight file of a build holds: the union of what its roles read."""

from __future__ import annotations

from collections.abc import Mapping

from nemodiff_trt.bundle import AdapterFacts, WeightLayout
from nemodiff_trt.bundle.weight_writer import StoredWeights, plan_stored
from nemodiff_trt.checkpoint.layout import adapter_decoder_name, adapter_shapes
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import PassError
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.vocabulary import Role

# Never quantised: its dtype is that of everything else.
_EMBEDDING = "encoder.embed_tokens.weight"


def plan_weights(graphs: Mapping[Role, StepGraph], model: ModelConfig, adapter: AdapterFacts | None) -> StoredWeights:
    """Union of the weights of all role graphs, each stored once.

    Args:
        graphs: after their pipelines.
        model: gives the adapter's shapes.
        adapter: facts of an adapter that some role applies. Its matrices are kept even where an engine has them merged, because
            the eager decoder of the bundle's own checks is rebuilt from this file.

    Raises:
        PassError: two roles want the same name in two forms.
    """
    found: dict[str, tuple[WeightLayout, tuple[int, ...]]] = {}
    for role, graph in graphs.items():
        for node in graph.weight_nodes():
            name = str(node.target)
            entry = (graph.weights[name], tuple(node.meta[NODE_VALUE].shape))
            if found.setdefault(name, entry) != entry:
                raise PassError(f"{name}: role {role} lays it out as {entry}, another role as {found[name]}")
    if adapter is not None:
        dtype = found[_EMBEDDING][0].dtype
        for name, shape in adapter_shapes(model, adapter.rank, adapter_decoder_name).items():
            found.setdefault(name, (WeightLayout((name,), False, dtype), shape))
    layouts = {name: layout for name, (layout, _) in found.items()}
    return plan_stored(layouts, {name: shape for name, (_, shape) in found.items()})
