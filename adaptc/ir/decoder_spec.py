"""How to generate with a graph: read off its KV cache, and for a decoder in partitions off its rotary tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptc.ir.cache_positions import cache_windows, cached_keys, max_tokens_of
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import ROWS, is_rope_table

if TYPE_CHECKING:
    from adaptc.ir.partitions import Split
    from adaptc.ir.program import Backbone


def decoder_spec(graph: OnnxGraph, backbone: Backbone, split: Split | None = None) -> DecoderSpec | None:
    """How to generate with a graph.

    Args:
        graph: After `kv_cache`; its cached keys are [batch, kv_heads, max_tokens, head_dim], or of fewer positions
            where a layer keeps a window. In a decoder in
            partitions they are [batch, kv_heads, head_dim, positions], and positions are only known when it runs.
        backbone: The pretrained part whose head it has.
        split: The graph in partitions, if it was cut.

    Returns:
        None if the graph has no KV cache, or only verifies what was drafted for another one.
    """
    if any(value.name == ROWS for value in graph.model.graph.inputs):
        return None
    keys = [*cached_keys(graph).values()]
    if not keys:
        return None
    max_tokens = max_tokens_of(graph) if split is None else _rotary_positions(split)
    widths = [shape[3 if split is None else 2] for shape in keys]
    return DecoderSpec(
        vocab_size=backbone.vocab_size,
        max_tokens=int(max_tokens),
        kv=tuple((int(shape[1]), int(width)) for shape, width in zip(keys, widths, strict=True)),
        bos_token_id=backbone.bos_token_id,
        eos_token_ids=backbone.eos_token_ids,
        pad_token_id=backbone.pad_token_id,
        windows=() if split is not None else cache_windows(graph),
    )


def _rotary_positions(split: Split) -> int:
    """For how many positions a decoder in partitions is made."""
    return next(int(str(tensor.shape[0])) for name, tensor in split.weights.items() if is_rope_table(name))
