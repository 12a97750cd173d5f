"""Which layers run after which: what a `stitch` asks for, checked, and the graphs that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptc.errors import PassError
from adaptc.ir.graph import FxGraph
from adaptc.ir.marks import LAYER

if TYPE_CHECKING:
    import torch

    from adaptc.ir.program import Program
    from adaptc.passes.stitch.seams import Join, Seam
    from adaptc.passes.stitch.slices import Backbone
    from adaptc.passes.stitch.stitch import Source, Stitch
    from adaptc.runtime.bundle.skip_gates import SkipGates


def check_routes(trunk: Source, routes: Mapping[str, tuple[Source, ...]]) -> None:
    """Refuse ranges and orders that cannot run, whatever the models.

    Raises:
        PassError: no routes, a range that is empty or does not begin where it must, or a layer that would run twice
            or after one that follows it.
    """
    if not routes:
        raise PassError("routes: none; at least one path after the trunk is right")
    _check_range("trunk", trunk)
    if trunk.layer_range[0] != 0:
        raise PassError(f"trunk: layer_range {list(trunk.layer_range)}; the trunk begins at layer 0")
    for route, slices in routes.items():
        where = f"routes.{route}"
        if not route.isidentifier():
            raise PassError(f"{where}: no name; letters, digits and _ are right")
        if not slices:
            raise PassError(f"{where}: slices: none; the layers that follow the trunk are right")
        for each in slices:
            _check_range(where, each)
        _check_order(where, (trunk, *slices))


def _check_range(where: str, source: Source) -> None:
    first, last = source.layer_range
    if first < 0 or last <= first:
        raise PassError(
            f"{where}: layer_range {[first, last]} of {source.model} is empty; "
            "[FIRST, END] with END above FIRST is right"
        )


def _check_order(where: str, slices: tuple[Source, ...]) -> None:
    """Each layer runs once, and never after one that follows it in its own model."""
    import networkx as nx

    graph = nx.DiGraph()
    blocks = [(each.model, layer) for each in slices for layer in range(*each.layer_range)]
    twice = [block for index, block in enumerate(blocks) if block in blocks[:index]]
    if twice:
        model, layer = twice[0]
        raise PassError(f"{where}: layer {layer} of {model} runs twice; ranges that do not overlap are right")
    nx.add_path(graph, blocks)
    for model in dict.fromkeys(each.model for each in slices):
        own = sorted(layer for name, layer in blocks if name == model)
        nx.add_path(graph, [(model, layer) for layer in own])
    if not nx.is_directed_acyclic_graph(graph):
        cycle = nx.find_cycle(graph)
        (model, later), (_, earlier) = next((a, b) for a, b, *_ in cycle if a[0] != b[0] or b[1] < a[1])[:2]
        raise PassError(
            f"{where}: a cycle: layer {later} of {model} runs before layer {earlier} of {cycle[0][0][0]}, which it "
            "follows in its own model; rising layers are right"
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Layers `first` to `last - 1` of a backbone."""

    backbone: str
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What a `stitch` makes of a program's backbones.

    Attributes:
        backbones: By name.
        base: What every route begins with.
        routes: What follows, by route.
        joins: How a route's backbones are joined; None where nothing needs it.
    """

    backbones: Mapping[str, Backbone]
    base: Piece
    routes: Mapping[str, tuple[Piece, ...]]
    joins: Mapping[str, Join | None]

    @property
    def trunk(self) -> str:
        """Name of the backbone whose layers come first."""
        return self.base.backbone

    @property
    def width(self) -> int:
        """Of the state that the trunk gives."""
        return self.backbones[self.trunk].width

    @property
    def pieces(self) -> dict[str, tuple[Piece, ...]]:
        """What each graph is made of, by the graph's name."""
        return {"trunk": (self.base,)} | {f"tail.{route}": pieces for route, pieces in self.routes.items()}

    def seams(self, route: str) -> tuple[Seam | None, ...]:
        """For each piece of a route, the stitch before it; None where it goes on where the one before ended."""
        from adaptc.passes.stitch.seams import Seam

        found: list[Seam | None] = []
        before = self.base
        for piece in self.routes[route]:
            if (piece.backbone, piece.first) == (before.backbone, before.last):
                found.append(None)
            else:
                widths = self.backbones[before.backbone].width, self.backbones[piece.backbone].width
                number = sum(seam is not None for seam in found)
                source, target = (before.backbone, before.last), (piece.backbone, piece.first)
                found.append(Seam(route, number, source, target, widths))
            before = piece
        return tuple(found)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights of stitches and adapters."""
        return {name: shape for route in self.routes for name, shape in self.shapes_of(route).items()}

    def shapes_of(self, route: str) -> dict[str, tuple[int, ...]]:
        """Those of one route."""
        from adaptc.passes.stitch.seams import adapter_shapes

        join = self.joins[route]
        if join is None:
            return {}
        shapes = {n: s for seam in self.seams(route) if seam is not None for n, s in seam.shapes(join).items()}
        for piece in self.routes[route] if join.adapters else ():
            shapes |= adapter_shapes(
                self.backbones[piece.backbone], range(piece.first, piece.last), route, join.adapters
            )
        return shapes

    def costs(self) -> dict[str, int]:
        """For each route, how many weights of linear layers a token goes through, the trunk's included."""
        from adaptc.passes.quantize.linears import linear_weights

        def of(piece: Piece, *, head: bool) -> int:
            total = 0
            for name, (rows, columns) in linear_weights(self.backbones[piece.backbone].graph).items():
                layer = LAYER.match(name)
                inside = piece.first <= int(layer["index"]) < piece.last if layer else head
                total += rows * columns if inside else 0
            return total

        costs = {}
        for route, pieces in self.routes.items():
            own = sum(rows * columns for rows, columns in _matrices(self.shapes_of(route)))
            tails = sum(of(piece, head=piece is pieces[-1]) for piece in pieces)
            costs[route] = of(self.base, head=False) + tails + own
        return costs

    def gates(self, gates: Mapping[str, SkipGates]) -> dict[str, SkipGates]:
        """The backbones' gates, shared out to the graphs that their layers are in.

        Raises:
            PassError: two gated backbones meet in one graph, which has one threshold.
        """
        shared: dict[str, SkipGates] = {}
        for name, run in self.pieces.items():
            backbones: set[str] = set()
            layers: list[int] = []
            before = 0
            for piece in run:
                if piece.backbone in gates:
                    inside = [i for i in gates[piece.backbone].layers if piece.first <= i < piece.last]
                    layers += [before + i - piece.first for i in inside]
                    backbones |= {piece.backbone} if inside else set()
                before += piece.last - piece.first
            if len(backbones) > 1:
                raise PassError(
                    f"{name}: gates of {' and '.join(sorted(backbones))} in one route; of one model is right"
                )
            if layers:
                shared[name] = replace(gates[backbones.pop()], layers=tuple(layers), blocks=before)
        return shared


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(shape[0], shape[1]) for shape in shapes.values() if len(shape) == 2]


