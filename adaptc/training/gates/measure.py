"""What trained gates do on held-out text: thresholds for shares of skipped blocks, and what skipping costs at each.

Text that is scored and text that is written are measured by themselves: what a model writes is easier for it, so one
threshold skips more of it (docs/results/smollm2-skip.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.ir.stored.gates_file import GatesMetadata
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.gates.objective import GateObjective
from adaptc.training.gates.text import CountedRows
from adaptc.training.loop import Training
from adaptc.training.text import predicts

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Shares of all blocks whose thresholds are measured, as far as there are gates for them."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What gates do on one kind of text.

    Attributes:
        thresholds: (share of all blocks skipped, threshold), both rising.
        perplexity: (share of all blocks skipped, perplexity / that of the dense twin), from (0, 1).
        loss: (share of all blocks skipped, KL(dense || gated)), nats a token, from (0, 0).
    """

    thresholds: Points
    perplexity: Points
    loss: Points


@dataclass(slots=True)
class _Point:
    """Sums of one threshold over tokens where gates decide and the next one counts."""

    threshold: float
    surprise: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    logits: tuple[torch.Tensor, ...] = ()

    @property
    def all_logits(self) -> torch.Tensor:
        return torch.cat(self.logits)


def gates_metadata(
    training: Training[GateObjective],
    model: str,
    sha256: str,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
) -> GatesMetadata:
    """Measure thresholds and losses on held-out text and return them with what was trained.

    Args:
        training: Gates in training.
        model: Where the model came from.
        sha256: Hash of the model's files.
        provenance: Data and versions, for readers.
        progress: Told of stages and steps.
    """
    objective = training.objective
    text = objective.text
    progress.stage("measure on held-out text")
    scored = measure(objective, text.scored, progress)
    written = None
    if text.written is not None:
        progress.stage("measure on held-out answers")
        written = measure(objective, text.written, progress)
    held_out = {
        "scored": int(text.scored.counts.sum()),
        "written": 0 if text.written is None else int(text.written.counts.sum()),
    }
    return GatesMetadata(
        model,
        sha256,
        objective.layers,
        len(objective.blocks),
        objective.rank,
        objective.warmup,
        scored.thresholds,
        scored.perplexity,
        {
            "recipe": asdict(objective.recipe),
            "tokens": text.tokens,
            "held_out_tokens": {name: min(size, objective.recipe.measured) for name, size in held_out.items()},
            "curve": training.sampled_curve(),
            **provenance,
        },
        () if written is None else written.thresholds,
        () if written is None else written.loss,
    )


def measure(objective: GateObjective, text: CountedRows, progress: Progress = SILENT) -> Measured:
    """Measure gates on held-out text of one kind.

    Args:
        objective: Gates that were started or restored.
        text: The text; the recipe says how much of it is read.
        progress: Told of steps.
    """
    batches = _batches(text.first(objective.recipe.measured), objective.recipe.rows)
    wanted = [share for share in SHARES if share <= objective.most]
    dense = _Point(-math.inf)
    _run(objective, batches, [dense], progress)
    guesses = [_quantile(dense.all_logits, share / objective.most) for share in wanted]
    dense.logits = ()
    points: list[_Point] = []
    for last in (False, True):  # what is skipped early moves the logits of later gates
        points = [_Point(level) for level in guesses]
        _run(objective, batches, points, progress, losses=last)
        guesses = [
            _quantile(point.all_logits, share / objective.most) for share, point in zip(wanted, points, strict=True)
        ]
    thresholds: list[tuple[float, float]] = []
    perplexity, loss = [(0.0, 1.0)], [(0.0, 0.0)]
    for point in points:
        skipped = float((point.all_logits < point.threshold).float().mean()) * objective.most
        if not thresholds or (point.threshold > thresholds[-1][1] and skipped > thresholds[-1][0]):
            share = round(skipped, 5)
            thresholds.append((share, point.threshold))
            ratio = math.exp(point.surprise / point.tokens - dense.surprise / dense.tokens)
            perplexity.append((share, round(ratio, 5)))
            # More skipping costs more; of few tokens the measurement may say otherwise by a hair.
            loss.append((share, max(loss[-1][1], round(point.kl / point.tokens, 6))))
    return Measured(tuple(thresholds), tuple(perplexity), tuple(loss))


def _run(
    objective: GateObjective,
    batches: Sequence[CountedRows],
    points: Sequence[_Point],
    progress: Progress,
    *,
    losses: bool = True,
) -> None:
    """Add to each point what its threshold does on all sequences.

    It is computed in float32, as thresholds are compared when a bundle runs. The dense model's predictions are
    computed once for all points.
    """
    module = objective.module
    for rows in counted(batches, progress):
        ids, positions = objective.feeds(rows)
        where = torch.from_numpy(objective.open(rows)).to(objective.device)
        counts = torch.from_numpy(objective.open(rows) & predicts(rows.counts)).to(objective.device)
        with torch.no_grad():
            target = objective.dense.module(ids, positions)[0][counts].float().log_softmax(-1) if losses else None
            for point in points:
                predicted, *gates = module(ids, positions, objective.levels(rows, point.threshold))
                point.logits += (torch.stack([each[where] for each in gates]).flatten().float().cpu(),)
                if target is None:
                    continue
                scores = predicted[counts].float().log_softmax(-1)
                following = ids.roll(-1, 1)[counts]
                point.surprise += float(F.nll_loss(scores, following, reduction="sum"))
                point.kl += float(F.kl_div(scores, target, log_target=True, reduction="sum"))
                point.tokens += len(following)


def _quantile(logits: torch.Tensor, share: float) -> float:
    """Return the threshold below which a share of logits lies."""
    place = round(min(share, 0.995) * (len(logits) - 1))
    return float(logits.kthvalue(1 + place).values)


def _batches(text: CountedRows, rows: int) -> list[CountedRows]:
    """Cut a text into batches of sequences of similar lengths, each cut where nothing counts any more."""
    lengths = text.counts.shape[1] - text.counts[:, ::-1].argmax(1)
    order = np.argsort(lengths, kind="stable")
    found = []
    for at in range(0, len(order), rows):
        some = order[at : at + rows]
        end = int(lengths[some].max())
        found.append(CountedRows(text.ids[some, :end], text.counts[some, :end]))
    return found
