"""How well stitched routes, and the decoders they are made of, predict held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.ir.stored.stitch_file import StitchMetadata
from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.states import feeds
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.loop import Training
from adaptc.training.stitches.objective import StitchObjective, kl
from adaptc.training.text import batches

Ids = npt.NDArray[np.int64]


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
    objective: StitchObjective, ids: Ids | None = None, progress: Progress = SILENT
) -> tuple[dict[str, Quality], dict[str, Quality]]:
    """Measure how well each decoder by itself and each route predicts a text.

    Args:
        objective: Stitches that were started or restored.
        ids: int64 [sequences, tokens]; None for what was held out.
        progress: Told of each batch of sequences.

    Returns:
        Quality by decoder; quality by route.
    """
    rows = objective.text.held_out if ids is None else ids
    decoders, tails = objective.graphs(whole=True)
    alone, routed = ({name: [0.0, 0.0] for name in names} for names in (objective.decoders, objective.routes))
    for part in counted(list(batches(rows, objective.recipe.rows)), progress):
        with torch.no_grad():
            states, target, others = objective.run_decoders(decoders, part)
            for name, logits in others.items():
                _count(alone[name], target, logits, part)
            del others
            for route, tail in tails.items():
                hidden = objective.trunk_states(states, route)
                with objective.autocast():
                    inputs = feeds(tail, torch.from_numpy(part).to(objective.device), hidden)
                    [predicted] = tail.module(*inputs)
                _count(routed[route], target, predicted, part)
    count = rows.shape[0] * (rows.shape[1] - 1)
    by_decoder, by_route = (
        {name: Quality(loss / count, divergence / rows.size) for name, (loss, divergence) in sums.items()}
        for sums in (alone, routed)
    )
    return by_decoder, by_route


def _count(sums: list[float], target: torch.Tensor, predicted: torch.Tensor, rows: Ids) -> None:
    """Add the negative log likelihood and the KL of some sequences."""
    following = torch.from_numpy(rows[:, 1:]).to(predicted.device)
    for at in range(len(predicted)):
        sums[0] += float(F.cross_entropy(predicted[at, :-1].float(), following[at], reduction="sum"))
    sums[1] += kl(target, predicted)[0] * rows.size


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
