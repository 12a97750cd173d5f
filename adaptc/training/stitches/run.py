"""`adaptc train` for a spec with `stitch`: its stitches, and its router."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.ir.stored.stitch_file import StitchMetadata, save_stitches
from adaptc.passes.base import Pass, Pipeline
from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.stitch import Stitch
from adaptc.runtime.progress import Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText
from adaptc.sources.find import find_source
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import Spec
from adaptc.training.recipe import Recipe
from adaptc.training.router import LEAST, fitted, predicted, recovered, write_router
from adaptc.training.router_prompts import PromptedText, answers, halves, observe
from adaptc.training.stitches.measure import stitch_metadata
from adaptc.training.stitches.objective import HELD_OUT, StitchObjective, stitch_training
from adaptc.training.workspace import Workspace, chats_of, checkpoint_of, provenance, training_text, whole_text

PROMPTS = 1024
"""Prompts that a router is trained and calibrated on, at most."""

PROMPT = 128
"""Tokens of a piece of prose whose first half is a prompt."""

LONGEST = 768
"""Tokens of a chat that are read, at most."""


def stitch_of(spec: Spec) -> Stitch | None:
    """Return the spec's `stitch`, if it has one."""
    return next((each for each in build_passes(spec) if isinstance(each, Stitch)), None)


def train_stitches(spec: Spec, recipe: Recipe, workspace: Workspace, progress: Progress) -> tuple[Path, StitchMetadata]:
    """Train all stitches of a spec in one pass.

    Args:
        spec: With `stitch: {weights: FILE, …}`.
        recipe: The options of the training.
        workspace: Where it reads and writes, and what it runs on.
        progress: Told of stages and steps.

    Returns:
        The file that was written, and its metadata.

    Raises:
        SpecError: the spec names no file for them.
        AdaptcError: the text is too short, a model cannot be read, a checkpoint is of another run.
    """
    pass_ = stitch_of(spec)
    if pass_ is None or pass_.weights is None:
        raise SpecError("passes: nothing to train; 'stitch: {weights: FILE, …}' names the file of trained stitches")
    output = workspace.output_for(pass_.weights)
    whole = whole_text(spec, workspace.base, workspace.cache, workspace.device, progress)
    _, sources, plan = _program(spec, pass_, whole, workspace, progress)
    text = training_text(whole, sources[plan.trunk.model], recipe.window, HELD_OUT)
    objective = StitchObjective([plan], text, recipe, device=workspace.device)
    training, checkpoint = stitch_training(objective), checkpoint_of(output)
    training.start_or_resume(checkpoint, progress, restart=workspace.restart)
    progress.stage("train")
    training.run(progress, checkpoint, seconds=workspace.seconds)
    progress.stage("measure")
    hashes = {name: source.sha256() for name, source in sources.items()}
    about = provenance(whole)
    metadata = stitch_metadata(training, [plan], hashes, about)
    save_stitches(metadata, dict(objective.weights()), output)
    if training.step == recipe.steps:
        checkpoint.unlink(missing_ok=True)
    return output, metadata


def train_router(spec: Spec, recipe: Recipe, workspace: Workspace, progress: Progress) -> tuple[Path, dict[str, float]]:
    """Train the router of a spec whose stitches are trained.

    Args:
        spec: With `stitch: {router: {weights: FILE, …}}`.
        recipe: The options of the training; its seed is used.
        workspace: Where it reads and writes, and what it runs on.
        progress: Told of stages and steps.

    Returns:
        The file that was written; and on held-out prompts, which it holds for calibration, the area under the curve of
        performance gap recovered (0.5 is chance) and how many they were.

    Raises:
        SpecError: the spec names no router.
        AdaptcError: too few prompts; and as compiling.
    """
    pass_ = stitch_of(spec)
    if pass_ is None or pass_.router is None:
        raise SpecError("passes: no router to train; 'stitch: {router: {weights: FILE, …}, …}' names its file")
    output = workspace.output_for(pass_.router.weights)
    whole = whole_text(spec, workspace.base, workspace.cache, workspace.device, progress)
    program, sources, plan = _program(spec, pass_, whole, workspace, progress)
    at = pass_.at(workspace.base)
    assert isinstance(at, Stitch)
    stitched = Pipeline((replace(at, router=None),)).run(program)
    costs = plan.costs()
    to_train, to_hold, of = _prompts(whole, sources[plan.trunk.model], recipe, program.samples[plan.trunk.model])
    prompts = observe(stitched.at_level(FxGraph), costs, [*to_train, *to_hold], progress, workspace.device)
    train, held_out = prompts[: len(to_train)], prompts[len(to_train) :]
    weights = fitted(train, recipe.seed)
    cheap = list(costs).index(min(costs, key=lambda route: costs[route]))
    _, area = recovered(predicted(weights, held_out.features), held_out.lost, cheap)
    gap = float(held_out.lost[:, cheap].mean())
    quality = {"area": area, "prompts": len(held_out.lost), "mean_gap": gap}
    write_router(
        weights,
        tuple(costs),
        held_out,
        provenance(whole) | quality | {"labels": of},
        output,
    )
    return output, quality


def _prompts(
    text: CalibrationText, source: Source, recipe: Recipe, ids: npt.NDArray[np.int64]
) -> tuple[list[PromptedText], list[PromptedText], str]:
    """Return prompts to train a router on, others for its thresholds, and what its labels are losses on.

    A bound holds for prompts that the router has not seen. Of chats those set thresholds that the stitches were not
    trained on either, if `recipe` has their window: on the others routes lose less than they will.
    """
    train, held_out = chats_of(text, source, recipe.window, HELD_OUT)
    if train or held_out:
        fit, hold = (answers(each, PROMPTS, LONGEST, recipe.seed) for each in (train, held_out))
        if len(hold) >= LEAST:
            return fit, hold, "answers"
        both = answers([*train, *held_out], PROMPTS, LONGEST, recipe.seed)
        return both[: len(both) // 2], both[len(both) // 2 :], "answers"
    rows = ids[: len(ids) // PROMPT * PROMPT].reshape(-1, PROMPT)
    pieces = halves(np.random.default_rng(recipe.seed).permutation(rows)[:PROMPTS])
    return pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :], "text"


def _program(
    spec: Spec, pass_: Stitch, text: CalibrationText, workspace: Workspace, progress: Progress
) -> tuple[Program, dict[str, Source], StitchPlan]:
    """Return the captured models after the passes before `stitch`, over the whole calibration text."""
    sources = {name: find_source(model, workspace.base) for name, model in spec.models.items()}
    program = program_from_sources(sources, text, progress).loaded()
    before: list[Pass] = []
    for each in build_passes(spec):
        if isinstance(each, Stitch):
            break
        before.append(each.at(workspace.base))
    program = Pipeline(tuple(before)).run(program)
    return program, sources, pass_.plan(program)