def layout(stitch: Stitch, program: Program) -> Layout:
    """Resolve a pass's options against a program.

    Raises:
        PassError: an unknown model, layers it does not have, a route without a head, other vocabularies, or a `stitch:`
            that is missing or joins nothing.
    """
    from adaptc.passes.stitch.seams import Join
    from adaptc.passes.stitch.slices import Backbone
    from adaptc.passes.stitch.stitch import route_sources

    base = _piece("trunk", stitch.trunk.source, program)
    routes = {
        name: tuple(_piece(f"routes.{name}", source, program) for source in route_sources(route))
        for name, route in stitch.routes.items()
    }
    used = dict.fromkeys(piece.backbone for pieces in ((base,), *routes.values()) for piece in pieces)
    backbones = {name: Backbone(name, program.graph(name, FxGraph)) for name in used}
    _check_vocabularies(program, tuple(used))
    places = {"trunk": (base,)} | {f"routes.{name}": pieces for name, pieces in routes.items()}
    for where, pieces in places.items():
        for piece in pieces:
            if piece.last > (count := backbones[piece.backbone].layers):
                raise PassError(
                    f"{where}: layer_range [{piece.first}, {piece.last}] of {piece.backbone}; it has layers 0 to "
                    f"{count - 1}, so END is at most {count}"
                )
        if where != "trunk" and pieces[-1].last != backbones[pieces[-1].backbone].layers:
            raise PassError(
                f"{where}: ends at layer {pieces[-1].last} of {pieces[-1].backbone}; a route ends with its model's "
                f"last layer, {backbones[pieces[-1].backbone].layers}, as the head reads that"
            )
    found = Layout(backbones, base, routes, {})
    joins: dict[str, Join | None] = {}
    for name, route in stitch.routes.items():
        seams = [seam for seam in found.seams(name) if seam is not None]
        if route.stitch is not None and not seams:
            raise PassError(f"routes.{name}: stitch: it goes on where the trunk ends; leave the stitch out")
        joins[name] = (route.stitch or Join()) if seams else None
    return replace(found, joins=joins)


