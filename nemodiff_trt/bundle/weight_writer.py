"""Write the weight file of a bundle: every stored tensor once for all roles, streamed from the checkpoint in small blocks.

Apart from the package's names: it loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemodiff_trt.bundle.encoding import MatrixEncoder, QuantizedScales
from nemodiff_trt.bundle.manifest import AdapterFacts, Combine, Encoding, WeightLayout
from nemodiff_trt.bundle.safetensors_layout import Span, plan_spans
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.checkpoint.layout import adapter_decoder_name, adapter_tensor_name
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import BundleError
from nemodiff_trt.model.rotary_tables import build_rotary_tables
from nemodiff_trt.quantization.quantized_checkpoint import QuantizedCheckpoint

# Rows are converted and transposed in pieces of this size, so that a large matrix is never held in memory.
_BLOCK_BYTES = 32 * 2**20

Source = Callable[[str], Tensor]


def checkpoint_source(checkpoint: Checkpoint | QuantizedCheckpoint) -> Source:
    """Tensors by decoder name, as memory-mapped views; the adapter's matrices too."""
    names: dict[str, str] = {}
    if checkpoint.adapter is not None:
        for layer in range(checkpoint.config.num_hidden_layers):
            names |= {adapter_decoder_name(layer, matrix): adapter_tensor_name(layer, matrix) for matrix in ("A", "B")}

    def source(name: str) -> Tensor:
        if checkpoint.adapter is not None and name in names:
            return checkpoint.adapter.tensor(names[name])
        return checkpoint.tensor(name)

    return source


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Plan of the weight file: how every tensor is made, where it lies, and the header bytes in front."""

    layouts: dict[str, WeightLayout]
    spans: dict[str, Span]
    head: bytes

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return max(span.start + span.num_bytes for span in self.spans.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.spans[name].shape for name in self.layouts}


def plan_stored(layouts: dict[str, WeightLayout], shapes: dict[str, tuple[int, ...]]) -> StoredWeights:
    """Give every tensor its place in the file, the same one whatever the order of `layouts`."""
    head, spans = plan_spans({name: (layout.dtype, shapes[name]) for name, layout in sorted(layouts.items())})
    return StoredWeights(layouts, spans, head)


class WeightLayouter:
    """Makes stored tensors out of sources, block by block."""

    def __init__(
        self,
        model: ModelConfig,
        source: Source,
        cache_capacity: int,
        adapter: AdapterFacts | None,
        scales: QuantizedScales | None = None,
    ) -> None:
        """`scales` is needed where a layout is encoded."""
        self._model, self._source, self._capacity, self._adapter = model, source, cache_capacity, adapter
        self._encoder = MatrixEncoder(scales) if scales is not None else None

    def blocks(self, name: str, layout: WeightLayout) -> Iterator[Tensor]:
        """Consecutive rows of the stored tensor `name`, contiguous, in the stored dtype."""
        dtype = getattr(torch, layout.dtype)
        if layout.combine is Combine.ROTARY_TABLE:
            rope, width = self._model.rope_parameters, self._model.head_dim
            with torch.device("cpu"):
                yield getattr(build_rotary_tables(rope, width, self._capacity, dtype), name)
            return
        if layout.encoding is not Encoding.PLAIN and self._encoder is not None and self._encoder.is_packed:
            yield from self._encoder.packed_blocks(layout)
            return
        if layout.combine is Combine.MERGE_ADAPTER:
            sources = [self._merged(layout.sources)]
        else:
            sources = [self._source(source) for source in layout.sources]
        if layout.encoding is not Encoding.PLAIN:
            assert self._encoder is not None, "only builds with a recipe have encoded layouts"
            yield from self._encoder.blocks(layout, sources)
            return
        if layout.transposed:
            columns = sum(tensor.shape[0] for tensor in sources)
            for rows in _ranges(sources[0].shape[1], columns * dtype.itemsize):
                yield torch.cat([tensor[:, rows].t().to(dtype) for tensor in sources], dim=1).contiguous()
            return
        for tensor in sources:
            for rows in _ranges(tensor.shape[0], tensor[:1].numel() * dtype.itemsize):
                yield tensor[rows].to(dtype).contiguous()

    def tensor(self, name: str, layout: WeightLayout) -> Tensor:
        """The whole stored tensor; for tests, small models and constants of an engine. A scalar comes as [1]."""
        return torch.cat(list(self.blocks(name, layout)))

    def _merged(self, sources: tuple[str, ...]) -> Tensor:
        assert self._adapter is not None, "the layout was made by a pass that had the adapter"
        base, down, up = (self._source(name).to(torch.float32) for name in sources)
        return base + self._adapter.scale * (up @ down)


def write_weights(path: Path, stored: StoredWeights, layouter: WeightLayouter) -> Iterator[int]:
    """Write the safetensors file planned by `stored`; yields the bytes written after each tensor.

    Parts of one matrix lie far apart in the file and are written one after the other, so that it is encoded once.

    Raises:
        BundleError: a tensor came out larger or smaller than planned.
    """
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        done = file.write(stored.head)
        for name in _by_matrix(stored):
            span = stored.spans[name]
            file.seek(span.start)
            for block in layouter.blocks(name, stored.layouts[name]):
                # As bytes: numpy has no bfloat16.
                file.write(block.view(torch.uint8).numpy().data)
            if file.tell() != span.start + span.num_bytes:
                raise BundleError(f"{name}: {file.tell() - span.start} bytes written, {span.num_bytes} planned")
            done += span.num_bytes
            yield done


def _by_matrix(stored: StoredWeights) -> list[str]:
    """Stored names, those with the same sources and format together, otherwise in the order of the file."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(stored.spans, key=lambda name: stored.spans[name].start):
        layout = stored.layouts[name]
        groups.setdefault((layout.sources, layout.combine, layout.encoding.linear_format), []).append(name)
    return [name for group in groups.values() for name in group]


def _ranges(num_rows: int, row_bytes: int) -> Iterator[slice]:
    rows = max(_BLOCK_BYTES // row_bytes, 1)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))
