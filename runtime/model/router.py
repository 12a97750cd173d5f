"""The router of a stitched bundle: predicts from the prompt's states what each route would lose, and picks one.

    x = [mean of z, last z]          z: the states, RMS 1
    loss = W2 tanh(W1 x + b1) + b2   nats a token that each route loses against the dearest

A request takes the cheapest route whose predicted loss is at most the threshold, else the dearest. Routes that are
withheld, as a cheaper one predicts better, are taken only by requests that name them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.plan import RouterRecord, Switch
from adaptc.runtime.errors import BundleError
from adaptc.runtime.safetensors_file import read_safetensors

Array = npt.NDArray[np.float32]
METADATA = "adaptc.router"
"""Key of the metadata in a router file's header."""
NAMES = ("w1", "b1", "w2", "b2")


@dataclass(frozen=True, slots=True, eq=False)
class RouterNet:
    """A router's loaded predictor, with what was calibrated (`RouterRecord`).

    Attributes:
        weights: w1 [hidden, 2 · width], b1 [hidden], w2 [routes, hidden], b2 [routes]; float32.
        costs: Bytes read for a token, by route, in the order of w2's rows.
        record: Its threshold, and the levels that a budget moves along.
    """

    weights: Mapping[str, Array]
    costs: Mapping[str, int]
    record: RouterRecord

    def choose(self, states: Array, budget: float | None = None, ceiling: float = 1.0) -> Choice:
        """The route for a prompt, and why.

        Args:
            states: float32 [tokens, width], as the trunk gives them.
            budget: From 0 (cheapest) to 1 (dearest); None for the calibrated threshold.
            ceiling: The most that either counts for.
        """
        threshold = self.record.threshold if budget is None else self.threshold_at(budget)
        threshold = max(threshold, self.threshold_at(ceiling))
        losses = dict(zip(self.costs, self.losses(features(states)).tolist(), strict=True))
        offered = {route: cost for route, cost in self.costs.items() if route not in self.record.withheld}
        return Choice(picked(losses, offered, threshold), losses, threshold, dict(self.costs))

    def losses(self, x: Array) -> Array:
        """Predicted losses: float32 [..., 2 · width] -> [..., routes]."""
        w = self.weights
        result: Array = np.tanh(x @ w["w1"].T + w["b1"]) @ w["w2"].T + w["b2"]
        return result

    def threshold_at(self, budget: float) -> float:
        """The threshold of a budget: the mean cost goes in a line from the cheapest route's to the dearest's."""
        if budget >= 1:
            return -math.inf
        if budget <= 0:
            return math.inf
        least = min(self.costs.values()) / max(self.costs.values())
        cost = least + budget * (1 - least)
        points = [(share, level) for share, level in self.record.levels if math.isfinite(level)]
        if not points:
            return self.record.threshold
        shares, levels = zip(*reversed(points), strict=True)
        return float(np.interp(cost, np.array(shares, np.float64), np.array(levels, np.float64)))


@dataclass(frozen=True, slots=True)
class Choice:
    """Why a prompt goes where it goes.

    Attributes:
        route: What was picked.
        losses: Predicted nats a token that each route loses against the dearest.
        threshold: What they were compared with.
        costs: Bytes read for a token, by route.
    """

    route: str
    losses: dict[str, float]
    threshold: float
    costs: dict[str, int]


def picked(losses: Mapping[str, float], costs: Mapping[str, int], threshold: float) -> str:
    """The cheapest route of those with a cost whose loss is at most the threshold, else the dearest."""
    cheapest_first = sorted(costs, key=lambda route: costs[route])
    return next((route for route in cheapest_first if losses[route] <= threshold), cheapest_first[-1])


def features(states: Array) -> Array:
    """What the router reads of a prompt: float32 [tokens, width] -> [2 · width]."""
    z = states / np.sqrt(np.mean(np.square(states), axis=-1, keepdims=True) + 1e-6)
    result: Array = np.concatenate([z.mean(0), z[-1]]).astype(np.float32)
    return result


def router_of(bundle: Bundle, switch: Switch) -> RouterNet | None:
    """The router of a bundle; None if its requests name their routes.

    Raises:
        BundleError: its file is damaged.
    """
    if switch.router is None:
        return None
    file = switch.router.file
    costs = bundle.manifest.route_bytes[switch.gate]
    weights = read_router(bundle.read(file), tuple(costs), str(bundle.path / file))
    return RouterNet(weights, costs, switch.router)


def read_router(content: bytes, routes: Sequence[str], where: str) -> dict[str, Array]:
    """The weights in a router's file.

    Args:
        content: A safetensors file.
        routes: The routes it must be of, in its order.
        where: What messages call it.

    Raises:
        BundleError: it is damaged, or of other routes.
    """
    try:
        header, tensors = read_safetensors(content)
        metadata = json.loads(header[METADATA])
        weights = {name: _float32(tensors[name]) for name in NAMES}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where}: no router: {error}; `adaptc train` makes one") from error
    if tuple(metadata["routes"]) != tuple(routes):
        raise BundleError(f"{where}: a router of {', '.join(metadata['routes'])}; of {', '.join(routes)} is right")
    return weights


def _float32(tensor: npt.NDArray[np.generic]) -> Array:
    if tensor.dtype != np.float32:
        raise ValueError(f"dtype {tensor.dtype}, not float32")
    return tensor.astype(np.float32, copy=False)
