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
from adaptc.runtime.model.decoder import Ids, Logits, Prefill, States, read_through, read_whole
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.model.router import Choice, RouterNet


class Segment(Protocol):
    """A trunk or a tail, on whatever runs it: its slots, its cache and its gates."""

    spec: DecoderSpec
    batch: int
    gates: SkipGates | None

    def threshold(self, options: RequestOptions) -> float:
        """What the gates are compared with under these options."""

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """Have the later tokens of a sequence run with another budget."""

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
        adapters: Empty.
    """

    adapters: tuple[str, ...] = ()

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
    def _open_trunk(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> Prefill:
        """Begin to have the trunk read a prompt and keep its states."""

    @abstractmethod
    def _trunk_states(self, slot: int, tokens: int) -> States:
        """The states kept for the first tokens of a slot, float32 [tokens, width]."""

    @abstractmethod
    def _length(self, slot: int) -> int:
        """Tokens that the trunk holds for a slot, with their states."""

    @abstractmethod
    def _set_length(self, slot: int, tokens: int) -> None:
        """Have the trunk forget all tokens of a slot but the first."""

    @abstractmethod
    def _open_tail(self, route: str, tail_slot: int, slot: int, ids: Ids | None, prompt: int) -> Prefill:
        """Begin to have a route's tail read the states kept for a slot into a slot of its own.

        Args:
            route: The route.
            tail_slot: Where the tail reads them.
            slot: Whose states.
            ids: The tokens of the states, to find what the tail read before; None if it shall read all.
            prompt: As many of them are read; the others are taken if they are known.
        """

    def admit(self, slot: int, ids: Ids, options: RequestOptions, prompt: int | None = None) -> Prefill:
        """See `BatchDecoder.admit`; the router reads the prompt's states."""
        self._leave(slot)
        self._options[slot] = options
        prompt = len(ids) if prompt is None else prompt
        return RoutedPrefill(self._open_trunk(slot, ids, options, prompt), self._join, ids, prompt)

    def start(self, slot: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`."""
        return read_whole(self.admit(slot, ids, options), len(ids) + 1)

    def route(self, slot: int) -> str | None:
        """See `BatchDecoder.route`."""
        return self._place(slot)[0]

    def reroute(self, slot: int, route: str) -> None:
        """See `BatchDecoder.reroute`; the new tail reads the kept states, and nothing else is computed again."""
        if route != self._place(slot)[0]:
            self._enter(slot, route, None, self._length(slot))

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """See `BatchDecoder.set_budget`."""
        route, tail_slot = self._place(slot)
        self._options[slot] = options
        self._trunk.set_budget(slot, options)
        self._tails[route].set_budget(tail_slot, options)

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

    def explain(self, ids: Ids, budget: float | None, slot: int = 0) -> Choice:
        """See `BatchDecoder.explain`.

        Raises:
            RequestError: there is no router.
        """
        if self._router is None:
            raise RequestError(f"route: this bundle has no router; requests name a route, or take {self.routes[0]!r}")
        self._read_trunk(slot, ids)
        return self._router.choose(self._trunk_states(slot, len(ids)), budget)

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        for segment in (self._trunk, *self._tails.values()):
            segment.close()

    def _read_trunk(self, slot: int, ids: Ids) -> None:
        """Have the trunk read a text into a slot in one go, dense."""
        self._leave(slot)
        self._options[slot] = NO_OPTIONS
        read_through(self._open_trunk(slot, ids, _DENSE_OPTIONS, len(ids)), len(ids) + 1)

    def _route_text(self, slot: int, ids: Ids, options: RequestOptions) -> tuple[str, int]:
        """Have the trunk read a text, and take a slot in the tail of its route: the route, and that slot."""
        self._read_trunk(slot, ids)
        self._options[slot] = options
        place = self._free_place(self._pick(slot, len(ids), options))
        self._places[slot] = place
        return place

    def _pick(self, slot: int, tokens: int, options: RequestOptions) -> str:
        if options.route is not None:
            return options.route
        if self._router is None:
            return self.routes[0]
        return self._router.choose(self._trunk_states(slot, tokens), options.budget, options.ceiling).route

    def _place(self, slot: int) -> tuple[str, int]:
        place = self._places[slot]
        assert place is not None, "no sequence was started in this slot"
        return place

    def _groups(self, count: int) -> dict[str, list[int]]:
        """The first slots by route, each route's in the order of its tail slots."""
        groups: dict[str, dict[int, int]] = {}
        for slot in range(count):
            route, tail_slot = self._place(slot)
            groups.setdefault(route, {})[tail_slot] = slot
        return {route: [members[place] for place in range(len(members))] for route, members in groups.items()}

    def _join(self, slot: int, ids: Ids, prompt: int) -> tuple[Logits | None, int]:
        """Have the tail of a slot's route, picked by the prompt, read what the trunk has read; the tokens there now."""
        logits = self._enter(slot, self._pick(slot, prompt, self._options[slot]), ids, prompt)
        return logits, self._length(slot)

    def _enter(self, slot: int, route: str, ids: Ids | None, prompt: int) -> Logits | None:
        """Have a route's tail read the states kept for a slot; logits of the next token, see `Prefill.read`."""
        self._leave(slot)
        place = self._free_place(route)
        tail = self._open_tail(*place, slot, ids, prompt)
        logits = read_through(tail, prompt + 1)
        self._places[slot] = place
        self._set_length(slot, tail.done)  # the tail may know less of what was written than the trunk
        return logits

    def _free_place(self, route: str) -> tuple[str, int]:
        return route, sum(place is not None and place[0] == route for place in self._places)

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


_DENSE_OPTIONS = RequestOptions(budget=1.0)


class RoutedPrefill:
    """A `Prefill`: the trunk reads piece by piece, then the tail that the route names reads all states in one go.

    A router needs the states of the whole prompt, so no tail can read before the trunk is done.
    """

    def __init__(
        self, trunk: Prefill, join: Callable[[int, Ids, int], tuple[Logits | None, int]], ids: Ids, prompt: int
    ) -> None:
        """Begin with nothing read.

        Args:
            trunk: Reads the prompt.
            join: Has the tail read what the trunk has read, given slot, ids and prompt; says how many tokens are there.
            ids: See `BatchDecoder.admit`.
            prompt: See `BatchDecoder.admit`.
        """
        self._trunk, self._join, self._ids, self._prompt = trunk, join, ids, prompt
        self._joined: int | None = None

    @property
    def slot(self) -> int:
        """See `Prefill`."""
        return self._trunk.slot

    @slot.setter
    def slot(self, slot: int) -> None:
        self._trunk.slot = slot

    @property
    def done(self) -> int:
        """See `Prefill`."""
        return self._trunk.done if self._joined is None else self._joined

    @property
    def complete(self) -> bool:
        """See `Prefill`."""
        return self._joined is not None

    @property
    def cached(self) -> int:
        """See `Prefill`: as the trunk found them."""
        return self._trunk.cached

    def read(self, most: int) -> Logits | None:
        """See `Prefill`."""
        self._trunk.read(most)
        if not self._trunk.complete:
            return None
        logits, self._joined = self._join(self.slot, self._ids[: self._trunk.done], self._prompt)
        return logits
