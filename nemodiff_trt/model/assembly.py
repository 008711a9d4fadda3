"""Put a decoder together around tensors that exist already: no weight is initialised, none is copied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.model.decoder import TriModeDecoder


def assemble_decoder(
    config: ModelConfig, state: Mapping[str, Tensor], max_positions: int, adapter: tuple[int, float] | None
) -> TriModeDecoder:
    """Frozen decoder in evaluation mode whose parameters are the tensors of `state` themselves.

    Args:
        config: geometry.
        state: every parameter by its name in the decoder, all in one float dtype.
        max_positions: rows of the rotary tables, at least the cache capacity K.
        adapter: rank and scale of the draft adapter whose matrices are in `state`; None when there are none.
    """
    with torch.device("meta"):
        decoder = TriModeDecoder(config, 1)
        if adapter is not None:
            decoder.attach_adapter(*adapter)
    decoder.load_state_dict(state, assign=True)
    with torch.device("cpu"):
        decoder.set_rotary_tables(max_positions, decoder.diffusion_head.weight.dtype)
    return decoder.requires_grad_(False).eval()