def _piece(where: str, source: Source, program: Program) -> Piece:
    if source.model not in program.graphs:
        raise PassError(f"{where}: no model '{source.model}'; there are: {', '.join(program.graphs)}")
    return Piece(source.model, *source.layer_range)


def _check_vocabularies(program: Program, names: tuple[str, ...]) -> None:
    """A route's head must predict what the trunk's embedding reads."""
    known = [(name, program.backbones[name]) for name in names if name in program.backbones]
    for name, backbone in known[1:]:
        first, other = known[0]
        if backbone.vocab_size != other.vocab_size:
            raise PassError(
                f"'{name}' has {backbone.vocab_size:,} token ids, '{first}' {other.vocab_size:,}; models with one "
                "vocabulary are right"
            )
        if backbone.vocabulary and other.vocabulary and backbone.vocabulary != other.vocabulary:
            raise PassError(f"'{name}' and '{first}' call other tokens by one id; models with one vocabulary are right")


def graphs_of(plan: Layout, weights: Mapping[str, torch.Tensor]) -> dict[str, FxGraph]:
    """The trunk, and the tail of each route: the graphs of a stitched program."""
    graphs = {"trunk": trunk_graph(plan)}
    return graphs | {f"tail.{route}": tail_graph(plan, route, weights) for route in plan.routes}


def trunk_graph(plan: Layout) -> FxGraph:
    """Ids -> hidden."""
    from adaptc.passes.stitch.slices import Joined

    joined = Joined()
    joined.append(plan.backbones[plan.base.backbone], plan.base.first, plan.base.last, head=False)
    return joined.graph()


def tail_graph(plan: Layout, route: str, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Hidden -> logits.

    Args:
        plan: Where it is.
        route: Which.
        weights: Of stitches and adapters, by name; parameters among them stay what they are, so they can be trained.
    """
    from adaptc.passes.stitch.seams import add_adapters, add_stitch
    from adaptc.passes.stitch.slices import Joined

    joined, pieces = Joined(), plan.routes[route]
    joined.read(plan.backbones[pieces[0].backbone], plan.width)
    for place, (piece, seam) in enumerate(zip(pieces, plan.seams(route), strict=True)):
        if seam is not None:
            assert joined.state is not None
            joined.state = add_stitch(joined.module, joined.state, seam, weights)
        joined.append(plan.backbones[piece.backbone], piece.first, piece.last, head=place == len(pieces) - 1)
    graph = joined.graph()
    join = plan.joins[route]
    if join is not None and join.adapters:
        add_adapters(graph, route, weights)
    return graph
