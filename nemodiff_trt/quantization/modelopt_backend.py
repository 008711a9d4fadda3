"""A quantiser backend that lets ModelOpt run NVFP4 on a CPU, where its own forward asks for CUDA.

https://github.com/NVIDIA/Model-Optimizer, `register_quant_backend`. Weights and activations get the numbers of `formats`, which
are those of ModelOpt's packed tensors. Apart from the package's other modules: only this one and `calibration` import ModelOpt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization.formats import amax_of, fake_quantize_nvfp4, nvfp4_global_scale
from nemodiff_trt.vocabulary import NVFP4_BLOCK

BACKEND = "nemodiff_nvfp4"
_E2M1_BITS = (2, 1)


def fake_quantize(x: Tensor, quantizer: Any) -> Tensor:
    """What a ModelOpt quantiser in NVFP4 format answers: `x` [...,in] rounded and back; the global scale is that of its amax.

    Raises:
        InvalidInputError: the quantiser has another format, or `in` is not a multiple of 16.
    """
    bits, blocks = quantizer.num_bits, dict(quantizer.block_sizes or {})
    if tuple(bits) != _E2M1_BITS or blocks.get(-1) != NVFP4_BLOCK:
        raise InvalidInputError("quantizer", f"num_bits {bits}, block_sizes {blocks}", f"e2m1 in blocks of {NVFP4_BLOCK}")
    amax = quantizer.amax
    return fake_quantize_nvfp4(x, nvfp4_global_scale(amax_of(x) if amax is None else amax))


@contextmanager
def cpu_config(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A copy of a ModelOpt `quant_cfg` whose e2m1 quantisers use our backend, which is registered while the context lasts.

    Raises:
        InvalidInputError: ModelOpt is not installed.
    """
    nn = import_modelopt("modelopt.torch.quantization.nn")
    changed = copy.deepcopy(config)
    for entry in changed["quant_cfg"]:
        attributes = entry.get("cfg") or {}
        if tuple(attributes.get("num_bits", ())) == _E2M1_BITS:
            attributes["backend"] = BACKEND
    nn.register_quant_backend(BACKEND, fake_quantize)
    try:
        yield changed
    finally:
        nn.unregister_quant_backend(BACKEND)


def import_modelopt(module: str) -> Any:
    """A module of ModelOpt, which only calibration needs.

    Raises:
        InvalidInputError: it is not installed.
    """
    import importlib
    import warnings

    try:
        with warnings.catch_warnings():
            # It names the versions of transformers it was tested with; no transformers model is touched here.
            warnings.filterwarnings("ignore", message=r"transformers .* is not tested", category=UserWarning)
            return importlib.import_module(module)
    except ImportError as error:
        allowed = "ModelOpt for calibration: pip install 'nemodiff_trt[quantization]'"
        raise InvalidInputError("calibration", f"{module} cannot be imported ({error})", allowed) from error
