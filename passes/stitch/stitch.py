"""stitch: layers of several pretrained decoders in one program, and a router that picks the path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from adaptc.errors import LoadError, PassError
from adaptc.ir.graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.stitch.seams import Join
from adaptc.runtime.bundle.plan import RouterRecord, Run, Switch

if TYPE_CHECKING:
    import torch

    from adaptc.passes.stitch.paths import Layout

TRUNK = "trunk"
"""Name of the graph that every route begins with."""

GATE = "router"
"""What picks a route."""


@dataclass(frozen=True, slots=True)
class Source:
    """Layers of one model.

    Attributes:
        model: Its name in the spec.
        layer_range: First layer, and one more than the last.
    """

    model: str
    layer_range: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of one model, either so or, as in mergekit, as the only one of `sources`.

    Attributes:
        model: Its name in the spec.
        layer_range: First layer, and one more than the last.
        sources: The same as a list of one.
    """

    model: str | None = None
    layer_range: tuple[int, int] | None = None
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.sources and (self.model is not None or self.layer_range is not None):
            raise PassError("sources: beside model and layer_range; one of the two forms is right")
        if len(self.sources) > 1:
            raise PassError(
                f"sources: {len(self.sources)} models in one slice; a stitch runs layers one after another and merges "
                "no weights, so one is right"
            )
        if not self.sources and (self.model is None or self.layer_range is None):
            raise PassError("a slice without model and layer_range; {model: NAME, layer_range: [FIRST, END]} is right")

    @property
    def source(self) -> Source:
        """The layers, whichever form was used."""
        if self.sources:
            return self.sources[0]
        assert self.model is not None
        assert self.layer_range is not None
        return Source(self.model, self.layer_range)


