"""Every place where one model can hand over to another, and its price.

Layers are the edges of a graph whose nodes are the states between them; a stitch is an edge from a state of one model
to a state of the other, and a path from ids to logits is a route:

    large:  0 ─> 1 ─> … ─> cut ─> … ─> n ─> logits
                            └──stitch──┐
    small:  0 ─> 1 ─> … ───────────> entry ─> … ─> m ─> logits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptc.ir.marks import LAYER
from adaptc.passes.quantize.linears import linear_weights
from adaptc.passes.stitch.slices import LayeredDecoder

OUT = -1
"""Number of the node behind a model's head."""


@dataclass(frozen=True, slots=True)
class Price:
    """Cost of a path, or of a part of it.

    Attributes:
        bytes: Bytes of weights read for a token.
        ms: Milliseconds of a decode step of one sequence: the model's measured time, shared out by bytes.
    """

    bytes: float
    ms: float


Candidate = tuple[int, int, Price]
"""Number of layers of the first model, first layer of the second one, price of the whole path."""


def stitches(
    decoders: Mapping[str, LayeredDecoder], first: str, second: str, prices: Mapping[str, tuple[Price, Price]]
) -> Iterator[Candidate]:
    """Yield every path with one stitch from the first model's ids to the second one's logits.

    Args:
        decoders: Both decoders, by name.
        first: Name of the model whose lower layers run.
        second: Name of the model whose upper layers run.
        prices: For each model, the price of a layer and of everything else.
    """
    import networkx as nx

    graph = nx.DiGraph()
    for name, decoder in decoders.items():
        layer, rest = prices[name]
        for index in range(decoder.layers):
            graph.add_edge((name, index), (name, index + 1), bytes=layer.bytes, ms=layer.ms)
        graph.add_edge((name, decoder.layers), (name, OUT), bytes=rest.bytes, ms=rest.ms)
    # A stitch is read as the layers are: as many bytes a weight.
    per_weight = prices[first][0].bytes / layer_weights(decoders[first])[0]
    ms_per_byte = prices[first][0].ms / prices[first][0].bytes
    own = per_weight * decoders[first].width * decoders[second].width
    for cut in range(1, decoders[first].layers + 1):
        for entry in range(decoders[second].layers):
            graph.add_edge((first, cut), (second, entry), bytes=own, ms=own * ms_per_byte, stitch=True)
    paths = {end: nx.shortest_path(graph, (second, end), (second, OUT)) for end in range(decoders[second].layers)}
    for cut, entry in ((a[1], b[1]) for a, b, edge in graph.edges(data=True) if edge.get("stitch")):
        path = [(first, index) for index in range(cut + 1)] + paths[entry]
        yield cut, entry, Price(*(nx.path_weight(graph, path, kind) for kind in ("bytes", "ms")))


def spread(candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
    """Return some candidates, evenly over what they cost; of equal cost those at like depth in both models."""
    ordered = sorted(candidates, key=lambda each: each[2].bytes)
    if len(ordered) <= keep:
        return ordered
    groups = np.array_split(np.arange(len(ordered)), keep)
    return [min((ordered[i] for i in group), key=lambda each: abs(each[0] - each[1])) for group in groups]


def layer_weights(decoder: LayeredDecoder) -> tuple[float, float]:
    """Return the number of weights in linear layers: of a decoder layer on average, and of everything else."""
    inside = rest = 0
    for name, (rows, columns) in linear_weights(decoder.graph).items():
        if LAYER.match(name):
            inside += rows * columns
        else:
            rest += rows * columns
    return inside / decoder.layers, rest


def whole_price(decoder: LayeredDecoder, prices: tuple[Price, Price]) -> Price:
    """Return the price of a whole model, from that of a layer and of everything else."""
    layer, rest = prices
    return Price(layer.bytes * decoder.layers + rest.bytes, layer.ms * decoder.layers + rest.ms)
