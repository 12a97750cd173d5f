"""How many positions a text may have, and which layers of a graph keep the newest of them only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.runtime.bundle.cache_window import CacheWindow
from adaptc.runtime.bundle.names import KEY, cache_tensor, window_lengths

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_TOKENS = "adaptc.max_tokens"
"""Metadata of a graph with layers that keep a window: positions of a text, at most. No other layer may say it."""


def keep_positions(graph: OnnxGraph, max_tokens: int) -> None:
    """Note in a graph how many positions a text may have, before the caches of its layers say it no more."""
    graph.model.metadata_props[_MAX_TOKENS] = str(max_tokens)


def max_tokens_of(graph: OnnxGraph) -> int:
    """How many positions a text may have: those of its layers' caches, [batch, kv_heads, positions, head_dim]."""
    noted = graph.model.metadata_props.get(_MAX_TOKENS)
    return int(noted) if noted else max(int(shape[2]) for shape in cached_keys(graph).values())


def cached_keys(graph: OnnxGraph) -> dict[int, tuple[int | str, ...]]:
    """Shapes of the cached keys by layer."""
    named = [(cache_tensor(value.name), value) for value in graph.model.graph.inputs]
    return {tensor.layer: sizes(value) for tensor, value in named if tensor is not None and tensor.kind == KEY}


def cache_windows(graph: OnnxGraph) -> tuple[CacheWindow, ...]:
    """Layers of a graph that keep the newest positions only, by number of their inputs."""
    inputs = {value.name: value for value in graph.model.graph.inputs}
    held = cached_keys(graph)
    windows: list[CacheWindow] = []
    while (lengths := inputs.get(window_lengths(len(windows)))) is not None:
        nodes = [use.node for use in lengths.uses()]
        layers = {_layer(node): node.attributes.get_int("local_window_size", 0) for node in nodes}
        [window] = {*layers.values()}
        [positions] = {int(held[layer][2]) for layer in layers}
        windows.append(CacheWindow(tuple(sorted(layers)), window, positions))
    return tuple(windows)


def _layer(node: ir.Node) -> int:
    """The layer whose cache an attention reads."""
    tensors = (cache_tensor(value.name) for value in node.inputs if value is not None)
    return next(tensor.layer for tensor in tensors if tensor is not None)
