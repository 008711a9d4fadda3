"""Step times of a GPU predicted from its data sheet: where to start before anything was measured, and never more than that.

A step reads every weight and the used cache once, multiplies every token with every weight, and launches its kernels. The terms
are added, as in the latency model, so between the two roofs the prediction is above either.
"""

from __future__ import annotations

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.plugins.gpus import PRODUCTS, Gpu
from nemodiff_trt.runtime.planner.latency_model import Coefficients, LatencyModel
from nemodiff_trt.vocabulary import Precision, Role

# Assumed, not fitted to any measurement: shares of the peaks that a step reaches, kernels a layer, milliseconds a kernel.
BANDWIDTH_SHARE, ARITHMETIC_SHARE = 0.8, 0.6
LAUNCHES_PER_LAYER, LAUNCH_MS = 10, 0.002
# Bytes of a weight of the layers: an NVFP4 block of 16 carries one byte of scale.
_WEIGHT_BYTES = {Precision.BF16: 2.0, Precision.FP8: 1.0, Precision.NVFP4: 0.5 + 1 / 16}
# Of the head and of the cache, which stay in bf16.
_BF16_BYTES = 2


def predicted_latency(product: str, config: ModelConfig, precision: Precision) -> LatencyModel:
    """Step times labelled as a prediction. The adapter of drafts is left out: it is a few percent of the weights.

    Args:
        product: key of `PRODUCTS`.
        config: geometry of the model.
        precision: bf16, fp8 or nvfp4.

    Raises:
        InvalidInputError: nothing is published about the product, or it does not multiply in this precision.
    """
    if product not in PRODUCTS:
        raise InvalidInputError("device", product, ", ".join(PRODUCTS))
    gpu = PRODUCTS[product]
    rate, bf16_rate = _rate(gpu, precision) * ARITHMETIC_SHARE * 1e9, gpu.teraflops * ARITHMETIC_SHARE * 1e9
    layers, head = _layer_weights(config), config.vocab_size * config.hidden_size
    bytes_per_ms = gpu.gigabytes_per_s * BANDWIDTH_SHARE * 1e6
    weights_ms = (layers * _WEIGHT_BYTES[precision] + head * _BF16_BYTES) / bytes_per_ms
    fixed = weights_ms + config.num_hidden_layers * LAUNCHES_PER_LAYER * LAUNCH_MS
    layers_ms, head_ms = 2 * layers / rate, 2 * head / bf16_rate
    cache_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * _BF16_BYTES
    read = cache_bytes / bytes_per_ms
    step = Coefficients(fixed, 0.0, layers_ms + head_ms, 0.0, read)
    # Prefill has the head on one row of a sequence.
    prefill = Coefficients(fixed, 0.0, layers_ms, head_ms, read)
    roles = {Role.DECODE: step, Role.DRAFT: step, Role.VERIFY: step, Role.PREFILL: prefill}
    return LatencyModel(f"{gpu.name}, {precision}: predicted from its data sheet", True, roles)


def _rate(gpu: Gpu, precision: Precision) -> float:
    rates = {Precision.BF16: gpu.teraflops, Precision.FP8: gpu.fp8_teraflops, Precision.NVFP4: gpu.fp4_teraflops}
    allowed = [str(name) for name, rate in rates.items() if rate is not None]
    rate = rates.get(precision)
    if rate is None:
        raise InvalidInputError("precision", str(precision), f"{', '.join(allowed)} on {gpu.name}")
    return rate


def _layer_weights(config: ModelConfig) -> int:
    """Weights of all layers: four projections of attention, three of the feed-forward."""
    attention = 2 * config.hidden_size * (config.query_width + config.key_value_width)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
