"""A trunk and several tails whose caches, and the states between them, lie in the host's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.memory import lazy_zeros
from adaptc.runtime.backends.host.prefill import HostPrefill
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.decoder import Ids, Logits, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import RouterNet
from adaptc.runtime.model.routes import RoutedDecoder

H = TypeVar("H", bound=HostDecoder)


class HostRoutedDecoder(RoutedDecoder[H], Generic[H]):
    """A `RoutedDecoder` of `HostDecoder`s."""

    def __init__(self, trunk: H, tails: Mapping[str, H], width: int, router: RouterNet | None = None) -> None:
        """Put the segments together and allocate the states.

        Args:
            trunk: Reads ids and gives states.
            tails: Read states and give logits, by route; each has as many slots as the trunk, or more.
            width: Width of a state.
            router: Picks the route of a request that names none; without it that is the first route.

        Raises:
            RequestError: the states do not fit in memory.
        """
        super().__init__(trunk, tails, router)
        try:
            self._states: States = lazy_zeros((self.batch, self.spec.max_tokens, width))
        except MemoryError as error:
            raise RequestError(
                f"batch: {self.batch} sequences of {self.spec.max_tokens} states do not fit in memory"
            ) from error
        self._logits = np.empty((self.batch, self.spec.vocab_size), np.float32)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `BatchDecoder.decode`."""
        count = len(tokens)
        groups = self._groups(count)
        states = self._trunk.decode(tokens)
        for slot in range(count):
            self._states[slot, self._length(slot) - 1] = states[slot]
        for route, slots in groups.items():
            logits = self._tails[route].decode(states[slots] if count > 1 else states)
            if len(groups) == 1 and slots == sorted(slots):
                return logits
            self._logits[slots] = logits
        return self._logits[:count]

    def move(self, slot: int, to: int) -> None:
        """See `BatchDecoder.move`."""
        self._leave(to)
        length = self._length(slot)
        self._trunk.move(slot, to)
        self._states[to, :length] = self._states[slot, :length]
        self._options[to] = self._options[slot]
        self._places[to], self._places[slot] = self._places[slot], None

    def retire(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> None:
        """See `BatchDecoder.retire`."""
        keys = self._keys(ids[: self._length(slot)], prompt, options)
        self._trunk.keep(slot, keys, self._states[slot])
        if (place := self._places[slot]) is not None:
            self._tails[place[0]].keep(place[1], keys)
        self._leave(slot)

    def score(self, ids: Ids, most: int, options: RequestOptions, slot: int = 0) -> Iterator[Logits]:
        """See `BatchDecoder.score`."""
        route, tail_slot = self._route_text(slot, ids, options)
        yield from self._tails[route].score(self._states[slot, : len(ids)], most, slot=tail_slot)

    def _open_trunk(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> HostPrefill:
        keys = self._keys(ids, prompt, options)
        return self._trunk.open(slot, ids, prompt, keys, self._trunk.threshold(options), into=self._states)

    def _keys(self, ids: Ids, prompt: int, options: RequestOptions) -> list[bytes]:
        """The keys of a sequence's blocks, of the trunk's as of the tails' entries."""
        return self._trunk.keys(ids, prompt, options, self.dense(options))

    def _trunk_states(self, slot: int, tokens: int) -> States:
        return self._states[slot, :tokens]

    def _length(self, slot: int) -> int:
        return self._trunk.length(slot)

    def _set_length(self, slot: int, tokens: int) -> None:
        self._trunk.set_length(slot, tokens)

    def _open_tail(self, route: str, tail_slot: int, slot: int, ids: Ids | None, prompt: int) -> HostPrefill:
        tail, options = self._tails[route], self._options[slot]
        keys = [] if ids is None else self._keys(ids, prompt, options)
        states = self._states[slot, : self._length(slot)]
        return tail.open(tail_slot, states, prompt, keys, tail.threshold(options))
