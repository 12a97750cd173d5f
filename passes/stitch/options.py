"""Options of `stitch` as YAML has them: ranges of layers, routes, how decoders are joined, how a route is picked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptc.errors import PassError


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers of one model, one after another.

    Attributes:
        model: Name of the model in the spec.
        layer_range: First layer, and one more than the last.
    """

    model: str
    layer_range: tuple[int, int]

    @property
    def first(self) -> int:
        """Index of the first layer."""
        return self.layer_range[0]

    @property
    def end(self) -> int:
        """One more than the index of the last layer."""
        return self.layer_range[1]

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of one model, written directly or, as mergekit does, as the only entry of `sources`.

    Attributes:
        model: Name of the model in the spec.
        layer_range: First layer, and one more than the last.
        sources: A list with one entry that has `model` and `layer_range`.
    """

    model: str | None = None
    layer_range: tuple[int, int] | None = None
    sources: tuple[LayerRange, ...] = ()

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
    def layers(self) -> LayerRange:
        """The layers, whichever form was used."""
        if self.sources:
            return self.sources[0]
        assert self.model is not None
        assert self.layer_range is not None
        return LayerRange(self.model, self.layer_range)


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """How two runs of layers are joined.

    Attributes:
        kind: `linear`, or `residual`, which adds a small nonlinear part.
        init: What the stitch starts from, and stays at without training: the linear map that is nearest to the
            backbones' own states on the calibration text.
        rank: Width of the nonlinear part of `residual`, 1 to 4096.
        adapters: Rank of the adapters on the route's blocks, 0 (no adapters) to 4096.
    """

    kind: Literal["linear", "residual"] = "linear"
    init: Literal["least_squares"] = "least_squares"
    rank: int = 64
    adapters: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("rank", self.rank, 1), ("adapters", self.adapters, 0)):
            if not least <= value <= 4096:
                raise PassError(f"{name}: {value}; {least} to 4096 is right")


@dataclass(frozen=True, slots=True)
class Route:
    """The layers that follow the trunk on one route.

    Attributes:
        slices: Layers in the order they run; the last slice must end with its model's last layer, whose head is used.
        stitch: How runs of layers are joined; only where the route leaves a model or leaves layers out.
    """

    slices: tuple[Slice, ...]
    stitch: JoinOptions | None = None

    @property
    def layers(self) -> tuple[LayerRange, ...]:
        """The layers, in the order they run."""
        return tuple(each.layers for each in self.slices)


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How a route is picked for a request that names none.

    Attributes:
        weights: File of a trained router.
        target_share: Share of requests that go to the dearest route, 0 to 1.
        mean_cost: Mean bytes read for a token, as a share of the dearest route's, 0 to 1.
        max_loss: Most nats a token that the picked route may lose against the best one, on average.
        confidence: Probability with which `max_loss` holds on prompts the router has not seen, 0.5 to below 1.
    """

    weights: str
    target_share: float | None = None
    mean_cost: float | None = None
    max_loss: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        targets = [n for n in ("target_share", "mean_cost", "max_loss") if getattr(self, n) is not None]
        if len(targets) != 1:
            named = " and ".join(targets) or "none"
            raise PassError(f"router: {named} given; one of target_share, mean_cost, max_loss is right")
        for name in ("target_share", "mean_cost"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise PassError(f"router: {name}: {value}; 0 to 1 is right")
        if self.max_loss is not None and not self.max_loss > 0:
            raise PassError(f"router: max_loss: {self.max_loss}; nats above 0 are right")
        if not 0.5 <= self.confidence < 1:
            raise PassError(f"router: confidence: {self.confidence}; from 0.5 to below 1 is right")
