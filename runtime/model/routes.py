"""A decoder in two segments: a trunk that every request runs, and one of several tails, by the request's route.

                    ┌─> tail of route a ─> logits     each with a KV cache of its own
    ids ─> trunk ───┤
            │       └─> tail of route b ─> logits
            └─ states are kept, so that a request can change its route: only the new tail reads them again

Slots of the trunk are those of the decoder. Each tail has slots of its own, filled from the first one, for the
sequences on its route; so a step runs the trunk once for all sequences, and each tail once for its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import DENSE, Skips, collect_skips
from adaptc.runtime.model.decoder import Ids, Logits, States
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.model.router import Choice, RouterNet


class Segment(Protocol):
    """A trunk or a tail, on whatever runs it: its slots, its cache and its gates."""

    spec: DecoderSpec
    batch: int
    gates: SkipGates | None

    def threshold(self, options: RequestOptions) -> float:
        """What the gates are compared with under these options."""

    def ran(self, slot: int) -> bytes | None:
        """Which gated blocks the newest step ran; None during the sequence's warm-up."""

    def move(self, slot: int, to: int) -> None:
        """Move a sequence to another slot."""

    def close(self) -> None:
        """Free it."""


S = TypeVar("S", bound=Segment)


class RoutedDecoder(ABC, Generic[S]):
    """A `BatchDecoder` over a trunk and several tails; it tracks which sequence is on which route, in which tail slot.

    Attributes:
        spec: What the bundle expects.
        batch: The number of slots.
        gates: The trunk's skip gates; None if it has none.
        routes: Names of the routes, the default first.
    """

    def __init__(self, trunk: S, tails: Mapping[str, S], router: RouterNet | None = None) -> None:
        """Put the segments together.

        Args:
            trunk: Reads ids and gives states.
            tails: Read states and give logits, by route; each has as many slots as the trunk.
            router: Picks the route of a request that names none; without it that is the first route.
        """
        self.spec: DecoderSpec = next(iter(tails.values())).spec
        self.batch = trunk.batch
        self.gates = trunk.gates
        self.routes = tuple(tails)
        self._trunk, self._tails, self._router = trunk, dict(tails), router
        self._places: list[tuple[str, int] | None] = [None] * self.batch  # (route, slot of its tail)
        self._options = [NO_OPTIONS] * self.batch

    @property
    def takes_budget(self) -> bool:
        """See `BatchDecoder.takes_budget`."""
        segments = (self._trunk, *self._tails.values())
        return self._router is not None or any(each.gates is not None for each in segments)

    @abstractmethod
    def _read_trunk(self, slot: int, ids: Ids, threshold: float) -> Callable[[], States]:
        """Have the trunk read a prompt and keep its states; the function returned fetches them."""

    @abstractmethod
    def _read_tail(self, route: str, tail_slot: int, slot: int) -> Logits:
        """Have a route's tail read the states kept for a slot, into a slot of its own; logits of the next token."""

    def start(self, slot: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`; the router reads the prompt's states."""
        states = self._read_trunk(slot, ids, self._trunk.threshold(options))
        self._options[slot] = options
        return self._enter(slot, self._pick(states, options))

    def route(self, slot: int) -> str | None:
        """See `BatchDecoder.route`."""
        return self._place(slot)[0]

    def reroute(self, slot: int, route: str) -> None:
        """See `BatchDecoder.reroute`; the new tail reads the kept states, and nothing else is computed again."""
        if route != self._place(slot)[0]:
            self._enter(slot, route)

    def ran(self, slot: int) -> bytes | None:
        """See `BatchDecoder.ran`: the trunk's blocks, then the tail's."""
        route, tail_slot = self._place(slot)
        both = ((self._trunk, slot), (self._tails[route], tail_slot))
        steps = [segment.ran(place) for segment, place in both if segment.gates is not None]
        known = [step for step in steps if step is not None]
        return b"".join(known) if known and len(known) == len(steps) else None

    def skips(self, steps: Sequence[bytes], route: str | None) -> Skips | None:
        """See `BatchDecoder.skips`; of a sequence that changed its route, only the tokens of its last route count."""
        tail = self._tails[route or self.routes[0]]
        return collect_skips(steps, [each.gates for each in (self._trunk, tail) if each.gates is not None])

    def dense(self, options: RequestOptions) -> bool:
        """See `BatchDecoder.dense`."""
        tails = [self._tails[options.route]] if options.route is not None else list(self._tails.values())
        return all(segment.threshold(options) == DENSE for segment in (self._trunk, *tails))

    def explain(self, ids: Ids, budget: float | None) -> Choice:
        """See `BatchDecoder.explain`.

        Raises:
            RequestError: there is no router.
        """
        if self._router is None:
            raise RequestError(f"route: this bundle has no router; requests name a route, or take {self.routes[0]!r}")
        self._leave(0)
        return self._router.choose(self._read_trunk(0, ids, DENSE)(), budget)

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        for segment in (self._trunk, *self._tails.values()):
            segment.close()

    def _read_alone(self, ids: Ids, options: RequestOptions) -> str:
        """Have the trunk read a text in the first slot, and empty all tails; returns the text's route."""
        self._leave(0)
        states = self._read_trunk(0, ids, DENSE)
        self._options[0] = options
        route = self._pick(states, options)
        for slot in range(self.batch):
            self._leave(slot)
        self._places[0] = route, 0
        return route

    def _pick(self, states: Callable[[], States], options: RequestOptions) -> str:
        if options.route is not None:
            return options.route
        return self.routes[0] if self._router is None else self._router.choose(states(), options.budget).route

    def _place(self, slot: int) -> tuple[str, int]:
        place = self._places[slot]
        assert place is not None, "no sequence was started in this slot"
        return place

    def _groups(self, count: int) -> dict[str, list[int]]:
        """The first slots by route, each route's in the order of its tail slots; all later slots are freed."""
        for slot in range(count, self.batch):
            self._leave(slot)
        groups: dict[str, dict[int, int]] = {}
        for slot in range(count):
            route, tail_slot = self._place(slot)
            groups.setdefault(route, {})[tail_slot] = slot
        return {route: [members[place] for place in range(len(members))] for route, members in groups.items()}

    def _enter(self, slot: int, route: str) -> Logits:
        """Have a route's tail read the states kept for a slot."""
        self._leave(slot)
        tail_slot = sum(place is not None and place[0] == route for place in self._places)
        logits = self._read_tail(route, tail_slot, slot)
        self._places[slot] = route, tail_slot
        return logits

    def _leave(self, slot: int) -> None:
        """Free a sequence's slot in its tail; the sequence in the tail's last slot moves there."""
        if self._places[slot] is None:
            return
        route, tail_slot = self._place(slot)
        self._places[slot] = None
        others = {place[1]: other for other, place in enumerate(self._places) if place and place[0] == route}
        last = max(others, default=-1)
        if last > tail_slot:
            self._tails[route].move(last, tail_slot)
            self._places[others[last]] = route, tail_slot