@dataclass(frozen=True, slots=True)
class Route:
    """What follows the trunk.

    Attributes:
        slices: Layers, in the order they run; the last must end with its model's last layer, whose head is used.
        stitch: How backbones are joined; only where the route leaves a backbone or leaves layers out.
    """

    slices: tuple[Slice, ...]
    stitch: Join | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """How a route is picked where a request names none.

    Attributes:
        weights: File of a trained router.
        target_share: Share of requests that go to the dearest route, 0 to 1.
        mean_cost: Mean bytes read for a token, as a share of the dearest route's, 0 to 1.
        max_loss: Most nats a token that the picked route may lose against the best one, on average.
        confidence: Of `max_loss`: on held-out prompts it holds with this probability.
    """

    weights: str
    target_share: float | None = None
    mean_cost: float | None = None
    max_loss: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        given = [n for n in ("target_share", "mean_cost", "max_loss") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise PassError(f"router: {found} given; one of target_share, mean_cost, max_loss is right")
        for name in ("target_share", "mean_cost"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise PassError(f"router: {name}: {value}; 0 to 1 is right")
        if self.max_loss is not None and not self.max_loss > 0:
            raise PassError(f"router: max_loss: {self.max_loss}; nats above 0 are right")
        if not 0.5 <= self.confidence < 1:
            raise PassError(f"router: confidence: {self.confidence}; from 0.5 to below 1 is right")


@dataclass(frozen=True, slots=True)
class Stitch(Pass):
    """Run the lower layers of one model and then, by route, its own upper layers or those of another.

    Before:  large: ids -> layers 0 … 27 -> logits;  small: ids -> layers 0 … 23 -> logits
    After:   run trunk: ids -> large 0 … 13 -> hidden;  switch router:
               large: hidden -> large 14 … 27 -> logits
               small: hidden -> stitch -> small 9 … 23 -> logits

    The trunk runs once, whatever the route. Weights are shared: a block that two routes use is in the bundle once.
    Every route has a KV cache of its own. A stitch reads the normed state; it is a linear map with a bias, or with a
    small nonlinear part (`residual`), and may come with low-rank adapters on the route's blocks. Without `weights` it
    is fitted to the calibration text by least squares; `adaptc train` trains it end to end.

    Needs: FX level, after skip_ffn, before gptq and lower; models with one vocabulary.
    Shapes: hidden float32[batch, tokens, width of the trunk's model].
    Cost: a least-squares fit runs each model over the calibration text once.

    Attributes:
        trunk: The layers that every route begins with, from layer 0.
        routes: What follows, by name; the first is taken where nothing else decides.
        weights: File of trained stitches.
        router: How a route is picked for each request.

    Raises:
        PassError: ranges that are empty, overlap or leave the model, a cycle, an unknown model, other vocabularies,
            weights of other shapes.

    Reference: Hu et al., "StitchLLM", ACL 2025; Pan et al., "Stitchable Neural Networks", arXiv:2302.06586.
    """

    name: ClassVar[str] = "stitch"
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"bottom": "trunk"})
    trunk: Slice
    routes: dict[str, Route]
    weights: str | None = None
    router: Routing | None = None

    def __post_init__(self) -> None:
        from adaptc.passes.stitch.paths import check_routes

        check_routes(self.trunk.source, {name: route_sources(route) for name, route in self.routes.items()})

    def files(self) -> dict[str, str]:
        given = {"weights": self.weights, "router": self.router.weights if self.router is not None else None}
        return {name: path for name, path in given.items() if path is not None}

    def at(self, base: Path) -> Pass:
        paths = {name: str(base / value) for name, value in self.files().items()}
        router = replace(self.router, weights=paths["router"]) if self.router is not None else None
        return replace(self, weights=paths.get("weights"), router=router)

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self, program: Program) -> Program:
        # Imported here: these need torch, and a spec may be read without.
        from adaptc.passes.stitch.paths import graphs_of, layout

        if not program.at_level(FxGraph):
            return program
        plan = layout(self, program)
        graphs = graphs_of(plan, self._weights(plan, program))
        routes = {route: f"tail.{route}" for route in self.routes}
        router, router_weights = self._router(plan)
        return replace(
            program,
            graphs=graphs,
            plan=(Run(TRUNK), Switch(GATE, routes, router)),
            model_of={name: pieces[-1].backbone for name, pieces in plan.pieces.items()},
            joined=frozenset(graphs),
            samples={TRUNK: program.samples[plan.trunk]} if plan.trunk in program.samples else {},
            gates=plan.gates(program.gates),
            router_weights=router_weights,
        )

    def _weights(self, plan: Layout, program: Program) -> dict[str, torch.Tensor]:
        """The trained weights, or a least-squares fit."""
        from adaptc.ir.stitch_file import load_stitches
        from adaptc.passes.stitch.least_squares import fitted

        wanted = plan.shapes()
        if self.weights is None:
            if not wanted:
                return {}
            if plan.trunk not in program.samples:
                raise PassError("no calibration text; a stitch is fitted to it, or 'weights' names a trained one")
            return fitted(plan, program.samples[plan.trunk])
        file = Path(self.weights).name
        try:
            card, weights = load_stitches(Path(self.weights))
        except LoadError as error:
            raise PassError(str(error)) from error
        for name, sha256 in card.models.items():
            backbone = program.backbones.get(name)
            if backbone is not None and backbone.sha256 and backbone.sha256 != sha256:
                raise PassError(f"{file}: stitches of other weights than {backbone.origin}; train again")
        for name, shape in wanted.items():
            if name not in weights or tuple(weights[name].shape) != shape:
                found = list(weights[name].shape) if name in weights else "missing"
                raise PassError(f"{file}: {name}: {found}; shape {list(shape)} is right: train for these routes")
        return {name: weights[name] for name in wanted}

    def _router(self, plan: Layout) -> tuple[RouterRecord | None, dict[str, bytes]]:
        """The router, and its file's content by the file's name in the bundle; none if requests name their routes."""
        if self.router is None:
            return None, {}
        from adaptc.passes.stitch.routing import calibrated

        record = calibrated(self.router, plan.costs())
        return record, {record.file: Path(self.router.weights).read_bytes()}


def route_sources(route: Route) -> tuple[Source, ...]:
    """The layers of a route, in order."""
    return tuple(each.source for each in route.slices)
