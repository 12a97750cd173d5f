"""`adaptc train` for a spec with `stitch`: its stitches, and its router."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc import __version__
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.program import Program
from adaptc.ir.stitch_file import StitchCard, save_stitches
from adaptc.passes.base import Pass, Pipeline
from adaptc.passes.stitch.paths import Layout, layout
from adaptc.passes.stitch.stitch import Stitch
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.find import find_source
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import Spec
from adaptc.training.recipe import Recipe
from adaptc.training.stitches.trainer import StitchTrainer, Told

if TYPE_CHECKING:
    from adaptc.training.gates.spec import Place

Stage = Callable[[str], None]
WHOLE = 1 << 40
PROMPTS, PROMPT = 1024, 128
"""Prompts that a router is trained and calibrated on, at most, and tokens of one together with what follows it."""


def stitch_of(spec: Spec) -> Stitch | None:
    """The spec's `stitch`, if it has one."""
    return next((each for each in build_passes(spec) if isinstance(each, Stitch)), None)


def train_stitches(spec: Spec, recipe: Recipe, place: Place, stage: Stage, told: Told) -> tuple[Path, StitchCard]:
    """Train all stitches of a spec in one pass.

    Args:
        spec: With `stitch: {weights: FILE, …}`.
        recipe: How.
        place: Where.
        stage: Told of each stage as it begins.
        told: Told of each step.

    Returns:
        The file that was written, and its card.

    Raises:
        SpecError: the spec names no file for them.
        AdaptcError: the text is too short, a model cannot be read, a checkpoint is of another run.
    """
    pass_ = stitch_of(spec)
    if pass_ is None or pass_.weights is None:
        raise SpecError("passes: nothing to train; 'stitch: {weights: FILE, …}' names the file of trained stitches")
    output = place.output or place.base / pass_.weights
    program, sources, plan = _program(spec, pass_, place, stage)
    trainer = StitchTrainer([plan], program.samples[plan.trunk], recipe, device=place.device)
    checkpoint = output.with_suffix(".checkpoint")
    output.parent.mkdir(parents=True, exist_ok=True)
    if place.restart or not trainer.load(checkpoint):
        trainer.start(stage)
    stage(f"train, {recipe.steps} steps")
    trainer.run(told, checkpoint)
    stage("measure")
    card = card_of(trainer, [plan], {name: source.sha256() for name, source in sources.items()}, about(spec, place))
    save_stitches(card, dict(trainer.weights), output)
    checkpoint.unlink(missing_ok=True)
    return output, card


def train_router(spec: Spec, recipe: Recipe, place: Place, stage: Stage) -> tuple[Path, dict[str, float]]:
    """Train the router of a spec whose stitches are trained.

    Args:
        spec: With `stitch: {router: {weights: FILE, …}}`.
        recipe: Its seed is used.
        place: Where.
        stage: Told of each stage as it begins.

    Returns:
        The file that was written; and on held-out prompts, which it holds for calibration, the area under the curve of
        performance gap recovered (0.5 is chance) and how many they were.

    Raises:
        SpecError: the spec names no router.
        AdaptcError: too few prompts; and as compiling.
    """
    from adaptc.training.router import fitted, observe, predicted, recovered, save_router

    pass_ = stitch_of(spec)
    if pass_ is None or pass_.router is None:
        raise SpecError("passes: no router to train; 'stitch: {router: {weights: FILE, …}, …}' names its file")
    output = place.output or place.base / pass_.router.weights
    program, _, plan = _program(spec, pass_, place, stage)
    at = pass_.at(place.base)
    assert isinstance(at, Stitch)
    stitched = Pipeline((replace(at, router=None),)).run(program)
    ids = program.samples[plan.trunk]
    rows = ids[: len(ids) // PROMPT * PROMPT].reshape(-1, PROMPT)
    rows = np.random.default_rng(recipe.seed).permutation(rows)[:PROMPTS]
    from adaptc.ir.graph import FxGraph

    costs = plan.costs()
    prompts = observe(stitched.at_level(FxGraph), costs, rows, stage, place.device)
    # Half for training, half for thresholds: a bound holds for prompts that the router has not seen.
    train, held_out = prompts[: len(rows) // 2], prompts[len(rows) // 2 :]
    weights = fitted(train, recipe.seed)
    cheap = list(costs).index(min(costs, key=lambda route: costs[route]))
    _, area = recovered(predicted(weights, held_out.features), held_out.lost, cheap)
    found = {"area": area, "prompts": len(held_out.lost), "mean_gap": float(held_out.lost[:, cheap].mean())}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_router(weights, tuple(costs), held_out, about(spec, place) | found, output)
    return output, found


def card_of(trainer: StitchTrainer, plans: list[Layout], hashes: dict[str, str], said: dict[str, Any]) -> StitchCard:
    """What trained stitches are, and what was measured of them on held-out text."""
    backbones, routes = trainer.measure()
    runs = {
        route: tuple((piece.backbone, piece.first, piece.last) for piece in (plan.base, *plan.routes[route]))
        for plan in plans
        for route in plan.routes
    }
    return StitchCard(
        models=hashes,
        routes=runs,
        quality={f"model {n}": asdict(q) for n, q in backbones.items()} | {n: asdict(q) for n, q in routes.items()},
        training={
            "recipe": asdict(trainer.recipe),
            "tokens": trainer.step * trainer.recipe.rows * trainer.recipe.window,
            "held_out_tokens": trainer.held_out.size,
            "teacher": trainer.teacher,
            "curve": [list(point) for point in trainer.curve[:: max(1, len(trainer.curve) // 50)]],
            **said,
        },
    )


def about(spec: Spec, place: Place) -> dict[str, Any]:
    """Data and versions, for readers."""
    libraries = {each: importlib.metadata.version(each) for each in ("torch", "transformers")}
    text = calibration_text(spec.calibration, place.base).name
    return {"date": time.strftime("%Y-%m-%d"), "text": text, "versions": {"adaptc": __version__, **libraries}}


def _program(spec: Spec, pass_: Stitch, place: Place, stage: Stage) -> tuple[Program, dict[str, Source], Layout]:
    """The captured models after the passes before `stitch`, over the whole calibration text."""
    sources = {name: find_source(model, place.base) for name, model in spec.models.items()}
    text = replace(calibration_text(spec.calibration, place.base), tokens=WHOLE)
    program = program_from_sources(sources, text, stage)
    before: list[Pass] = []
    for each in build_passes(spec):
        if isinstance(each, Stitch):
            break
        before.append(each.at(place.base))
    program = Pipeline(tuple(before)).run(program)
    return program, sources, layout(pass_, program)
