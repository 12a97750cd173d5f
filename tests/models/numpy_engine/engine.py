"""Two kinds of graph, each a .npz file of weights: a stack of dense layers, and a small decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Arrays, BoundArrays, BoundRun
from adaptc.runtime.bundle.manifest import GraphSpec
from adaptc.runtime.errors import EngineError

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]


class NumpyEngine:
    """One graph; see `Engine`."""

    def __init__(self, file: Path, spec: GraphSpec) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        try:
            with np.load(file) as content:
                self.weights: Weights = dict(content)
        except (OSError, ValueError) as error:
            raise EngineError(f"{file}: not a graph for NumPy: {error}") from error
        self.run = run_decoder if "embedding" in self.weights else run_dense

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        return _NumpyRun(self, feeds, outputs)

    def close(self) -> None:
        """See `Engine.close`."""


class _NumpyRun(BoundArrays):
    def __init__(self, engine: NumpyEngine, feeds: Arrays, outputs: Arrays) -> None:
        super().__init__(engine, feeds, outputs)
        self._engine = engine

    def __call__(self) -> None:
        self._engine.run(self._engine.weights, self.feeds, self.outputs)


def run_dense(weights: Weights, feeds: Arrays, outputs: Arrays) -> None:
    """ReLU layers `0.w`, `0.b`, `1.w`, ... from the only input to the only output."""
    [x], [result] = feeds.values(), outputs.values()
    for layer in range(len(weights) // 2):
        x = np.maximum(x @ weights[f"{layer}.w"] + weights[f"{layer}.b"], 0)
    result[...] = x


def run_decoder(weights: Weights, feeds: Arrays, outputs: Arrays) -> None:
    """Rotary grouped-query attention with residuals, over a cache that is updated in place."""
    ids, last = feeds["input_ids"], feeds["seqlens_k"]
    for slot in range(len(ids)):
        span = slice(int(last[slot]) + 1 - ids.shape[1], int(last[slot]) + 1)
        hidden = weights["embedding"][ids[slot]]
        for layer in range(sum(name.endswith(".q") for name in weights)):
            keys, values = (outputs[f"present.{layer}.{kind}"][slot] for kind in ("key", "value"))
            hidden = hidden + _attention(weights, layer, hidden, span, keys, values)
        outputs["logits"][slot] = hidden[int(feeds["logits_from"][0]) :] @ weights["head"]


def _attention(weights: Weights, layer: int, hidden: Floats, span: slice, keys: Floats, values: Floats) -> Floats:
    """[tokens, width] of the positions in `span`; adds their keys and values to the cache, [kv_heads, positions, d]."""
    q, k, v = (_heads(hidden @ weights[f"{layer}.{name}"], keys.shape[-1]) for name in "qkv")
    keys[:, span], values[:, span] = _rotated(weights, k, span), v
    q = _rotated(weights, q, span)
    groups = len(q) // len(keys)
    seen = slice(0, span.stop)
    scores = q @ np.repeat(keys[:, seen], groups, 0).transpose(0, 2, 1) / np.sqrt(keys.shape[-1])
    scores += np.triu(np.full(scores.shape[1:], -np.inf), span.start + 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ np.repeat(values[:, seen], groups, 0)
    result: Floats = mixed.transpose(1, 0, 2).reshape(len(hidden), -1).astype(np.float32) @ weights[f"{layer}.o"]
    return result


def _heads(x: Floats, size: int) -> Floats:
    """[tokens, heads · size] -> [heads, tokens, size]."""
    heads: Floats = x.reshape(len(x), -1, size).transpose(1, 0, 2)
    return heads


def _rotated(weights: Weights, x: Floats, span: slice) -> Floats:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = weights["cos"][span], weights["sin"][span]
    result: Floats = np.concatenate((first * cos - second * sin, first * sin + second * cos), axis=-1)
    return result
