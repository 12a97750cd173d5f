"""The sizes that engines are built for: rows, tokens and KV buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptc.runtime.backends.cuda.kernels.skinny_gemm import LEAST_SM, ROWS
from adaptc.runtime.backends.tensorrt.library import Profile
from adaptc.runtime.bundle.manifest import GraphSpec
from adaptc.runtime.bundle.partitions import PartitionGraph

FIRST_BUCKET = 256
"""Fewest positions of the cache that engines are built for: smaller caches cost no less."""


def plain_graph(spec: GraphSpec) -> PartitionGraph:
    """A graph with its weights, in the form of a partition."""
    return PartitionGraph(spec.file, spec.inputs, spec.outputs, weights=0)


def buckets(max_tokens: int) -> tuple[int, ...]:
    """KV buckets of a step by default: doubled from 256 up to `max_tokens`."""
    sizes = []
    size = FIRST_BUCKET
    while size < max_tokens:
        sizes.append(size)
        size *= 2
    return (*sizes, max_tokens)


def sizes_of(graph: PartitionGraph) -> set[str]:
    """The sizes that a graph is built for: "batch", "tokens", "kv_bucket"."""
    return {size for spec in graph.inputs for size in spec.shape if isinstance(size, str)}


def profile(graph: PartitionGraph, sizes: Mapping[str, tuple[int, int, int]]) -> Profile:
    """Shapes of a graph's inputs for a range of sizes."""

    def shapes(which: int) -> dict[str, tuple[int, ...]]:
        return {
            spec.name: tuple(size if isinstance(size, int) else sizes[size][which] for size in spec.shape)
            for spec in graph.inputs
        }

    return Profile(shapes(0), shapes(1), shapes(2))


def wanted(
    graph: PartitionGraph,
    batches: Sequence[int],
    kv_buckets: Sequence[int],
    chunk: int,
    sm: Sequence[int] = (LEAST_SM,),
) -> list[dict[str, tuple[int, int, int]]]:
    """The sizes that a graph's engines are built for: steps of fixed sizes, and prompts of any length up to `chunk`.

    A skinny GEMM needs none (cuda/kernels/skinny_gemm.py), if all the capabilities `sm` have the instructions for it.
    """
    names = sizes_of(graph)
    few = ROWS if graph.gemm and min(sm) >= LEAST_SM else 0
    found: list[dict[str, tuple[int, int, int]]] = []
    for batch in batches:
        for bucket in kv_buckets if batch > few else ():
            full = {"batch": (batch,) * 3, "tokens": (1, 1, 1), "kv_bucket": (bucket,) * 3}
            found.append({name: full[name] for name in sorted(names)})
    if chunk > max(1, few):
        best = min(chunk, 128)
        full = {
            "batch": (1, 1, 1),
            "tokens": (1, best, chunk),
            "kv_bucket": (kv_buckets[0], kv_buckets[0], kv_buckets[-1]),
        }
        found.append({name: full[name] for name in sorted(names)})
    return [sizes for index, sizes in enumerate(found) if sizes not in found[:index]]
