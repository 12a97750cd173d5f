"""Where can one model hand over to another? Every (cut, entry), priced, and the affordable ones measured.

Layers are the edges of a graph whose nodes are the states between them; a stitch is an edge from a state of one model
to a state of the other, and a path from ids to logits is a route:

    large:  0 ─> 1 ─> … ─> cut ─> … ─> n ─> logits
                            └──stitch──┐
    small:  0 ─> 1 ─> … ───────────> entry ─> … ─> m ─> logits
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.graph import FxGraph
from adaptc.ir.marks import LAYER
from adaptc.ir.program import Program
from adaptc.passes.quantize.linears import linear_weights
from adaptc.passes.stitch.options import JoinOptions, Route, Slice
from adaptc.passes.stitch.slices import LayeredDecoder
from adaptc.passes.stitch.stitch import Stitch
from adaptc.runtime.bundle.folder import Bundle
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.find import find_source
from adaptc.spec.schema import Spec
from adaptc.training.recipe import Recipe
from adaptc.training.stitches.measure import Quality, measure
from adaptc.training.stitches.objective import StitchObjective, stitch_training

Stage = Callable[[str], None]
Node = tuple[str, int]
OUT = -1
"""The node behind a model's head."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a search goes.

    Attributes:
        every: Cuts and entries at every so many layers.
        keep: How many stitches are measured, spread evenly over what they cost.
        tokens: Of the calibration text that is measured on.
        threads: Of the engine that steps are timed in.
    """

    every: int
    keep: int
    tokens: int
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """What one layer, or everything else, of a model costs.

    Attributes:
        bytes: Weights read for a token.
        ms: Of a decode step of one row: the model's measured time, shared out by bytes.
    """

    bytes: float
    ms: float


@dataclass(frozen=True, slots=True)
class Donor:
    """A model by itself."""

    name: str
    bytes: float
    ms: float
    log_perplexity: float
    kl: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A stitch that was measured.

    Attributes:
        cut: Layers of the first model below it.
        entry: First layer of the second model above it.
        bytes: Weights read for a token, the stitch's own included.
        ms: Of a decode step of one row.
        log_perplexity: Nats a token, on the measured text.
        kl: KL(teacher || it), nats a token.
    """

    cut: int
    entry: int
    bytes: float
    ms: float
    log_perplexity: float
    kl: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        first: The model whose lower layers run.
        second: The model whose upper layers run.
        stitches: Those measured, the closest to the teacher first.
        donors: Both models.
        enumerated: How many stitches there are.
        dearer: How many of them read as much as the dearer donor, or more; these are not measured.
    """

    first: str
    second: str
    stitches: tuple[Measured, ...]
    donors: tuple[Donor, ...]
    enumerated: int
    dearer: int

    @property
    def most_bytes(self) -> float:
        """Of the dearer donor."""
        return max(donor.bytes for donor in self.donors)

    def above(self, stitch: Measured) -> float:
        """How far a stitch's log-perplexity is above the line between the donors at its cost; below 0 is good."""
        (x0, y0), (x1, y1) = sorted((donor.bytes, donor.log_perplexity) for donor in self.donors)
        line = y0 + (y1 - y0) * (stitch.bytes - x0) / (x1 - x0) if x1 > x0 else min(y0, y1)
        return stitch.log_perplexity - line

    def record(self) -> dict[str, Any]:
        """As plain values."""
        stitches = [asdict(each) | {"above_line": self.above(each)} for each in self.stitches]
        return {**asdict(self), "stitches": stitches}


def search(spec: Spec, base: Path, recipe: Recipe, limits: Limits, device: str, cache: Cache, stage: Stage) -> Found:
    """Enumerate, price and measure.

    Args:
        spec: Of two models; the first one's lower layers run. Its passes are not looked at.
        base: Folder that relative paths in the spec start from.
        recipe: How stitches are trained before they are measured; 0 steps leave them at least squares.
        limits: How far to go.
        device: "cpu" or "cuda".
        cache: For the models' own bundles, whose steps are timed.
        stage: Told of each stage as it begins.

    Raises:
        SpecError: not two models.
        AdaptcError: a model cannot be read, the vocabularies differ, the text is too short.
    """
    if len(spec.models) != 2:
        raise SpecError(f"models: {', '.join(spec.models)}; two are right for a search")
    first, second = spec.models
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    text = calibration_text(spec.calibration, base)
    program = program_from_sources(sources, text, stage)
    backbones = {name: LayeredDecoder(name, program.graph(name, FxGraph)) for name in spec.models}
    prices = {name: _prices(spec, name, backbone, base, limits, cache, stage) for name, backbone in backbones.items()}
    all_ = list(stitches(backbones, first, second, prices))
    dearest = max(_whole(backbones[name], prices[name]).bytes for name in backbones)
    fitting = [each for each in all_ if each[2].bytes < dearest]
    chosen = spread([each for each in fitting if not (each[0] % limits.every or each[1] % limits.every)], limits.keep)
    measured, alone = _measure(program, first, second, chosen, recipe, limits, device, stage)
    donors = tuple(
        Donor(name, *_values(_whole(backbones[name], prices[name])), alone[name].log_perplexity, alone[name].kl)
        for name in backbones
    )
    found = [
        Measured(cut, entry, price.bytes, price.ms, measured[cut, entry].log_perplexity, measured[cut, entry].kl)
        for cut, entry, price in chosen
    ]
    ranked = tuple(sorted(found, key=lambda each: each.kl))
    return Found(first, second, ranked, donors, len(all_), len(all_) - len(fitting))


