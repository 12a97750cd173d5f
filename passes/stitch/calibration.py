"""Set a router's threshold as the spec asks, from the held-out prompts that are stored in the router's file.

Training decides what the router predicts (adaptc/training/router.py). The threshold depends on the spec's options and
on the costs of its routes, so it is set when the spec is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, PassError
from adaptc.ir.stored.router_file import load_router
from adaptc.passes.stitch.options import RouterOptions
from adaptc.runtime.bundle.names import gates_file
from adaptc.runtime.bundle.plan import RouterRecord

Array = npt.NDArray[np.float32]
LEVELS = 32
"""Points of the table that a budget moves along."""

MOST = 1.0
"""Largest loss, in nats a token, that one prompt counts in a bound: a bound needs losses that are bounded."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Prompts that a router was not trained on.

    Attributes:
        predicted: Loss of each route against the dearest as the router predicts it, nats a token:
            float32 [prompts, routes].
        lost: The measured loss; of the same shape.
        costs: Cost of each route as a share of the dearest route's: float32 [routes].
        offered: Whether a route may be picked: bool [routes]; None for all.
    """

    predicted: Array
    lost: Array
    costs: Array
    offered: npt.NDArray[np.bool_] | None = None

    def picks(self, threshold: float) -> npt.NDArray[np.int64]:
        """For each prompt the route that is taken: the cheapest that loses at most the threshold, else the dearest."""
        order = np.argsort(self.costs, kind="stable")
        if self.offered is not None:
            order = order[self.offered[order]]
        fits = self.predicted[:, order] <= threshold
        place = np.where(fits.any(1), fits.argmax(1), len(order) - 1)
        picks: npt.NDArray[np.int64] = order[place]
        return picks

    def share(self, threshold: float) -> float:
        """Share of prompts that take the dearest route."""
        return float((self.picks(threshold) == self.costs.argmax()).mean())

    def cost(self, threshold: float) -> float:
        """Mean cost, as a share of the dearest route's."""
        return float(self.costs[self.picks(threshold)].mean())

    def losses(self, threshold: float) -> Array:
        """Return what each prompt loses, at least 0 and at most `MOST`."""
        losses: Array = np.clip(self.lost[np.arange(len(self.lost)), self.picks(threshold)], 0, MOST)
        return losses

    def thresholds(self) -> list[float]:
        """All that differ in what they pick, rising: from every prompt on the dearest route to none."""
        cheaper = np.delete(self.predicted, int(self.costs.argmax()), axis=1)
        points = np.quantile(cheaper, np.linspace(0, 1, 129)) if cheaper.size else np.zeros(0)
        return [-math.inf, *np.unique(points).tolist(), math.inf]


def calibrated(
    options: RouterOptions, costs: Mapping[str, float], withheld: Mapping[str, str] = MappingProxyType({})
) -> RouterRecord:
    """Return a router with the threshold that the options ask for.

    Args:
        options: The spec's options; its `weights` is a path.
        costs: By route, in the order of the program; any unit.
        withheld: Routes that are not picked, with the reason; never the dearest.

    Raises:
        PassError: the file is missing, damaged or of other routes, or what was asked for cannot be met.
    """
    path = Path(options.weights)
    try:
        router = load_router(path)
    except LoadError as error:
        raise PassError(str(error)) from error
    if router.routes != tuple(costs):
        raise PassError(f"{path.name}: a router of {', '.join(router.routes)}; the routes are {', '.join(costs)}")
    most = max(costs.values())
    shares = np.array([cost / most for cost in costs.values()], np.float32)
    offered = np.array([route not in withheld for route in costs])
    held_out = HeldOut(router.predicted, router.lost, shares, offered)
    threshold, bound = _threshold(options, held_out)
    points = [(held_out.cost(level), level) for level in held_out.thresholds()]
    falling = [point for place, point in enumerate(points) if place == 0 or point[0] < points[place - 1][0]]
    levels = tuple(falling[:: max(1, len(falling) // LEVELS)])
    measured = {"mean_cost": held_out.cost(threshold), "share": held_out.share(threshold)}
    bound |= measured | {"prompts": len(held_out.lost)}
    return RouterRecord(gates_file("router"), threshold, levels, bound, dict(withheld))


def _threshold(options: RouterOptions, held_out: HeldOut) -> tuple[float, dict[str, Any]]:
    """Return the threshold that the options ask for, and what holds of it."""
    rising = held_out.thresholds()
    if options.target_share is not None:
        # More prompts than wished on the dearest route cost more than was asked for.
        threshold = next(level for level in rising if held_out.share(level) <= options.target_share)
        return threshold, {"target_share": options.target_share}
    if options.mean_cost is not None:
        fitting = [level for level in rising if held_out.cost(level) <= options.mean_cost]
        if not fitting:
            raise PassError(
                f"router: mean_cost: {options.mean_cost:g}; the cheapest route costs {held_out.cost(math.inf):.2f} of "
                "the dearest, so that or more is right"
            )
        return fitting[0], {"mean_cost_asked": options.mean_cost}
    assert options.max_loss is not None
    return _within(held_out, rising, options.max_loss, options.confidence)


def _within(held_out: HeldOut, rising: Sequence[float], most: float, confidence: float) -> tuple[float, dict[str, Any]]:
    """Return the highest threshold whose mean loss is at most `most` with this confidence.

    Thresholds are tested in order, from the one that loses nothing, until one cannot be shown to be good enough; so no
    correction for testing many is needed (fixed-sequence testing in Learn then Test, arXiv:2110.01052).
    """
    best: tuple[float, float] | None = None
    for level in rising:
        losses = held_out.losses(level) / MOST
        chance = p_value(float(losses.mean()), len(losses), most / MOST)
        if chance > 1 - confidence:
            break
        best = level, float(losses.mean()) * MOST
    if best is None:
        prompts = math.ceil(math.log(1 - confidence) / math.log1p(-min(most, 0.999999)))
        raise PassError(
            f"router: max_loss: {most:g} at confidence {confidence:g} cannot be shown on {len(held_out.lost)} held-out "
            f"prompts, even with all on the dearest route; {prompts} prompts, or a larger loss, are right"
        )
    return best[0], {"max_loss": most, "confidence": confidence, "mean_loss": best[1]}


def p_value(mean: float, count: int, most: float) -> float:
    """Return how likely so small a mean of losses in [0, 1] is, if the true mean were above `most`.

    The smaller of Hoeffding's and Bentkus's bounds (Bates et al., arXiv:2101.02703, section 3.1).
    """
    if most >= 1:
        return 0.0
    low = min(mean, most)
    divergence = _relative_entropy(low, most)
    return min(1.0, math.exp(-count * divergence), math.e * _binomial(math.ceil(count * mean), count, most))


def _relative_entropy(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def _binomial(most: int, count: int, chance: float) -> float:
    """P(at most `most` of `count`)."""
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(chance) + (count - k) * math.log1p(-chance)
        for k in range(min(most, count) + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))
