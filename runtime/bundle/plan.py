"""How graphs are run, in a program and in a bundle: one after another, or one of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptc.runtime.bundle.strict_json import ExtendedFloat


@dataclass(frozen=True, slots=True)
class Run:
    """Plan step: run a graph once.

    Attributes:
        graph: Its name.
    """

    graph: str

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that may run."""
        return (self.graph,)

    def __str__(self) -> str:
        return f"run {self.graph}"


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """What picks a route for a request, as it was calibrated; `runtime.model.router.RouterNet` predicts.

    Attributes:
        file: The predictor's weights, as safetensors; a file of the bundle.
        threshold: A request takes the cheapest route whose predicted loss is at most this, in nats a token.
        levels: (mean cost as a share of the dearest route's, threshold), the cost falling from (1, -inf) as the
            threshold rises to inf: what a budget moves along.
        bound: What the threshold was calibrated to, and on how many held-out prompts it was shown.
        withheld: Routes that are taken only by requests that name them, each with the reason.
    """

    file: str
    threshold: ExtendedFloat
    levels: tuple[tuple[float, ExtendedFloat], ...]
    bound: Mapping[str, Any]
    withheld: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Switch:
    """Plan step: run one of several graphs, the same one for the whole of a request.

    Attributes:
        gate: Name of what picks the route.
        routes: The graph of each route; the first is taken where nothing picks.
        router: How the gate decides; None if a request must name its route, or takes the first.
    """

    gate: str
    routes: Mapping[str, str]
    router: RouterRecord | None = None

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that may run."""
        return tuple(self.routes.values())

    def __str__(self) -> str:
        return f"switch {self.gate}: " + ", ".join(f"{route} -> {graph}" for route, graph in self.routes.items())
