"""What a router is worth: quality against cost, for its routes, for it, for a coin and for an oracle.

Quality is what a route loses on answers: by how much less likely, in nats a token, it finds them than the dearest does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.evaluation.routes import has_router, route_bytes
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import TOKENIZER
from adaptc.runtime.loading import load
from adaptc.runtime.model.router import router_of
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.sources.chats import Chat, Chats, read_chats
from adaptc.sources.vocabulary import hash_of

Array = npt.NDArray[np.float64]
POINTS = 64
"""Points of a curve, at most."""


@dataclass(frozen=True, slots=True)
class Point:
    """A way to choose routes, on the plane.

    Attributes:
        cost: Mean bytes of weights read for a token, as a share of the dearest route's.
        loss: Mean nats a token that are lost against the dearest route.
        error: Standard error of the loss.
    """

    cost: float
    loss: float
    error: float

    @property
    def kept(self) -> float:
        """Share of the dearest route's likelihood of a token that is left (a geometric mean)."""
        return math.exp(-self.loss)


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """What was measured of a bundle's routes and its router.

    Attributes:
        prompts: Answers that were measured.
        tokens: Tokens of these.
        routes: Each route, by name.
        calibrated: The router at the threshold that it was calibrated to.
        shares: By route, the share of prompts that goes there then.
        router: The router at other thresholds, from the dearest to the cheapest.
        coin: Routes drawn without a look at the prompt: the corners of the best that such a draw can do.
        oracle: Routes chosen by what each really loses.
    """

    prompts: int
    tokens: int
    routes: Mapping[str, Point]
    calibrated: Point
    shares: Mapping[str, float]
    router: Sequence[Point]
    coin: Sequence[Point]
    oracle: Sequence[Point]

    def record(self) -> dict[str, Any]:
        """Return it all as JSON has it."""
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "routes": {name: _point(each) for name, each in self.routes.items()},
            "calibrated": _point(self.calibrated) | {"shares": dict(self.shares)},
            "beats_coin_by": self.beats_coin_by,
            "router": [_point(each) for each in self.router],
            "coin": [_point(each) for each in self.coin],
            "oracle": [_point(each) for each in self.oracle],
        }

    @property
    def beats_coin_by(self) -> float:
        """Nats a token that the calibrated router loses less than a coin at its cost does."""
        costs, losses = zip(*sorted((each.cost, each.loss) for each in self.coin), strict=True)
        return float(np.interp(self.calibrated.cost, costs, losses)) - self.calibrated.loss


def measure_routing(
    bundle: Bundle, chats: Path, first: int | None = None, threads: int | None = None, progress: Progress = SILENT
) -> Routing:
    """Run every route of a bundle over chats, and ask its router about their prompts.

    Args:
        bundle: Stitched, with a router.
        chats: A file that `adaptc write-data` wrote with a model of the bundle's vocabulary; chats that nothing of the
            bundle was trained or calibrated on are right. The first answer of each counts.
        first: Use only so many chats.
        threads: Threads of the engine.
        progress: Told of stages and steps.

    Raises:
        RequestError: the bundle has no router, or the chats are of another vocabulary or too long for it.
        LoadError: the file is damaged.
    """
    if not has_router(bundle):
        raise RequestError(f"{bundle.path}: no router; a bundle of routes with a trained router is right")
    switch = bundle.manifest.switch
    assert switch is not None
    net = router_of(bundle, switch)
    assert net is not None
    costs, record = route_bytes(bundle), net.record
    read = read_chats(chats)
    _check_vocabulary(bundle, read, chats)
    decoder = bundle.manifest.graphs[bundle.manifest.reader].decoder
    assert decoder is not None
    lost, predicted, tokens = [], [], 0
    with load(bundle.path, "cpu", batch=1, threads=threads, verify=False) as session:
        fitting = [each for each in read.chats if _fits(each, decoder.max_tokens)][:first]
        if not fitting:
            raise RequestError(f"{chats}: no chat of at most {decoder.max_tokens} tokens, which the bundle holds")
        progress.stage("run every route over answers")
        for chat in counted(fitting, progress):
            start, end = chat.answers[0]
            values = [session.score(list(chat.ids[:end]), route=name).values for name in costs]
            lost.append([-float(each[start - 1 :].mean()) for each in values])
            losses = session.choose(list(chat.ids[:start])).losses
            predicted.append([losses[name] for name in costs])
            tokens += end - start
    shares = np.array(list(costs.values())) / max(costs.values())
    found = np.array(lost)
    dearest = int(shares.argmax())
    offered = np.array([name not in record.withheld for name in costs])
    return routing(
        tuple(costs), shares, found - found[:, dearest, None], np.array(predicted), record.threshold, tokens, offered
    )


