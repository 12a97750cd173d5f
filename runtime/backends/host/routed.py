"""A trunk and several tails whose caches, and the states between them, lie in the host's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.memory import lazy_zeros
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.decoder import Ids, Logits, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import RouterNet
from adaptc.runtime.model.routes import RoutedDecoder


class HostRoutedDecoder(RoutedDecoder[HostDecoder]):
    """A `RoutedDecoder` of `HostDecoder`s."""

    def __init__(
        self, trunk: HostDecoder, tails: Mapping[str, HostDecoder], width: int, router: RouterNet | None = None
    ) -> None:
        """Put the segments together and allocate the states.

        Args:
            trunk: Reads ids and gives states.
            tails: Read states and give logits, by route; each has as many slots as the trunk.
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
        self._lengths = [0] * self.batch  # states kept for each slot
        self._logits = np.empty((self.batch, self.spec.vocab_size), np.float32)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `BatchDecoder.decode`."""
        count = len(tokens)
        groups = self._groups(count)
        states = self._trunk.decode(tokens)
        for slot in range(count):
            self._states[slot, self._lengths[slot]] = states[slot]
            self._lengths[slot] += 1
        for route, slots in groups.items():
            logits = self._tails[route].decode(states[slots] if count > 1 else states)
            if len(groups) == 1 and slots == sorted(slots):
                return logits
            self._logits[slots] = logits
        return self._logits[:count]

    def move(self, slot: int, to: int) -> None:
        """See `BatchDecoder.move`."""
        self._leave(to)
        length = self._lengths[slot]
        self._trunk.move(slot, to)
        self._states[to, :length] = self._states[slot, :length]
        self._lengths[to], self._options[to] = length, self._options[slot]
        self._places[to], self._places[slot] = self._places[slot], None

    def score(self, ids: Ids, most: int, options: RequestOptions) -> Iterator[Logits]:
        """See `BatchDecoder.score`."""
        route = self._read_alone(ids, options)
        yield from self._tails[route].score(self._states[0, : len(ids)], most)

    def _read_trunk(self, slot: int, ids: Ids, threshold: float) -> Callable[[], States]:
        states = self._states[slot, : len(ids)]
        self._trunk.states(slot, ids, threshold, states)
        self._lengths[slot] = len(ids)
        return lambda: states

    def _read_tail(self, route: str, tail_slot: int, slot: int) -> Logits:
        tail = self._tails[route]
        return tail.prefill(tail_slot, self._states[slot, : self._lengths[slot]], tail.threshold(self._options[slot]))
