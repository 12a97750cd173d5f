"""Every place where one model can hand over to another, and its price.

Layers are the edges of a graph whose nodes are the states between them; a stitch is an edge from a state of one model
to a state of the other, or of the same one further up, and a path from ids to logits is a route:

    large:  0 ─> 1 ─> … ─> cut ─> … ─> n ─> logits
                            └──stitch──┐
    small:  0 ─> 1 ─> … ───────────> entry ─> … ─> m ─> logits
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptc.errors import SpecError
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


@dataclass(frozen=True, slots=True)
class StitchPlace:
    """Where one run of layers hands over to another, of another model or further up in the same one.

    Attributes:
        first: Model whose lower layers run.
        cut: Number of them.
        second: Model whose upper layers run.
        entry: First of them.
    """

    first: str
    cut: int
    second: str
    entry: int

    def __str__(self) -> str:
        return f"{self.first}:{self.cut},{self.second}:{self.entry}"

    @classmethod
    def parse(cls, text: str) -> StitchPlace:
        """Read what `str` of a place gives.

        Raises:
            SpecError: it has another form.
        """
        found = re.fullmatch(r"(\w+):(\d+),(\w+):(\d+)", text)
        if found is None:
            raise SpecError(f"{text}: no place; FIRST:CUT,SECOND:ENTRY is right, such as small:10,large:15")
        return cls(found[1], int(found[2]), found[3], int(found[4]))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place, with the price of the whole path through it."""

    place: StitchPlace
    price: Price


def stitches(decoders: Mapping[str, LayeredDecoder], prices: Mapping[str, tuple[Price, Price]]) -> Iterator[Candidate]:
    """Yield every path with one stitch: from each model into each other, and within each, with layers left out.

    Args:
        decoders: The decoders, by name.
        prices: For each model, the price of a layer and of everything else.
    """
    for first, second in itertools.product(decoders, repeat=2):
        yield from _between(decoders, first, second, prices)


def _between(
    decoders: Mapping[str, LayeredDecoder], first: str, second: str, prices: Mapping[str, tuple[Price, Price]]
) -> Iterator[Candidate]:
    import networkx as nx

    # A model that is stitched with itself is there twice, as a model below and one above.
    below, above = (0, first), (1, second)
    graph = nx.DiGraph()
    for side, name in (below, above):
        layer, rest = prices[name]
        for index in range(decoders[name].layers):
            graph.add_edge((side, index), (side, index + 1), bytes=layer.bytes, ms=layer.ms)
        graph.add_edge((side, decoders[name].layers), (side, OUT), bytes=rest.bytes, ms=rest.ms)
    # A stitch is read as the layers are: as many bytes a weight.
    per_weight = prices[first][0].bytes / layer_weights(decoders[first])[0]
    ms_per_byte = prices[first][0].ms / prices[first][0].bytes
    own = per_weight * decoders[first].width * decoders[second].width
    ends = range(decoders[second].layers)
    paths = {end: nx.shortest_path(graph, (1, end), (1, OUT)) for end in ends}
    for cut, entry in itertools.product(range(1, decoders[first].layers + 1), ends):
        if first == second and entry <= cut:
            continue  # nothing is left out
        graph.add_edge((0, cut), (1, entry), bytes=own, ms=own * ms_per_byte)
        path = [(0, index) for index in range(cut + 1)] + paths[entry]
        price = Price(*(nx.path_weight(graph, path, kind) for kind in ("bytes", "ms")))
        yield Candidate(StitchPlace(first, cut, second, entry), price)


def spread(candidates: Sequence[Candidate], keep: int, layers: Mapping[str, int]) -> list[Candidate]:
    """Return some candidates: of each pair of models as many, evenly over what they cost.

    Of equal cost those are taken that hand over at like depth in both models, or leave out the middle of one.

    Args:
        candidates: What there is.
        keep: How many to return, at most.
        layers: Number of layers of each model.
    """
    if len(candidates) <= keep:
        return sorted(candidates, key=lambda each: each.price.bytes)
    pairs: dict[tuple[str, str], list[Candidate]] = {}
    for each in sorted(candidates, key=lambda each: each.price.bytes):
        pairs.setdefault((each.place.first, each.place.second), []).append(each)

    def unlike(each: Candidate) -> float:
        below = each.place.cut / layers[each.place.first]
        above = each.place.entry / layers[each.place.second]
        return abs(below + above - 1) if each.place.first == each.place.second else abs(below - above)

    kept: list[Candidate] = []
    for left, group in zip(range(len(pairs), 0, -1), sorted(pairs.values(), key=len), strict=True):
        parts = np.array_split(np.arange(len(group)), min(len(group), (keep - len(kept)) // left))
        kept += [min((group[i] for i in part), key=unlike) for part in parts]
    return sorted(kept, key=lambda each: each.price.bytes)


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
