"""What a `stitch` makes of a program's decoders: which layers run after which, with which weights, at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import LAYER
from adaptc.passes.quantize.linears import linear_weights
from adaptc.passes.stitch.options import JoinOptions, LayerRange, Route
from adaptc.passes.stitch.rules import TRUNK, DecoderFacts, follows, stitch_faults, used_models
from adaptc.passes.stitch.seams import Seam, adapter_shapes
from adaptc.passes.stitch.slices import LayeredDecoder

if TYPE_CHECKING:
    from adaptc.ir.program import Program
    from adaptc.runtime.bundle.skip_gates import SkipGates


def tail_name(route: str) -> str:
    """Name of the graph that a route runs after the trunk."""
    return f"tail.{route}"


@dataclass(frozen=True, eq=False)
class StitchPlan:
    """The layers of a stitched program.

    Attributes:
        decoders: The decoders that layers come from, by name.
        trunk: What every route begins with.
        routes: What follows, by route.
        joins: How a route's runs of layers are joined; None where nothing needs it.
    """

    decoders: Mapping[str, LayeredDecoder]
    trunk: LayerRange
    routes: Mapping[str, tuple[LayerRange, ...]]
    joins: Mapping[str, JoinOptions | None]

    @property
    def width(self) -> int:
        """Size of the state that the trunk gives."""
        return self.decoders[self.trunk.model].width

    def graph_runs(self) -> dict[str, tuple[LayerRange, ...]]:
        """The layers of each graph, by the graph's name: the trunk first, then the tail of each route."""
        return {TRUNK: (self.trunk,)} | {tail_name(route): runs for route, runs in self.routes.items()}

    def seams(self, route: str) -> tuple[Seam | None, ...]:
        """For each run of a route, the seam before it; None where it goes on where the one before it ended."""
        seams: list[Seam | None] = []
        before = self.trunk
        for run in self.routes[route]:
            if follows(before, run):
                seams.append(None)
            else:
                widths = self.decoders[before.model].width, self.decoders[run.model].width
                number = sum(seam is not None for seam in seams)
                seams.append(Seam(route, number, (before.model, before.end), (run.model, run.first), widths))
            before = run
        return tuple(seams)

    def all_seams(self) -> list[Seam]:
        """The seams of every route."""
        return [seam for route in self.routes for seam in self.seams(route) if seam is not None]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights of stitches and adapters."""
        return {name: shape for route in self.routes for name, shape in self.shapes_of(route).items()}

    def shapes_of(self, route: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one route's weights of stitches and adapters."""
        join = self.joins[route]
        if join is None:
            return {}
        shapes = {n: s for seam in self.seams(route) if seam is not None for n, s in seam.shapes(join).items()}
        for run in self.routes[route] if join.adapters else ():
            shapes |= adapter_shapes(self.decoders[run.model], range(*run.layer_range), route, join.adapters)
        return shapes

    def costs(self) -> dict[str, int]:
        """For each route, how many weights of linear layers a token goes through, the trunk's included."""
        costs = {}
        for route, runs in self.routes.items():
            own = sum(shape[0] * shape[1] for shape in self.shapes_of(route).values() if len(shape) == 2)
            tail = sum(self._linear_weights(run, head=run is runs[-1]) for run in runs)
            costs[route] = self._linear_weights(self.trunk, head=False) + tail + own
        return costs

    def _linear_weights(self, run: LayerRange, *, head: bool) -> int:
        """How many weights the linear layers of a run have; with the decoder's head, if asked for."""
        total = 0
        for name, (rows, columns) in linear_weights(self.decoders[run.model].graph).items():
            layer = LAYER.match(name)
            inside = run.first <= int(layer["index"]) < run.end if layer else head
            total += rows * columns if inside else 0
        return total

    def gates(self, gates: Mapping[str, SkipGates]) -> dict[str, SkipGates]:
        """The decoders' skip gates, shared out to the graphs that their layers are in.

        Raises:
            PassError: two decoders with gates meet in one graph, which has one threshold.
        """
        shared: dict[str, SkipGates] = {}
        for name, runs in self.graph_runs().items():
            models: set[str] = set()
            layers: list[int] = []
            before = 0
            for run in runs:
                if run.model in gates:
                    inside = [i for i in gates[run.model].layers if run.first <= i < run.end]
                    layers += [before + i - run.first for i in inside]
                    models |= {run.model} if inside else set()
                before += run.count
            if len(models) > 1:
                raise PassError(f"{name}: gates of {' and '.join(sorted(models))} in one route; of one model is right")
            if layers:
                shared[name] = replace(gates[models.pop()], layers=tuple(layers), blocks=before)
        return shared


def plan_stitch(trunk: LayerRange, routes: Mapping[str, Route], program: Program) -> StitchPlan:
    """Resolve the options of a `stitch` against a program's decoders.

    Args:
        trunk: Layers that every route begins with.
        routes: What follows, by name.
        program: With a captured graph for each model.

    Raises:
        PassError: the first of `stitch_faults`, or a graph that cannot be cut into layers.
    """
    used = [name for name in used_models(trunk, routes) if name in program.graphs]
    decoders = {name: LayeredDecoder(name, program.graph(name, FxGraph)) for name in used}
    facts = {name: _facts(decoder, program) for name, decoder in decoders.items()}
    for fault in stitch_faults(trunk, routes, facts, program.graphs):
        raise PassError(fault)
    plan = StitchPlan(decoders, trunk, {name: route.layers for name, route in routes.items()}, {})
    joins = {name: (route.stitch or JoinOptions()) if any(plan.seams(name)) else None for name, route in routes.items()}
    return replace(plan, joins=joins)


def _facts(decoder: LayeredDecoder, program: Program) -> DecoderFacts:
    """What the rules ask of a captured decoder."""
    if decoder.name not in program.backbones:
        return DecoderFacts(decoder.layers, rms_norm=decoder.rms_norm)
    backbone = program.backbones[decoder.name]
    return DecoderFacts(decoder.layers, backbone.vocab_size, backbone.vocabulary, decoder.rms_norm)