def stitches(
    backbones: Mapping[str, LayeredDecoder], first: str, second: str, prices: Mapping[str, tuple[Price, Price]]
) -> Iterator[tuple[int, int, Price]]:
    """Every path from the first model's ids to the second one's logits with one stitch: cut, entry, price."""
    import networkx as nx

    graph = nx.DiGraph()
    for name, backbone in backbones.items():
        layer, rest = prices[name]
        for index in range(backbone.layers):
            graph.add_edge((name, index), (name, index + 1), bytes=layer.bytes, ms=layer.ms)
        graph.add_edge((name, backbone.layers), (name, OUT), bytes=rest.bytes, ms=rest.ms)
    # A stitch is read as the layers are: as many bytes a weight.
    per_weight = prices[first][0].bytes / _weights(backbones[first])[0]
    ms_per_byte = prices[first][0].ms / prices[first][0].bytes
    own = per_weight * backbones[first].width * backbones[second].width
    for cut in range(1, backbones[first].layers + 1):
        for entry in range(backbones[second].layers):
            graph.add_edge((first, cut), (second, entry), bytes=own, ms=own * ms_per_byte, stitch=True)
    ways = {end: nx.shortest_path(graph, (second, end), (second, OUT)) for end in range(backbones[second].layers)}
    for cut, entry in ((a[1], b[1]) for a, b, given in graph.edges(data=True) if given.get("stitch")):
        path = [(first, index) for index in range(cut + 1)] + ways[entry]
        yield cut, entry, Price(*(nx.path_weight(graph, path, kind) for kind in ("bytes", "ms")))


def spread(found: Sequence[tuple[int, int, Price]], keep: int) -> list[tuple[int, int, Price]]:
    """Some of these, evenly over what they cost; of equal cost the ones at like depth in both models."""
    ordered = sorted(found, key=lambda each: each[2].bytes)
    if len(ordered) <= keep:
        return ordered
    groups = np.array_split(np.arange(len(ordered)), keep)
    return [min((ordered[i] for i in group), key=lambda each: abs(each[0] - each[1])) for group in groups]


def _measure(
    program: Program,
    first: str,
    second: str,
    chosen: Sequence[tuple[int, int, Price]],
    recipe: Recipe,
    limits: Limits,
    device: str,
    stage: Stage,
) -> tuple[dict[tuple[int, int], Quality], dict[str, Quality]]:
    """Fit, train if asked for, and measure stitches and donors."""
    end = LayeredDecoder(second, program.graph(second, FxGraph)).layers
    plans = [
        Stitch(Slice(first, (0, cut)), {f"c{cut}_e{entry}": Route((Slice(second, (entry, end)),), JoinOptions())}).plan(
            program
        )
        for cut, entry, _ in chosen
    ]
    objective = StitchObjective(plans, program.samples[first], recipe, device=device)
    objective.start(stage)
    if recipe.steps:
        stage(f"train {len(plans)} stitches, {recipe.steps} steps")
        stitch_training(objective).run()
    stage(f"measure {len(plans)} stitches")
    rows = objective.text.held_out[: max(1, limits.tokens // recipe.window)]
    alone, routes = measure(objective, rows)
    return {(cut, entry): routes[f"c{cut}_e{entry}"] for cut, entry, _ in chosen}, alone


def _prices(
    spec: Spec, name: str, backbone: LayeredDecoder, base: Path, limits: Limits, cache: Cache, stage: Stage
) -> tuple[Price, Price]:
    """What a layer of a model costs, and what all else does, in the spec's target."""
    alone = spec.model_copy(update={"models": {name: spec.models[name]}, "passes": ()})
    with tempfile.TemporaryDirectory(prefix="adaptc-search-") as folder:
        bundle = compile_spec(alone, base, Path(folder) / name, cache, stage).bundle
        stage(f"time {name}")
        ms = step_ms(bundle, limits.threads)
    whole = bundle.manifest.bytes_per_token
    layers, rest = _weights(backbone)
    share = layers / (layers * backbone.layers + rest)
    layer = Price(whole * share, ms * share)
    return layer, Price(whole - layer.bytes * backbone.layers, ms - layer.ms * backbone.layers)


def step_ms(bundle: Bundle, threads: int | None) -> float:
    """Milliseconds of a decode step of one row: the median of 24."""
    from adaptc.runtime import load

    with load(bundle.path, threads=threads, batch=1, verify=False) as session:
        trace = session.generate([1] * 16, max_new_tokens=2).trace  # warms up
        times = []
        for _ in range(3):
            trace = session.generate([1] * 16, max_new_tokens=9).trace
            times.append(trace.decode_seconds / max(1, trace.new_tokens - 1))
    return float(np.median(times)) * 1e3


def _weights(backbone: LayeredDecoder) -> tuple[float, float]:
    """Weights of linear layers: of a decoder layer on average, and of all else."""
    inside = rest = 0
    for name, (rows, columns) in linear_weights(backbone.graph).items():
        if LAYER.match(name):
            inside += rows * columns
        else:
            rest += rows * columns
    return inside / backbone.layers, rest


def _whole(backbone: LayeredDecoder, prices: tuple[Price, Price]) -> Price:
    layer, rest = prices
    return Price(layer.bytes * backbone.layers + rest.bytes, layer.ms * backbone.layers + rest.ms)


def _values(price: Price) -> tuple[float, float]:
    return price.bytes, price.ms
