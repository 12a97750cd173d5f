"""Search for the places where models are best stitched: price every place, measure those that can pay."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes.stitch.options import JoinOptions, Route, Slice
from adaptc.passes.stitch.slices import LayeredDecoder
from adaptc.passes.stitch.stitch import Stitch
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import load
from adaptc.runtime.progress import Progress
from adaptc.sources.find import find_source
from adaptc.spec.schema import Spec
from adaptc.training.recipe import Recipe
from adaptc.training.stitches.candidates import (
    Candidate,
    Price,
    StitchPlace,
    layer_weights,
    spread,
    stitches,
    whole_price,
)
from adaptc.training.stitches.measure import Quality, measure
from adaptc.training.stitches.objective import HELD_OUT, StitchObjective, stitch_training
from adaptc.training.stitches.search_result import Donor, MeasuredStitch, SearchResult
from adaptc.training.text import TrainingText
from adaptc.training.workspace import training_text, whole_text


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """How far a search goes.

    Attributes:
        every: Layers between two cuts or entries that are tried.
        keep: Number of stitches that are measured, spread evenly over what they cost.
        tokens: Number of held-out tokens that are measured on.
        threads: Threads of the engine that steps are timed in; None for its own choice, 0 to time none.
        places: The places to measure, instead of those that are found.
        join: How the stitches are made.
    """

    every: int
    keep: int
    tokens: int
    threads: int | None = None
    places: tuple[StitchPlace, ...] = ()
    join: JoinOptions = field(default_factory=JoinOptions)


def search(
    spec: Spec, base: Path, recipe: Recipe, limits: SearchLimits, device: str, cache: Cache, progress: Progress
) -> SearchResult:
    """Enumerate the stitches between two models and within each, price them, and measure those that can pay.

    Of a calibration text that is chats, the answers are what is trained and measured.

    Args:
        spec: Of two models. Its passes are not looked at.
        base: Folder that relative paths in the spec start from.
        recipe: How stitches are trained before they are measured; 0 steps leave them at least squares.
        limits: How far the search goes.
        device: "cpu" or "cuda".
        cache: For the models' own bundles, whose steps are timed.
        progress: Told of stages and steps.

    Raises:
        SpecError: not two models, or a place that is not there.
        AdaptcError: a model cannot be read, the vocabularies differ, the text is too short.
    """
    if len(spec.models) != 2:
        raise SpecError(f"models: {', '.join(spec.models)}; two are right for a search")
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    calibration = whole_text(spec, base, cache, device, progress)
    text = training_text(calibration, next(iter(sources.values())), recipe.window, HELD_OUT)
    program = program_from_sources(sources, replace(calibration, tokens=recipe.window), progress).loaded()
    decoders = {name: LayeredDecoder(name, program.graph(name, FxGraph)) for name in spec.models}
    prices = {name: _prices(spec, name, decoder, base, limits, cache, progress) for name, decoder in decoders.items()}
    every = list(stitches(decoders, prices))
    whole = {name: whole_price(decoder, prices[name]) for name, decoder in decoders.items()}
    dearest = max(price.bytes for price in whole.values())
    fitting = [each for each in every if each.price.bytes < dearest]
    chosen = _chosen(every, fitting, limits, {name: decoder.layers for name, decoder in decoders.items()})
    measured, alone = _measure(program, chosen, text, recipe, limits, device, progress)
    donors = tuple(
        Donor(name, price.bytes, price.ms, alone[name].log_perplexity, alone[name].kl) for name, price in whole.items()
    )
    ranked = [
        MeasuredStitch(each.place, each.price.bytes, each.price.ms, quality.log_perplexity, quality.kl)
        for each, quality in zip(chosen, measured, strict=True)
    ]
    ranked.sort(key=lambda each: each.kl)
    read = "text" if text.train_counts.all() else "answers"
    return SearchResult(tuple(ranked), donors, len(every), len(every) - len(fitting), read)


def _chosen(
    every: Sequence[Candidate], fitting: Sequence[Candidate], limits: SearchLimits, layers: Mapping[str, int]
) -> list[Candidate]:
    """Return the candidates that are measured.

    Raises:
        SpecError: a place that was asked for is not there.
    """
    if limits.places:
        by_place = {each.place: each for each in every}
        for place in limits.places:
            if place not in by_place:
                raise SpecError(
                    f"{place}: no place between {', '.join(layers)} where a stitch leaves layers out or joins"
                )
        return [by_place[place] for place in limits.places]
    grid = [e for e in fitting if not (e.place.cut % limits.every or e.place.entry % limits.every)]
    return spread(grid, limits.keep, layers)


def _measure(
    program: Program,
    chosen: Sequence[Candidate],
    text: TrainingText,
    recipe: Recipe,
    limits: SearchLimits,
    device: str,
    progress: Progress,
) -> tuple[list[Quality], dict[str, Quality]]:
    """Fit stitches, train them if the recipe has steps, and measure them and the donors."""
    plans = []
    for number, place in enumerate(each.place for each in chosen):
        end = LayeredDecoder(place.second, program.graph(place.second, FxGraph)).layers
        route = Route((Slice(place.second, (place.entry, end)),), limits.join)
        plans.append(Stitch(Slice(place.first, (0, place.cut)), {f"r{number}": route}).plan(program))
    objective = StitchObjective(plans, text, recipe, device=device)
    objective.start(progress)
    if recipe.steps:
        progress.stage(f"train {len(plans)} stitches")
        stitch_training(objective).run(progress)
    progress.stage(f"measure {len(plans)} stitches")
    alone, routes = measure(objective, limits.tokens, progress)
    return [routes[f"r{number}"] for number in range(len(plans))], alone


def _prices(
    spec: Spec, name: str, decoder: LayeredDecoder, base: Path, limits: SearchLimits, cache: Cache, progress: Progress
) -> tuple[Price, Price]:
    """Return the price of a layer of a model and of everything else, in the spec's target."""
    layers, rest = layer_weights(decoder)
    if limits.threads == 0:
        return Price(layers, 0.0), Price(rest, 0.0)
    alone = spec.model_copy(update={"models": {name: spec.models[name]}, "passes": ()})
    with tempfile.TemporaryDirectory(prefix="adaptc-search-") as folder:
        bundle = compile_spec(alone, base, Path(folder) / name, cache, progress).bundle
        progress.stage(f"time {name}")
        ms = step_ms(bundle, limits.threads)
    total = bundle.manifest.bytes_per_token
    share = layers / (layers * decoder.layers + rest)
    layer = Price(total * share, ms * share)
    return layer, Price(total - layer.bytes * decoder.layers, ms - layer.ms * decoder.layers)


def step_ms(bundle: Bundle, threads: int | None) -> float:
    """Milliseconds of a decode step of one sequence: the median of 24."""
    with load(bundle.path, threads=threads, batch=1, verify=False) as session:
        trace = session.generate([1] * 16, max_new_tokens=2).trace  # warms up
        times = []
        for _ in range(3):
            trace = session.generate([1] * 16, max_new_tokens=9).trace
            times.append(trace.decode_seconds / max(1, trace.new_tokens - 1))
    return float(np.median(times)) * 1e3
