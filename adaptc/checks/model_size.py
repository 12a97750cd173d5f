"""What a model takes on disk and in memory, worked out from its config or its weights' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptc.families.model import decoder_path, head_name, kv_heads_of, model_of, table_name, text_of
from adaptc.runtime.bundle.cache_window import ROLLBACK, SLACK
from adaptc.spec.schema import TargetSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


CACHE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of an entry of the KV cache."""


def head_dim_of(config: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // max(1, config.num_attention_heads))


@dataclass(frozen=True, slots=True)
class Size:
    """How much memory and disk a model takes.

    Attributes:
        parameters: Number of weights, a tied head counted once.
        read: Bytes of the weights as they are read.
        largest: Bytes of the largest weight as float32.
        bundle: Bytes of the weights in the bundle.
        caches: Of each layer with a KV cache, bytes of a position of all batch slots, and positions that it holds.
    """

    parameters: int
    read: int
    largest: int
    bundle: int
    caches: tuple[tuple[int, int], ...] = ()

    @property
    def cache(self) -> int:
        """Bytes of the KV cache of all batch slots with the longest texts."""
        return sum(each * positions for each, positions in self.caches)

    def cache_of(self, tokens: int) -> int:
        """Bytes of the KV cache that texts of so many tokens touch."""
        return sum(each * min(tokens, positions) for each, positions in self.caches)


def size_of(config: PretrainedConfig, target: TargetSpec, dtype: str, *, images: bool = True) -> Size:
    """Work out a model's size from its config.

    Args:
        config: The model's config.
        target: What it is compiled for.
        dtype: What its weights are read as.
        images: Whether a multimodal model keeps its image encoder.
    """
    import torch

    with torch.device("meta"):
        model = model_of(config)
    stems = () if images else (f"{decoder_path(config)}.", head_name(config))
    # A tied head comes once, as the table.
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters() if name.startswith(stems or "")}
    text = text_of(config)
    position = 2 * kv_heads_of(text) * head_dim_of(text) * CACHE_BYTES[target.kv_cache] * target.batch
    ends = table_name(config), head_name(config)
    caches = tuple((position, held) for held in positions_of(text, target))
    return replace(size_of_shapes(shapes, target, dtype, ends), caches=caches)


def positions_of(config: PretrainedConfig, target: TargetSpec) -> list[int]:
    """How many positions the cache of each layer of a decoder holds; those of windows hold fewer on a CPU."""
    window, layers = getattr(config, "sliding_window", None) or 0, config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    slides = window > 0 and target.backend == "onnxruntime" and target.device == "cpu"
    held = min(target.max_tokens, window + ROLLBACK + SLACK) if slides else target.max_tokens
    return [held if kind == "sliding_attention" else target.max_tokens for kind in kinds[:layers]]


def size_of_shapes(
    shapes: Mapping[str, Sequence[int]], target: TargetSpec, dtype: str, ends: tuple[str, str] = ("", "")
) -> Size:
    """Work out the size of these weights, stored as passes/quantize/quantize.py does; without any cache.

    Args:
        shapes: By name.
        target: What the model is compiled for.
        dtype: What its weights are read as.
        ends: Names of the table and the head, if it has them.
    """
    matrices = vectors = table = head = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if len(shape) != 2 and ".experts." not in name:
            vectors += count
        elif name == ends[0]:
            table += count
        elif name == ends[1]:
            head += count
        else:
            matrices += count
    each, whole = (_weight_bytes(kind, target.block_size) for kind in (target.weights, "int8"))
    stored = matrices * each + vectors * 4
    if target.weights == "int4":
        # The table is in 8 bits, and the head, an eighth of it in 8 bits, is not the table even where they are tied.
        stored += table * whole + (head or table) * (each * 7 / 8 + whole / 8)
    else:
        stored += (table + head) * each
    count = matrices + vectors + table + head
    return Size(
        parameters=count,
        read=count * (4 if dtype == "float32" else 2),
        largest=4 * max((math.prod(shape) for shape in shapes.values()), default=0),
        bundle=int(stored),
    )


def _weight_bytes(weights: str, block: int) -> float:
    # Codes, one float32 scale a block, and for int4 a zero point of 4 bits (passes/quantize/quantize.py).
    return {"fp32": 4, "fp16": 2, "int8": 1 + 4 / block, "source": 1 + 4 / block, "int4": 0.5 + 4.5 / block}[weights]
