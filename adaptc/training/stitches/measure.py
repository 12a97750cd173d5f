"""How well stitched routes, and the decoders they are made of, predict held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from adaptc.ir.stored.stitch_file import StitchMetadata
from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.states import feeds
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.loop import Training
from adaptc.training.stitches.objective import StitchObjective
from adaptc.training.stitches.predictor import Predictor, divergence, surprise


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a decoder or a route predicts a text.

    Attributes:
        log_perplexity: Mean negative log likelihood of a token, nats.
        kl: Mean KL(teacher || it), nats a token.
    """

    log_perplexity: float
    kl: float


def measure(
    objective: StitchObjective, tokens: int | None = None, progress: Progress = SILENT
) -> tuple[dict[str, Quality], dict[str, Quality]]:
    """Measure how well each decoder by itself and each route predicts what was held out, where a token counts.

    Args:
        objective: Stitches that were started or restored.
        tokens: Held-out tokens that are read, about; None for all.
        progress: Told of each batch of sequences.

    Returns:
        Quality by decoder; quality by route.
    """
    text, recipe = objective.text, objective.recipe
    rows = len(text.held_out) if tokens is None else max(1, tokens // recipe.window)
    parts = [
        (text.held_out[at : at + recipe.rows], text.held_out_counts[at : at + recipe.rows])
        for at in range(0, min(rows, len(text.held_out)), recipe.rows)
    ]
    decoders, tails = objective.graphs(whole=True)
    sums = {name: _Sums() for name in (*objective.decoders, *tails)}
    for part, counts in counted(parts, progress):
        ids, where = objective.placed(part, counts)
        following = ids.roll(-1, 1)[where]
        with torch.no_grad():
            states, reads = objective.run_decoders(decoders, ids)
            target = decoders[objective.teacher].logits(reads[objective.teacher][where])
            for name in objective.decoders:
                sums[name].add(target, decoders[name], reads.pop(name)[where], following)
            for route, tail in tails.items():
                hidden = objective.trunk_states(states, route)
                with objective.autocast():
                    [read] = tail.graph.module(*feeds(tail.graph, ids, hidden))
                sums[route].add(target, tail, read[where], following)
    by_name = {name: each.quality() for name, each in sums.items()}
    return {name: by_name[name] for name in objective.decoders}, {route: by_name[route] for route in tails}


@dataclass(slots=True)
class _Sums:
    """Sums over counted tokens, of a decoder or a route."""

    surprise: float = 0.0
    divergence: float = 0.0
    tokens: int = 0

    def add(self, target: torch.Tensor, predictor: Predictor, read: torch.Tensor, following: torch.Tensor) -> None:
        self.surprise += surprise(predictor, read, following)
        self.divergence += divergence(target, predictor, read)[0] * len(read)
        self.tokens += len(read)

    def quality(self) -> Quality:
        count = max(1, self.tokens)
        return Quality(self.surprise / count, self.divergence / count)


def stitch_metadata(
    training: Training[StitchObjective],
    plans: Sequence[StitchPlan],
    hashes: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> StitchMetadata:
    """Measure stitches on held-out text and return the result with what was trained.

    Args:
        training: Stitches in training.
        plans: What is stitched.
        hashes: sha256 of each model's files, by the model's name.
        provenance: Data and versions, for readers.
    """
    objective = training.objective
    decoders, routes = measure(objective)
    runs = {
        route: tuple((run.model, *run.layer_range) for run in (plan.trunk, *plan.routes[route]))
        for plan in plans
        for route in plan.routes
    }
    return StitchMetadata(
        models=dict(hashes),
        routes=runs,
        quality={f"model {n}": asdict(q) for n, q in decoders.items()} | {n: asdict(q) for n, q in routes.items()},
        training={
            "recipe": asdict(objective.recipe),
            "tokens": training.step * objective.recipe.rows * objective.recipe.window,
            "held_out_tokens": objective.text.held_out.size,
            "teacher": objective.teacher,
            "curve": training.sampled_curve(),
            **provenance,
        },
    )
