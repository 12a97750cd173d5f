"""Search for the places where two models are best stitched: price every place, measure those that can pay."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.find import find_source
from adaptc.spec.schema import Spec
from adaptc.training.recipe import Recipe
from adaptc.training.stitches.candidates import Candidate, Price, layer_weights, spread, stitches, whole_price
from adaptc.training.stitches.measure import Quality, measure
from adaptc.training.stitches.objective import StitchObjective, stitch_training
from adaptc.training.stitches.search_result import Donor, MeasuredStitch, SearchResult


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """How far a search goes.

    Attributes:
        every: Layers between two cuts or entries that are tried.
        keep: Number of stitches that are measured, spread evenly over what they cost.
        tokens: Number of tokens of the calibration text that is measured on.
        threads: Threads of the engine that steps are timed in; None for its own choice.
    """

    every: int
    keep: int
    tokens: int
    threads: int | None = None


def search(
    spec: Spec, base: Path, recipe: Recipe, limits: SearchLimits, device: str, cache: Cache, progress: Progress
) -> SearchResult:
    """Enumerate the stitches between two models, price them, and measure those that can pay.

    Args:
        spec: Of two models; the first one's lower layers run. Its passes are not looked at.
        base: Folder that relative paths in the spec start from.
        recipe: How stitches are trained before they are measured; 0 steps leave them at least squares.
        limits: How far the search goes.
        device: "cpu" or "cuda".
        cache: For the models' own bundles, whose steps are timed.
        progress: Told of stages and steps.

    Raises:
        SpecError: not two models.
        AdaptcError: a model cannot be read, the vocabularies differ, the text is too short.
    """
    if len(spec.models) != 2:
        raise SpecError(f"models: {', '.join(spec.models)}; two are right for a search")
    first, second = spec.models
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    text = calibration_text(spec.calibration, base)
    program = program_from_sources(sources, text, progress).loaded()
    decoders = {name: LayeredDecoder(name, program.graph(name, FxGraph)) for name in spec.models}
    prices = {name: _prices(spec, name, decoder, base, limits, cache, progress) for name, decoder in decoders.items()}
    candidates = list(stitches(decoders, first, second, prices))
    whole = {name: whole_price(decoder, prices[name]) for name, decoder in decoders.items()}
    dearest = max(price.bytes for price in whole.values())
    fitting = [each for each in candidates if each[2].bytes < dearest]
    chosen = spread([each for each in fitting if not (each[0] % limits.every or each[1] % limits.every)], limits.keep)
    measured, alone = _measure(program, first, second, chosen, recipe, limits, device, progress)
    donors = tuple(
        Donor(name, price.bytes, price.ms, alone[name].log_perplexity, alone[name].kl) for name, price in whole.items()
    )
    ranked = [
        MeasuredStitch(cut, entry, price.bytes, price.ms, measured[cut, entry].log_perplexity, measured[cut, entry].kl)
        for cut, entry, price in chosen
    ]
    ranked.sort(key=lambda each: each.kl)
    return SearchResult(first, second, tuple(ranked), donors, len(candidates), len(candidates) - len(fitting))


def _measure(
    program: Program,
    first: str,
    second: str,
    chosen: Sequence[Candidate],
    recipe: Recipe,
    limits: SearchLimits,
    device: str,
    progress: Progress,
) -> tuple[dict[tuple[int, int], Quality], dict[str, Quality]]:
    """Fit stitches, train them if the recipe has steps, and measure them and the donors."""
    end = LayeredDecoder(second, program.graph(second, FxGraph)).layers
    plans = [
        Stitch(Slice(first, (0, cut)), {f"c{cut}_e{entry}": Route((Slice(second, (entry, end)),), JoinOptions())}).plan(
            program
        )
        for cut, entry, _ in chosen
    ]
    objective = StitchObjective(plans, program.samples[first], recipe, device=device)
    objective.start(progress)
    if recipe.steps:
        progress.stage(f"train {len(plans)} stitches")
        stitch_training(objective).run(progress)
    progress.stage(f"measure {len(plans)} stitches")
    rows = objective.text.held_out[: max(1, limits.tokens // recipe.window)]
    alone, routes = measure(objective, rows, progress)
    return {(cut, entry): routes[f"c{cut}_e{entry}"] for cut, entry, _ in chosen}, alone


def _prices(
    spec: Spec, name: str, decoder: LayeredDecoder, base: Path, limits: SearchLimits, cache: Cache, progress: Progress
) -> tuple[Price, Price]:
    """Return the price of a layer of a model and of everything else, in the spec's target."""
    alone = spec.model_copy(update={"models": {name: spec.models[name]}, "passes": ()})
    with tempfile.TemporaryDirectory(prefix="adaptc-search-") as folder:
        bundle = compile_spec(alone, base, Path(folder) / name, cache, progress).bundle
        progress.stage(f"time {name}")
        ms = step_ms(bundle, limits.threads)
    total = bundle.manifest.bytes_per_token
    layers, rest = layer_weights(decoder)
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
