"""What trained gates do on held-out text: thresholds for shares of skipped blocks, and perplexity at each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.ir.stored.gates_file import GatesMetadata
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.gates.objective import GateObjective
from adaptc.training.loop import Training
from adaptc.training.text import batches

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Shares of all blocks whose thresholds are measured, as far as there are gates for them."""

MEASURED = 8192
"""Held-out tokens that are measured on, at most."""

Points = tuple[tuple[float, float], ...]


def gates_metadata(
    training: Training[GateObjective],
    model: str,
    sha256: str,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
) -> GatesMetadata:
    """Measure thresholds and perplexity on held-out text and return them with what was trained.

    Args:
        training: Gates in training.
        model: Where the model came from.
        sha256: Hash of the model's files.
        provenance: Data and versions, for readers.
        progress: Told of stages and steps.
    """
    objective = training.objective
    thresholds, perplexity = measure(objective, progress)
    return GatesMetadata(
        model,
        sha256,
        objective.layers,
        len(objective.blocks),
        objective.rank,
        objective.warmup,
        thresholds,
        perplexity,
        {
            "recipe": asdict(objective.recipe),
            "tokens": objective.text.train.size,
            "held_out_tokens": objective.text.held_out.size,
            "curve": training.sampled_curve(),
            **provenance,
        },
    )


def measure(objective: GateObjective, progress: Progress = SILENT) -> tuple[Points, Points]:
    """Measure gates on held-out text.

    Args:
        objective: Gates that were started or restored.
        progress: Told of stages and steps.

    Returns:
        (share of all blocks skipped, threshold), both rising; and (share, perplexity / that of the dense twin).
    """
    dense, logits = _run(objective, -math.inf)
    thresholds: list[tuple[float, float]] = []
    perplexity = [(0.0, 1.0)]
    progress.stage("measure on held-out text")
    for share in counted([each for each in SHARES if each <= objective.most], progress):
        for _ in range(2):  # what is skipped early moves the logits of later gates
            threshold = float(logits.quantile(min(share / objective.most, 0.995)))
            log_perplexity, logits = _run(objective, threshold)
        skipped = float((logits < threshold).float().mean()) * objective.most
        if not thresholds or (threshold > thresholds[-1][1] and skipped > thresholds[-1][0]):
            thresholds.append((round(skipped, 5), threshold))
            perplexity.append((round(skipped, 5), round(math.exp(log_perplexity - dense), 5)))
    return tuple(thresholds), tuple(perplexity)


def _run(objective: GateObjective, threshold: float) -> tuple[float, torch.Tensor]:
    """Return the mean negative log likelihood after the warm-up, and the gates' logits there.

    It is computed in float32, as thresholds are compared when a bundle runs.
    """
    warmup, total, count, logits = objective.warmup, 0.0, 0, []
    rows_measured = objective.text.held_out[: max(1, MEASURED // objective.recipe.window)]
    for rows in batches(rows_measured, objective.recipe.rows):
        ids, positions = objective.feeds(rows)
        with torch.no_grad():
            predicted, *gates = objective.module(ids, positions, objective.levels(rows, threshold))
        scores = predicted[:, warmup:-1].float().flatten(0, 1)
        total += float(F.cross_entropy(scores, ids[:, warmup + 1 :].flatten(), reduction="sum"))
        count += len(scores)
        logits.append(torch.stack([each[:, warmup:] for each in gates]).flatten().float().cpu())
    return total / count, torch.cat(logits)
