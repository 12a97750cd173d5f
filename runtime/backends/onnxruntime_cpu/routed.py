"""A decoder in two parts: a trunk that every request runs, and one of several tails, by the request's route.

                     ┌─> tail of route a ─> logits     each with a KV cache of its own
    ids ─> trunk ───┤
             │       └─> tail of route b ─> logits
             └─ states are kept, so that a request can change its route: only the new tail reads them again

Rows of the trunk are the requests in their order. Each tail has rows of its own, one after another, for the requests on
its route; so a step runs the trunk once for all rows, and each tail once for its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.onnxruntime_cpu.decoder import Decoder, Ids, Logits, States
from adaptc.runtime.backends.onnxruntime_cpu.memory import room
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import DENSE, Skips, Wish, together
from adaptc.runtime.model.router import Choice, Router


@dataclass(frozen=True, slots=True)
class Tail:
    """What a route runs after the trunk.

    Attributes:
        engine: A graph that reads states.
        spec: What it expects.
        gates: What decides which of its blocks run, if it has gates.
    """

    engine: Engine
    spec: DecoderSpec
    gates: SkipGates | None = None


@dataclass(frozen=True, slots=True)
class Routes:
    """What a session needs to run a stitched bundle.

    Attributes:
        tails: By route, the default first.
        width: Of the state that the trunk gives.
        router: Picks a route; None for the default.
    """

    tails: Mapping[str, Tail]
    width: int
    router: Router | None = None

    def decoder(self, trunk: Decoder, chunk: int) -> RoutedDecoder:
        """A decoder of the trunk and all tails, with caches of their own."""
        tails = {
            name: Decoder(tail.engine, tail.spec, trunk.batch, chunk, tail.gates) for name, tail in self.tails.items()
        }
        return RoutedDecoder(trunk, tails, self.width, self.router)


class Part(Protocol):
    """A trunk or a tail, on whatever it runs: its rows, its cache and its gates."""

    spec: DecoderSpec
    batch: int
    gates: SkipGates | None

    def threshold(self, wish: Wish) -> float:
        """What the gates are compared with as a request wants it."""

    def ran(self, row: int) -> bytes | None:
        """Which gated blocks the newest step ran; None while the row warms up."""

    def move(self, row: int, to: int) -> None:
        """Put the sequence of one row in the place of another."""

    def close(self) -> None:
        """Free it."""


P = TypeVar("P", bound=Part)


class Routed(ABC, Generic[P]):
    """Rows over a trunk and several tails: which row is on which route, and at which place there; see `rows.Rows`.

    Attributes:
        spec: What the bundle expects.
        batch: Rows.
        routes: Names of the routes, the default first.
    """

    def __init__(self, trunk: P, tails: Mapping[str, P], router: Router | None = None) -> None:
        """Put the parts together.

        Args:
            trunk: Reads ids and gives states.
            tails: Read states and give logits, by route; as many rows as the trunk.
            router: Picks a route where a request names none; without one it is the first.
        """
        self.spec: DecoderSpec = next(iter(tails.values())).spec
        self.batch = trunk.batch
        self.routes = tuple(tails)
        self._trunk, self._tails, self._router = trunk, dict(tails), router
        self._places: list[tuple[str, int] | None] = [None] * self.batch  # (route, row of its tail)
        self._wishes = [Wish()] * self.batch

    @abstractmethod
    def _read_tail(self, route: str, place: int, row: int) -> Logits:
        """Have a route's tail read a row's states at a place of its own; logits of the token that follows."""

    @abstractmethod
    def _read_trunk(self, row: int, ids: Ids, threshold: float) -> Callable[[], States]:
        """Have the trunk read a prompt and keep its states; they are given when they are asked for."""

    def start(self, row: int, ids: Ids, wish: Wish) -> Logits:
        """See `Rows`; the router reads the prompt's states."""
        states = self._read_trunk(row, ids, self._trunk.threshold(wish))
        self._wishes[row] = wish
        return self._enter(row, self._picked(states, wish))

    def route(self, row: int) -> str | None:
        """See `Rows`."""
        return self._place(row)[0]

    def reroute(self, row: int, route: str) -> None:
        """See `Rows`; the new tail reads the row's states, and nothing else is computed again."""
        if route != self._place(row)[0]:
            self._enter(row, route)

    def ran(self, row: int) -> bytes | None:
        """See `Rows`: the trunk's blocks, then the tail's."""
        route, place = self._place(row)
        parts = self._trunk.ran(row), self._tails[route].ran(place)
        given = [part for part in parts if part is not None]
        return b"".join(given) if given and all(self._warm(route, parts)) else None

    def skips(self, steps: Sequence[bytes], route: str | None) -> Skips | None:
        """See `Rows`; of a request that changed its route, the tokens of its last one."""
        gates = [part.gates for part in (self._trunk, self._tails[route or self.routes[0]]) if part.gates is not None]
        return together(steps, gates)

    def dense(self, wish: Wish) -> bool:
        """See `Rows`."""
        tails = [self._tails[wish.route]] if wish.route is not None else list(self._tails.values())
        return all(part.threshold(wish) == DENSE for part in (self._trunk, *tails))

    def explain(self, ids: Ids, budget: float | None) -> Choice:
        """What the router makes of a prompt; the first row is lost.

        Raises:
            RequestError: there is no router.
        """
        if self._router is None:
            raise RequestError(f"route: this bundle has no router; requests name a route, or take {self.routes[0]!r}")
        self._leave(0)
        return self._router.choose(self._read_trunk(0, ids, DENSE)(), budget)

    def close(self) -> None:
        """See `Rows`."""
        for part in (self._trunk, *self._tails.values()):
            part.close()

    def _only(self, ids: Ids, wish: Wish) -> str:
        """Read a text in the first row, and leave all places of its route's tail free; the route."""
        self._leave(0)
        states = self._read_trunk(0, ids, DENSE)
        self._wishes[0] = wish
        route = self._picked(states, wish)
        for row in range(self.batch):
            self._leave(row)
        self._places[0] = route, 0
        return route

    def _picked(self, states: Callable[[], States], wish: Wish) -> str:
        if wish.route is not None:
            return wish.route
        return self.routes[0] if self._router is None else self._router.choose(states(), wish.budget).route

    def _place(self, row: int) -> tuple[str, int]:
        place = self._places[row]
        assert place is not None, "a row that nothing was started in"
        return place

    def _groups(self, rows: int) -> dict[str, list[int]]:
        """The first rows by route, in the order of their places there; what is behind them leaves its place."""
        for row in range(rows, self.batch):
            self._leave(row)
        groups: dict[str, dict[int, int]] = {}
        for row in range(rows):
            route, place = self._place(row)
            groups.setdefault(route, {})[place] = row
        return {route: [members[place] for place in range(len(members))] for route, members in groups.items()}

    def _enter(self, row: int, route: str) -> Logits:
        """Have a route's tail read a row's states."""
        self._leave(row)
        place = sum(each is not None and each[0] == route for each in self._places)
        logits = self._read_tail(route, place, row)
        self._places[row] = route, place
        return logits

    def _leave(self, row: int) -> None:
        """Free a row's place in its tail; the last of the tail's rows takes it."""
        if self._places[row] is None:
            return
        route, place = self._place(row)
        self._places[row] = None
        others = {each[1]: index for index, each in enumerate(self._places) if each is not None and each[0] == route}
        last = max(others, default=-1)
        if last > place:
            self._tails[route].move(last, place)
            self._places[others[last]] = route, place

    def _warm(self, route: str, parts: tuple[bytes | None, bytes | None]) -> Iterator[bool]:
        """For each part with gates, whether it says which blocks ran."""
        for part, ran in zip((self._trunk, self._tails[route]), parts, strict=True):
            if part.gates is not None:
                yield ran is not None


