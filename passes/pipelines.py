"""The pipelines: which passes make which role for which target, in which order, firing how often."""

from __future__ import annotations

from nemodiff_trt.passes.apply_draft_adapter import apply_draft_adapter
from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.base import PassOptions, Stage
from nemodiff_trt.passes.decompose_plugins import decompose_plugins
from nemodiff_trt.passes.emulate_quantization import emulate_quantization
from nemodiff_trt.passes.expand_quadratic import expand_quadratic
from nemodiff_trt.passes.expose_queries import expose_queries
from nemodiff_trt.passes.fuse_gate_up import fuse_gate_up
from nemodiff_trt.passes.fuse_qkv import fuse_qkv
from nemodiff_trt.passes.gate_adapter_rows import gate_adapter_rows
from nemodiff_trt.passes.place_plugins import place_plugins
from nemodiff_trt.passes.quantize_linears import quantize_linears
from nemodiff_trt.passes.scale_queries import scale_queries
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.passes.share_rotary_tables import scales_queries, share_rotary_tables
from nemodiff_trt.passes.transpose_linear_weights import transpose_linear_weights
from nemodiff_trt.passes.update_cache_in_place import update_cache_in_place
from nemodiff_trt.passes.verify_contract import verify_contract
from nemodiff_trt.quantization.recipe import HEAD, Recipe
from nemodiff_trt.vocabulary import Role, Target


def once(options: PassOptions) -> int:
    """The pass concerns the graph as a whole."""
    return 1


def per_layer(options: PassOptions) -> int:
    """Once in every decoder layer."""
    return options.model.num_hidden_layers


def adapted_layers(options: PassOptions) -> int:
    """Every layer, unless there is no adapter to apply."""
    return options.model.num_hidden_layers if options.drafts_with_adapter else 0


def layers_and_positions(options: PassOptions) -> int:
    """Attention of every layer, and the positions they share."""
    return options.model.num_hidden_layers + 1


def unscaled_layers(options: PassOptions) -> int:
    """Every layer, unless the cache reaches positions whose queries are scaled."""
    return 0 if scales_queries(options) else options.model.num_hidden_layers


def linears_after_fusion(options: PassOptions) -> int:
    """qkv, o, gate|up and down per layer, two more for a low-rank branch, and the vocabulary projection."""
    return options.model.num_hidden_layers * (6 if options.has_adapter_branch else 4) + 1


def quantized_linears(options: PassOptions) -> int:
    """Of the linear layers after the fusions, those that the recipe gives a format."""
    recipe = options.recipe
    if recipe is None:
        return 0
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    if options.has_adapter_branch:
        names += ["self_attn.adapter.lora_A", "self_attn.adapter.lora_B"]
    return _count_quantized(recipe, options.model.num_hidden_layers, names)


def _count_quantized(recipe: Recipe, num_layers: int, names: list[str]) -> int:
    layers = [f"encoder.layers.{layer}.{name}" for layer in range(num_layers) for name in names]
    return sum(recipe.format_of(layer) is not None for layer in (*layers, HEAD))


def keys_and_values(options: PassOptions) -> int:
    """Two caches per layer."""
    return 2 * options.model.num_hidden_layers


def kept_plugins(options: PassOptions) -> int:
    """Operators that stay for a kernel of the project: attention per layer, the decision head."""
    attention = "masked_attention" if options.role.takes_layout else "attention"
    return options.model.num_hidden_layers * (attention in options.plugins) + ("decision_head" in options.plugins)


def plugins_outside_the_cache(options: PassOptions) -> int:
    """Two norms, two rotations and attention per layer; final norm and decision head; positions, unless they are an input;
    and the row a prefill selects. Without those that stay.
    """
    others = {Role.PREFILL: 4, Role.QUADRATIC: 2}.get(options.role, 3)
    return 5 * options.model.num_hidden_layers + others - kept_plugins(options)


_FUSE = (
    Stage(share_rotary_tables, unscaled_layers),
    Stage(fuse_qkv, per_layer),
    Stage(fuse_gate_up, per_layer),
    # After the fusions: matrices that become one share their scales.
    Stage(quantize_linears, quantized_linears),
)
# Last in every pipeline: it judges the result.
_VERIFY = Stage(verify_contract, once)
_FOR_ONNX = (
    # Both fusions before the transposition: they join weights along their outputs while these are still rows.
    *_FUSE,
    Stage(emulate_quantization, quantized_linears),
    Stage(transpose_linear_weights, linears_after_fusion),
    _VERIFY,
)
# Matrices stay [out,in], as a linear layer of torch wants them.
_FOR_TORCH = (
    *_FUSE,
    # The cache before the decomposition, which would copy it.
    Stage(update_cache_in_place, keys_and_values),
    # After every pass that looks for an operator.
    Stage(decompose_plugins, plugins_outside_the_cache),
    _VERIFY,
)
# Matrices stay [out,in]: the network's own product transposes them for nothing.
_FOR_ONE_TOKEN = (*_FUSE, Stage(scale_queries, per_layer), Stage(place_plugins, kept_plugins), _VERIFY)
# The scaled query is what attention reads, so it is scaled before it is exposed.
_FOR_BLOCKS = (
    *_FUSE, Stage(scale_queries, per_layer), Stage(expose_queries, per_layer), Stage(place_plugins, kept_plugins), _VERIFY
)  # fmt: skip

_DECIDE = Stage(attach_decision_head, once)
_SELECT = Stage(select_last_position, once)
_BIDIRECTIONAL = Stage(set_attention_direction, per_layer)
_ADAPT = Stage(apply_draft_adapter, adapted_layers)
_EXPAND = Stage(expand_quadratic, layers_and_positions)
_GATE = Stage(gate_adapter_rows, adapted_layers)

# What makes a role, whatever the target.
_ROLES: dict[Role, tuple[Stage, ...]] = {
    # The row is selected before the head is attached: it is found through the logits output, which the head replaces.
    Role.PREFILL: (_SELECT, _DECIDE),
    Role.DECODE: (_DECIDE,),
    Role.VERIFY: (_DECIDE,),
    Role.DENOISE: (_BIDIRECTIONAL, _DECIDE),
    # The adapter before the target's stages: its matrices are linear layers like the others and are stored like them.
    Role.DRAFT: (_BIDIRECTIONAL, _ADAPT, _DECIDE),
    # The adapter is found behind plain attention, so before that is replaced; its gate reads an input that comes with the mask.
    Role.QUADRATIC: (_ADAPT, _EXPAND, _GATE, _DECIDE),
}
_ONNXRUNTIME = {role: (*stages, *_FOR_ONNX) for role, stages in _ROLES.items()}
_INDUCTOR = {role: (*stages, *_FOR_TORCH) for role, stages in _ROLES.items()}
_TENSORRT = {role: (*stages, *(_FOR_ONE_TOKEN if role is Role.DECODE else _FOR_BLOCKS)) for role, stages in _ROLES.items()}

PIPELINES: dict[Target, dict[Role, tuple[Stage, ...]]] = {
    Target.ONNXRUNTIME: _ONNXRUNTIME,
    Target.TENSORRT_RTX: _TENSORRT,
    Target.TENSORRT: _TENSORRT,
    Target.INDUCTOR: _INDUCTOR,
}