def routing(
    names: Sequence[str],
    costs: Array,
    lost: Array,
    predicted: Array,
    threshold: float,
    tokens: int,
    offered: npt.NDArray[np.bool_] | None = None,
) -> Routing:
    """Work out the plane from what each route loses on each prompt.

    Args:
        names: Of the routes.
        costs: Of each, as a share of the dearest's: float64 [routes].
        lost: Nats a token that each route loses against the dearest: float64 [prompts, routes].
        predicted: The same as the router predicts it.
        threshold: That the router was calibrated to.
        tokens: Tokens of all answers.
        offered: Whether the router may pick a route: bool [routes]; None for all.
    """
    rows = np.arange(len(lost))
    order = np.argsort(costs, kind="stable")
    if offered is not None:
        order = order[offered[order]]

    def at(picks: npt.NDArray[np.int64]) -> Point:
        losses = lost[rows, picks]
        return Point(float(costs[picks].mean()), float(losses.mean()), float(losses.std() / len(rows) ** 0.5))

    def picked(level: float) -> npt.NDArray[np.int64]:
        fits = predicted[:, order] <= level
        picks: npt.NDArray[np.int64] = order[np.where(fits.any(1), fits.argmax(1), len(order) - 1)]
        return picks

    routes = {name: at(np.full(len(rows), place)) for place, name in enumerate(names)}
    levels = [-math.inf, *np.unique(np.quantile(predicted, np.linspace(0, 1, POINTS))).tolist(), math.inf]
    # What a nat is worth in cost, from nothing to everything: each price has its best choice.
    prices = [0.0, *np.geomspace(1e-3, 1e3, POINTS).tolist()]
    chosen = picked(threshold)
    return Routing(
        prompts=len(rows),
        tokens=tokens,
        routes=routes,
        calibrated=at(chosen),
        shares={name: float((chosen == place).mean()) for place, name in enumerate(names)},
        router=_thinned([at(picked(level)) for level in levels]),
        coin=_hull(list(routes.values())),
        oracle=_thinned([at((costs + price * lost).argmin(1)) for price in prices]),
    )


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower corners of points, by rising cost: what a draw among them can reach lies on the lines between."""
    found: list[Point] = []
    for each in sorted(points, key=lambda point: (point.cost, point.loss)):
        if found and each.loss >= found[-1].loss:
            continue
        while len(found) > 1 and _above(found[-2], found[-1], each):
            found.pop()
        found.append(each)
    return found


def _above(first: Point, middle: Point, last: Point) -> bool:
    """Whether the middle one of three points is on or above the line between the others."""
    slope = (last.loss - first.loss) / (last.cost - first.cost)
    return middle.loss >= first.loss + slope * (middle.cost - first.cost)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Points by falling cost, each cost once."""
    return list({each.cost: each for each in sorted(points, key=lambda point: -point.cost)}.values())


def _point(point: Point) -> dict[str, float]:
    return {"cost": point.cost, "loss": point.loss, "error": point.error, "kept": point.kept}


def _fits(chat: Chat, most: int) -> bool:
    """Whether a chat's first answer has a prompt, and ends where a bundle holds it."""
    return bool(chat.answers) and chat.answers[0][0] > 0 and chat.answers[0][1] <= most


def _check_vocabulary(bundle: Bundle, read: Chats, path: Path) -> None:
    """Refuse chats whose ids are another vocabulary's.

    Raises:
        RequestError: they are.
    """
    from tokenizers import Tokenizer

    content = bundle.below(TOKENIZER).get("tokenizer.json")
    if content is None or read.metadata.get("vocabulary") != hash_of(Tokenizer.from_buffer(content).get_vocab()):
        raise RequestError(f"{path}: chats in another vocabulary than the bundle's; a model of it is to write them")