class RoutedDecoder(Routed[Decoder]):
    """Rows over a trunk and several tails, whose states lie in the host's memory."""

    def __init__(self, trunk: Decoder, tails: Mapping[str, Decoder], width: int, router: Router | None = None) -> None:
        """Put the parts together; `width` is that of a state.

        Raises:
            RequestError: the states do not fit in memory.
        """
        super().__init__(trunk, tails, router)
        try:
            self._states: States = room((self.batch, self.spec.max_tokens, width))
        except MemoryError as error:
            raise RequestError(f"batch: {self.batch} rows of {self.spec.max_tokens} states do not fit") from error
        self._used = [0] * self.batch
        self._logits = np.empty((self.batch, self.spec.vocab_size), np.float32)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `Rows`."""
        rows = len(tokens)
        groups = self._groups(rows)
        states = self._trunk.decode(tokens)
        for row in range(rows):
            self._states[row, self._used[row]] = states[row]
            self._used[row] += 1
        for route, order in groups.items():
            logits = self._tails[route].decode(states[order] if rows > 1 else states)
            if len(groups) == 1 and order == sorted(order):
                return logits
            self._logits[order] = logits
        return self._logits[:rows]

    def move(self, row: int, to: int) -> None:
        """See `Rows`."""
        self._leave(to)
        used = self._used[row]
        self._trunk.move(row, to)
        self._states[to, :used] = self._states[row, :used]
        self._used[to], self._wishes[to] = used, self._wishes[row]
        self._places[to], self._places[row] = self._places[row], None

    def score(self, ids: Ids, most: int, wish: Wish) -> Iterator[Logits]:
        """See `Rows`."""
        route = self._only(ids, wish)
        yield from self._tails[route].score(self._states[0, : len(ids)], most)

    def _read_trunk(self, row: int, ids: Ids, threshold: float) -> Callable[[], States]:
        states = self._states[row, : len(ids)]
        self._trunk.states(row, ids, threshold, states)
        self._used[row] = len(ids)
        return lambda: states

    def _read_tail(self, route: str, place: int, row: int) -> Logits:
        tail = self._tails[route]
        return tail.prefill(place, self._states[row, : self._used[row]], tail.threshold(self._wishes[row]))
