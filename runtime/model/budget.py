"""From a budget to the threshold that skip gates are compared with, and which blocks the gates then skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.validation import check_number

DENSE = -math.inf
"""The threshold under which every block runs."""

CHEAPEST = 0.0
"""The budget that skips most."""


@dataclass(frozen=True, slots=True, eq=False)
class Skips:
    """Which blocks ran, token by token, after the warm-up.

    Attributes:
        ran: bool [tokens, gates], in the order of the gated layers, for all tokens after the first `warmup` positions
            that are written or scored one by one.
        blocks: All feed-forward blocks of the model, those without a gate included.
    """

    ran: npt.NDArray[np.bool_]
    blocks: int

    @property
    def share(self) -> float:
        """Share of all feed-forward blocks that did not run, 0 to 1; 0 if there was no token."""
        return float((~self.ran).sum()) / (len(self.ran) * self.blocks) if len(self.ran) else 0.0


def collect_skips(steps: Sequence[bytes], gates: Sequence[SkipGates]) -> Skips | None:
    """The results of `BatchDecoder.ran` for some steps; None if the sequence met no gates.

    Args:
        steps: A byte for each gate. Steps of another length belong to another route and are left out.
        gates: The gates of each graph that the sequence runs, in order.
    """
    if not gates:
        return None
    width = sum(len(each.layers) for each in gates)
    steps = [step for step in steps if len(step) == width]
    ran = np.frombuffer(b"".join(steps), np.bool_).reshape(len(steps), width)
    return Skips(ran, sum(each.blocks for each in gates))


def batched_dense(gates: SkipGates | None, sequences: int) -> bool:
    """Whether the gates' batch policy runs every block in a step of some sequences."""
    return gates is not None and sequences > 1 and (sequences > gates.rows or gates.batch == "off")


def check_budget(value: object, option: str = "budget") -> float:
    """A budget, from 0 to 1.

    Raises:
        RequestError: naming the option: it is something else.
    """
    return check_number(option, value, "a number from 0 (cheapest) to 1 (dense)", 0, 1)


def threshold_at(thresholds: Sequence[tuple[float, float]], budget: float) -> float:
    """The threshold of a budget.

    The share of blocks to skip falls linearly from the largest of the table, at budget 0, to none at 1.

    Args:
        thresholds: (share of all blocks skipped, threshold), both rising, from (0, -inf).
        budget: From 0 to 1.

    Returns:
        The threshold, interpolated between the table's; -inf at budget 1. Below the first finite one it lies on the
        line through the first two.
    """
    points = _finite(thresholds)
    return _level(points, (1 - budget) * points[-1][0]) if points and budget < 1 else DENSE


def share_of(gates: SkipGates, budget: float) -> float:
    """The share of all blocks that gates skip at a budget, as their table says."""
    points = _finite(gates.thresholds)
    return (1 - budget) * points[-1][0] if points else 0.0


def _finite(thresholds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(share, level) for share, level in thresholds if math.isfinite(level)]


def _level(points: Sequence[tuple[float, float]], share: float) -> float:
    """The threshold of a share, from a table without infinities that is not empty."""
    if len(points) > 1 and share < points[0][0]:
        (x0, y0), (x1, y1) = points[:2]
        return y0 - (y1 - y0) * (x0 - share) / (x1 - x0) if x1 > x0 else y0
    shares, levels = zip(*points, strict=True)
    return float(np.interp(share, np.array(shares, np.float64), np.array(levels, np.float64)))


def threshold_of(gates: SkipGates | None, budget: float | None, ceiling: float = 1.0, *, scored: bool = False) -> float:
    """The threshold of a budget; -inf without gates.

    Args:
        gates: Those of the graph.
        budget: None for the gates' own.
        ceiling: The most that a budget counts for.
        scored: Whether tokens are of a given text; else the model writes them, and another threshold skips as much.
    """
    if gates is None or (counts := min(gates.budget if budget is None else budget, ceiling)) >= 1:
        return DENSE
    points = _finite(gates.thresholds if scored or not gates.written else gates.written)
    return _level(points, share_of(gates, counts)) if points else DENSE


def loss_of(gates: SkipGates, budget: float) -> float | None:
    """The loss to expect of what is written with a budget, nats a token; None if it was not measured."""
    if not gates.written_loss:
        return None
    shares, losses = zip(*gates.written_loss, strict=True)
    return float(np.interp(share_of(gates, budget), np.array(shares, np.float64), np.array(losses, np.float64)))


def budget_of_loss(gates: SkipGates, loss: float) -> float:
    """The cheapest budget whose expected loss is at most so many nats a token.

    Args:
        gates: With `written_loss`.
        loss: From 0.
    """
    most = share_of(gates, CHEAPEST)
    if most <= 0:
        return 1.0
    points = gates.written_loss
    at = max(place for place, (_, each) in enumerate(points) if each <= loss)  # of equal losses the largest share
    share, least = points[at]
    if at + 1 < len(points):
        wider, more = points[at + 1]
        share += (wider - share) * (loss - least) / (more - least)
    return min(1.0, max(0.0, 1 - share / most))


def check_loss(value: object, option: str = "max_loss") -> float:
    """A loss, from 0 nats a token.

    Raises:
        RequestError: naming the option: it is something else.
    """
    return check_number(option, value, "a number of nats a token from 0", 0, 100)
