"""Calibrate a router: from what it predicted for held-out prompts, and what these really lost, to thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from adaptc.errors import PassError
from adaptc.runtime.bundle.names import gates_file
from adaptc.runtime.bundle.plan import RouterRecord

if TYPE_CHECKING:
    from adaptc.passes.stitch.stitch import Routing

Array = npt.NDArray[np.float32]
CARD = "adaptc.router"
PREDICTED, LOST = "held_out.predicted", "held_out.lost"
LEVELS = 32
"""Points of the table that a budget moves along."""

MOST = 1.0
"""Nats a token: what one prompt counts at most in a bound, which needs losses that are bounded."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What is known of prompts that a router was not trained on.

    Attributes:
        predicted: What the router said each route loses against the dearest, nats a token: float32 [prompts, routes].
        lost: What it really lost; of the same shape.
        costs: Of each route, as a share of the dearest's.
    """

    predicted: Array
    lost: Array
    costs: Array

    def picks(self, threshold: float) -> npt.NDArray[np.int64]:
        """For each prompt the route that is taken: the cheapest that loses at most the threshold, else the dearest."""
        order = np.argsort(self.costs, kind="stable")
        fits = self.predicted[:, order] <= threshold
        place = np.where(fits.any(1), fits.argmax(1), len(order) - 1)
        found: npt.NDArray[np.int64] = order[place]
        return found

    def share(self, threshold: float) -> float:
        """Share of prompts that take the dearest route."""
        return float((self.picks(threshold) == self.costs.argmax()).mean())

    def cost(self, threshold: float) -> float:
        """Mean cost, as a share of the dearest route's."""
        return float(self.costs[self.picks(threshold)].mean())

    def losses(self, threshold: float) -> Array:
        """What each prompt loses, at least 0 and at most `MOST`."""
        found: Array = np.clip(self.lost[np.arange(len(self.lost)), self.picks(threshold)], 0, MOST)
        return found

    def thresholds(self) -> list[float]:
        """All that differ in what they pick, rising: from every prompt on the dearest route to none."""
        cheaper = np.delete(self.predicted, int(self.costs.argmax()), axis=1)
        points = np.quantile(cheaper, np.linspace(0, 1, 129)) if cheaper.size else np.zeros(0)
        return [-math.inf, *np.unique(points).tolist(), math.inf]


def calibrated(routing: Routing, costs: Mapping[str, float]) -> RouterRecord:
    """A router with the threshold that was asked for.

    Args:
        routing: The spec's options; its `weights` is a path.
        costs: By route, in the order of the program; any unit.

    Raises:
        PassError: the file is missing, damaged or of other routes, or what was asked for cannot be met.
    """
    held_out = read(Path(routing.weights), costs)
    threshold, bound = _threshold(routing, held_out)
    levels = [(held_out.cost(level), level) for level in held_out.thresholds()]
    falling = [point for place, point in enumerate(levels) if place == 0 or point[0] < levels[place - 1][0]]
    kept = falling[:: max(1, len(falling) // LEVELS)]
    found = {"mean_cost": held_out.cost(threshold), "share": held_out.share(threshold), "prompts": len(held_out.lost)}
    return RouterRecord(gates_file("router"), threshold, tuple(kept), bound | found)


def read(path: Path, costs: Mapping[str, float]) -> HeldOut:
    """What a router's file holds of held-out prompts.

    Raises:
        PassError: as `calibrated`.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        card = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][CARD])
        predicted, lost = tensors[PREDICTED], tensors[LOST]
    except FileNotFoundError:
        raise PassError(f"{path.name}: no such file; `adaptc train` makes one") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise PassError(f"{path.name}: no router ({error}); a file of `adaptc train` is right") from error
    if card["routes"] != list(costs):
        raise PassError(f"{path.name}: a router of {', '.join(card['routes'])}; the routes are {', '.join(costs)}")
    most = max(costs.values())
    return HeldOut(predicted, lost, np.array([cost / most for cost in costs.values()], np.float32))


def _threshold(routing: Routing, held_out: HeldOut) -> tuple[float, dict[str, Any]]:
    """The threshold that gives what was asked for, and what can be said of it."""
    rising = held_out.thresholds()
    if routing.target_share is not None:
        # More prompts than wished on the dearest route cost more than was asked for.
        found = next(level for level in rising if held_out.share(level) <= routing.target_share)
        return found, {"target_share": routing.target_share}
    if routing.mean_cost is not None:
        fitting = [level for level in rising if held_out.cost(level) <= routing.mean_cost]
        if not fitting:
            raise PassError(
                f"router: mean_cost: {routing.mean_cost:g}; the cheapest route costs {held_out.costs.min():.2f} of the "
                "dearest, so that or more is right"
            )
        return fitting[0], {"mean_cost_asked": routing.mean_cost}
    assert routing.max_loss is not None
    return _within(held_out, rising, routing.max_loss, routing.confidence)


def _within(held_out: HeldOut, rising: Sequence[float], most: float, confidence: float) -> tuple[float, dict[str, Any]]:
    """The highest threshold whose mean loss is at most `most` with this confidence.

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
    """How likely so small a mean of losses in [0, 1] is, if the true mean were above `most`.

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
