"""`nemodiff::cache_update` as `IKVCacheUpdateLayer`, which writes into the bound cache."""

from __future__ import annotations

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor, NetworkValue


def cache_update_network(
    emit: NetworkEmitter, cache: NetworkTensor, new: NetworkValue, cache_length: NetworkTensor
) -> NetworkTensor:
    """Write `new` [B,S,G*D] into `cache` [B,G,K,D], a network input, from slot cache_length on."""
    rows = emit.heads(new, cache.shape[1])
    index = emit.once(("write_index", cache_length.name), lambda: emit.cast(cache_length, emit.api.int32))
    return emit.output(emit.network.add_kv_cache_update(cache, rows, index, emit.api.KVCacheMode.LINEAR))
