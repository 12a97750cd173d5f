"""stitch: layers of several pretrained decoders in one program, and a router that picks the path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from adaptc.errors import LoadError, PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.ir.stored.stitch_file import StitchMetadata, load_stitches
from adaptc.passes.base import Pass
from adaptc.passes.stitch.calibration import calibrated
from adaptc.passes.stitch.graphs import stitched_graphs
from adaptc.passes.stitch.least_squares import fitted
from adaptc.passes.stitch.offers import withheld
from adaptc.passes.stitch.options import Route, RouterOptions, Slice
from adaptc.passes.stitch.plan import StitchPlan, plan_stitch, tail_name
from adaptc.passes.stitch.rules import TRUNK, check_ranges
from adaptc.runtime.bundle.plan import RouterRecord, Run, Switch

if TYPE_CHECKING:
    import torch

GATE = "router"
"""Name of what picks a route."""


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
    router: RouterOptions | None = None

    def __post_init__(self) -> None:
        check_ranges(self.trunk.layers, self.routes)

    def files(self) -> dict[str, str]:
        files = {"weights": self.weights, "router": self.router.weights if self.router is not None else None}
        return {name: path for name, path in files.items() if path is not None}

    def at(self, base: Path) -> Pass:
        paths = {name: str(base / value) for name, value in self.files().items()}
        router = replace(self.router, weights=paths["router"]) if self.router is not None else None
        return replace(self, weights=paths.get("weights"), router=router)

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def plan(self, program: Program) -> StitchPlan:
        """Resolve the options against a program's decoders; see `plan_stitch`."""
        return plan_stitch(self.trunk.layers, self.routes, program)

    def apply(self, program: Program) -> Program:
        if not program.at_level(FxGraph):
            return program
        plan = self.plan(program)
        graph_runs = plan.graph_runs()
        routes = {route: tail_name(route) for route in self.routes}
        trained = self._trained()
        router, router_weights = self._router(plan, trained)
        return replace(
            program,
            graphs=stitched_graphs(plan, self._weights(plan, program, trained)),
            plan=(Run(TRUNK), Switch(GATE, routes, router)),
            model_of={graph: runs[-1].model for graph, runs in graph_runs.items()},
            joined=frozenset(graph_runs),
            samples={TRUNK: program.samples[plan.trunk.model]} if plan.trunk.model in program.samples else {},
            gates=plan.gates(program.gates),
            router_weights=router_weights,
        )

    def _trained(self) -> tuple[StitchMetadata, dict[str, torch.Tensor]] | None:
        """Return what the file of trained stitches holds; None without one."""
        if self.weights is None:
            return None
        try:
            return load_stitches(Path(self.weights))
        except LoadError as error:
            raise PassError(str(error)) from error

    def _weights(
        self, plan: StitchPlan, program: Program, trained: tuple[StitchMetadata, dict[str, torch.Tensor]] | None
    ) -> dict[str, torch.Tensor]:
        """Return the trained weights, or a least-squares fit."""
        shapes = plan.shapes()
        if self.weights is None or trained is None:
            if not shapes:
                return {}
            if plan.trunk.model not in program.samples:
                raise PassError("no calibration text; a stitch is fitted to it, or 'weights' names a trained one")
            return fitted(plan, program.samples[plan.trunk.model])
        file = Path(self.weights).name
        metadata, weights = trained
        for name, sha256 in metadata.models.items():
            backbone = program.backbones.get(name)
            if backbone is not None and backbone.sha256 and backbone.sha256 != sha256:
                raise PassError(f"{file}: stitches of other weights than {backbone.origin}; train again")
        for name, shape in shapes.items():
            if name not in weights or tuple(weights[name].shape) != shape:
                stored = list(weights[name].shape) if name in weights else "missing"
                raise PassError(f"{file}: {name}: {stored}; shape {list(shape)} is right: train for these routes")
        return {name: weights[name] for name in shapes}

    def _router(
        self, plan: StitchPlan, trained: tuple[StitchMetadata, dict[str, torch.Tensor]] | None
    ) -> tuple[RouterRecord | None, dict[str, bytes]]:
        """Return the router, and its file's content by its name in the bundle; none if requests name their routes."""
        if self.router is None:
            return None, {}
        quality = trained[0].quality if trained is not None else {}
        # A route without a stitch is a model as it is.
        names = {r: r if join is not None else f"model {plan.trunk.model}" for r, join in plan.joins.items()}
        kl = {route: quality[name]["kl"] for route, name in names.items() if "kl" in quality.get(name, {})}
        record = calibrated(self.router, plan.costs(), withheld(plan.costs(), kl))
        return record, {record.file: Path(self.router.weights).read_bytes()}
