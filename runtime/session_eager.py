"""Session over the eager decoder: the oracle other sessions are compared with. Slow, copies the cache at every step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nemodiff_trt.bundle import Bundle, mapped_tensors, source_tensors
from nemodiff_trt.bundle.weights import input_scales, role_layouts
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import LayoutTensors, TriModeDecoder, assemble_decoder
from nemodiff_trt.quantization.eager import quantize_inputs
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.step_checks import check_batch_size, layout_arrays
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role, roles_for

ALL_ROLES = frozenset(Role)


class EagerSession:
    """Runs every role on one `TriModeDecoder`, in the dtype of its weights. A decoder without an adapter drafts without one."""

    def __init__(
        self,
        decoder: TriModeDecoder,
        limits: Limits,
        roles: frozenset[Role] = ALL_ROLES,
        draft_decoder: TriModeDecoder | None = None,
    ) -> None:
        """Wrap `decoder`, whose rotary tables must cover `limits.cache_capacity` positions.

        `draft_decoder` runs the drafting steps, if these have other weights.
        """
        if decoder.key_cos.shape[0] < limits.cache_capacity:
            allowed = f"at most the decoder's {decoder.key_cos.shape[0]} positions"
            raise InvalidInputError("cache_capacity", limits.cache_capacity, allowed)
        self._decoder, self._draft_decoder = decoder, draft_decoder or decoder
        self._limits = limits
        self._roles = roles

    @classmethod
    def from_bundle(cls, bundle: Bundle, dtype: torch.dtype = torch.float32) -> EagerSession:
        """Rebuild the decoder from the bundle's own weights, as views of the mapped file where `dtype` is the stored one."""
        manifest = bundle.manifest
        roles = frozenset(roles_for(manifest.modes))
        facts = manifest.quantization
        is_mixed = facts is not None and facts.draft_recipe != facts.recipe
        draft = _decoder_of(bundle, Role.DRAFT, dtype) if is_mixed else None
        return cls(_decoder_of(bundle, Role.VERIFY, dtype), manifest.limits, roles, draft)

    @property
    def model(self) -> ModelConfig:
        return self._decoder.config

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def roles(self) -> frozenset[Role]:
        return self._roles

    @property
    def has_logits(self) -> bool:
        """True for any bundle: the eager decoder computes them anyway."""
        return True

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Tensor]:
        check_batch_size(batch_size, self._limits)
        model, capacity = self.model, self._limits.cache_capacity
        shape = (batch_size + spare_rows, model.num_key_value_heads, capacity, model.head_dim)
        dtype = self._decoder.diffusion_head.weight.dtype
        layers = range(model.num_hidden_layers)
        keys, values = ([torch.zeros(shape, dtype=dtype) for _ in layers] for _ in range(2))
        return KVCache(keys, values, np.zeros(shape[0], np.int64), capacity)

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Tensor],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        if role not in self._roles:
            raise InvalidInputError("role", role, ", ".join(sorted(self._roles)))
        ids, length = torch.from_numpy(input_ids), torch.from_numpy(cache.length)
        decoder = self._draft_decoder if role is Role.DRAFT else self._decoder
        use_adapter = role.uses_adapter and decoder.has_adapter
        tensors = _layout_tensors(layout, ids) if role.takes_layout else None
        with torch.no_grad():
            logits, keys, values = decoder(ids, length, cache.keys, cache.values, role.is_causal, use_adapter, tensors)
            # In place: the cache may be a view of rows of another.
            for buffer, updated in zip((*cache.keys, *cache.values), (*keys, *values), strict=True):
                buffer.copy_(updated)
            if role is Role.PREFILL:
                if last_index is None:
                    raise InvalidInputError("last_index", None, "int64 [B] for a prefill step")
                logits = logits[torch.arange(ids.shape[0]), torch.from_numpy(last_index)][:, None]
            token, confidence = torch.ops.nemodiff.decision_head(logits, self.model.mask_token_id)
        return StepOutput(token.numpy(), confidence.numpy(), logits.float().numpy())


def _decoder_of(bundle: Bundle, role: Role, dtype: torch.dtype) -> TriModeDecoder:
    """Eager decoder with the weights and the rounding of the engine of `role`."""
    manifest = bundle.manifest
    state = {name: tensor.to(dtype) for name, tensor in source_tensors(bundle, role).items()}
    adapter = (manifest.adapter.rank, manifest.adapter.scale) if manifest.adapter else None
    decoder = assemble_decoder(manifest.model, state, manifest.limits.cache_capacity, adapter)
    layouts = role_layouts(manifest.weights, manifest.quantization, role)
    quantize_inputs(decoder, input_scales(layouts, mapped_tensors(bundle.weights_path)))
    return decoder


def _layout_tensors(layout: StepLayout | None, ids: Tensor) -> LayoutTensors:
    """A copy of `layout` as the decoder takes it, after a look at its shapes."""
    checked = StepLayout.zeros(*ids.shape)
    checked.copy_from(layout)
    return LayoutTensors(*map(torch.from_numpy, layout_arrays(checked).values()))
