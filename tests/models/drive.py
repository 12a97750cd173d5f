"""Run a tiny model's graph in whichever form a pass left it: one text in, logits of every token out.

The first tokens are read at once and run every block; the others are fed one by one under a threshold, so caches, gates
and the order of positions are all exercised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.partitions import run_split
from adaptc.ir.program import Program
from tests.models import tiny

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Mapping[str, npt.NDArray[Any]]]

BUCKET = 16
"""Cache positions that a TensorRT graph is run with."""

PROMPT = 6
"""Tokens that are read at once."""


def levels(shape: tuple[int, ...], threshold: float) -> npt.NDArray[np.float32]:
    """The threshold of every token, float32[batch, tokens]: that of the prompt runs every block."""
    result = np.full(shape, threshold, np.float32)
    result[:, :PROMPT] = -np.inf
    return result


def logits(program: Program, ids: npt.NDArray[Any], threshold: float = -np.inf) -> npt.NDArray[np.float32]:
    """Logits that a program's graph `lm` gives, float32[batch, tokens, vocab].

    Args:
        program: After any pass of a compile.
        ids: int64[batch, tokens], more than `PROMPT` tokens.
        threshold: What gates are compared with from token `PROMPT` on.
    """
    graph = program.graphs["lm"]
    if isinstance(graph, FxGraph):
        return _whole(
            graph.run, {str(n.target) for n in graph.module.graph.nodes if n.op == "placeholder"}, ids, threshold
        )
    assert isinstance(graph, OnnxGraph)
    names = {str(value.name) for value in graph.model.graph.inputs}
    if "lm" in program.partitions:
        split = program.partitions["lm"]
        return partitioned(
            graph, lambda feeds: run_split(split, feeds), ids, threshold if "threshold" in names else None
        )
    if "cache_positions" in names:
        return partitioned(graph, graph.run, ids, threshold if "threshold" in names else None)
    return _cached(graph, names, ids, threshold) if "seqlens_k" in names else _whole(graph.run, names, ids, threshold)


def _whole(run: Run, names: set[str], ids: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.float32]:
    """All tokens at once, without a cache."""
    positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    feeds = {"input_ids": ids, "position_ids": positions, "threshold": levels(ids.shape, threshold)}
    return run({name: value for name, value in feeds.items() if name in names})["logits"].astype(np.float32)


def _cached(graph: OnnxGraph, names: set[str], ids: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.float32]:
    """A prompt and then tokens, with the cache of ONNX Runtime's form."""
    batch, tokens = ids.shape
    past = tiny.empty_cache(graph, batch)
    parts = []
    for begin, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, tokens))]:
        feeds = {
            "input_ids": ids[:, begin:end],
            "seqlens_k": np.full(batch, end - 1, np.int32),
            "total_sequence_length": np.array(end, np.int32),
            "logits_from": np.array([0]),
            "threshold": levels(ids.shape, threshold)[:, begin:end],
            **past,
        }
        outputs = graph.run({name: value for name, value in feeds.items() if name in names})
        past = {name: outputs[name.replace("past", "present")] for name in past}
        parts.append(outputs["logits"].astype(np.float32))
    return np.concatenate(parts, 1)


def partitioned(
    graph: OnnxGraph, run: Run, ids: npt.NDArray[Any], threshold: float | None = None
) -> npt.NDArray[np.float32]:
    """A prompt and then tokens, with a cache of TensorRT's form that is written by hand.

    Args:
        graph: After `legalize`; its inputs say what the cache looks like.
        run: Runs the graph, or its partitions in a row.
        ids: As in `logits`.
        threshold: As in `logits`; None for a graph without gates.
    """
    batch, tokens = ids.shape
    cache: Arrays = {}
    for value in graph.model.graph.inputs:
        if (value.name or "").startswith("past.") and value.shape is not None:
            shape = [BUCKET if size == "kv_bucket" else size for size in (batch, *map(_size, value.shape[1:]))]
            cache[value.name or ""] = np.zeros(shape, np.float16)
    parts = []
    for begin, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, tokens))]:
        positions = np.tile(np.arange(begin, end, dtype=np.int32), (batch, 1))
        feeds = {"input_ids": ids[:, begin:end].astype(np.int32), "positions": positions, **cache}
        feeds["cache_positions"] = np.arange(BUCKET, dtype=np.int32)
        if threshold is not None:
            feeds["threshold"] = levels(ids.shape, threshold)[:, begin:end]
        outputs = run(feeds)
        for name, past in cache.items():
            new = outputs[name.replace("past", "new")]
            if name.endswith("key"):
                past[..., begin:end] = new.swapaxes(2, 3)
            else:
                past[:, :, begin:end] = new
        parts.append(outputs["logits"])
    return np.concatenate(parts, 1)


def _size(size: Any) -> Any:
    return size if isinstance(size, int) else str(size)
