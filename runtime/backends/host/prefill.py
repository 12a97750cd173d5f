"""Reading a prompt into a slot of the host's cache, a piece at a time, after what is known of it from others."""

from __future__ import annotations

from typing import Protocol

from adaptc.runtime.backends.host.kv_slots import KvSlots
from adaptc.runtime.backends.host.prefix_cache import BLOCK, Entry, PrefixCache
from adaptc.runtime.model.decoder import Ids, Logits, States, piece_size
from adaptc.runtime.model.inserts import Inserts, piece_end


class PieceReader(Protocol):
    """What reads the pieces: a `HostDecoder`."""

    @property
    def chunk(self) -> int:
        """The largest number of prompt tokens that go through the graph at once, but for an image read whole."""

    @property
    def name(self) -> str:
        """The graph's name."""

    @property
    def kv(self) -> KvSlots:
        """The cache."""

    def read_piece(
        self, slot: int, start: int, piece: Ids | States, into: States | None, inserts: Inserts | None
    ) -> Logits:
        """Add tokens of a prompt to a slot that holds `start` of them."""

    def set_length(self, slot: int, tokens: int) -> None:
        """Say how many tokens a slot has after blocks were written to its cache."""

    def keep_block(self, slot: int, index: int, key: bytes, states: States | None) -> None:
        """Keep one block of the sequence in a slot, unless it is there."""


class HostPrefill:
    """A `Prefill` over a `HostDecoder`.

    Attributes:
        slot: Where the sequence lies; whoever moves it writes here where to.
        done: See `Prefill`.
        cached: See `Prefill`.
    """

    def __init__(
        self,
        decoder: PieceReader,
        slot: int,
        source: Ids | States,
        prompt: int,
        keys: list[bytes],
        prefixes: PrefixCache,
        inserts: Inserts | None = None,
        into: States | None = None,
    ) -> None:
        """Begin with nothing read.

        Args:
            decoder: Reads it.
            slot: Its old sequence is lost.
            source: int64 [tokens]: the prompt, and what was written after it if the sequence goes on; or float32
                [tokens, width] for a tail.
            prompt: The number of tokens of the prompt.
            keys: Of the blocks of `source`; none if its entries are not to be shared.
            prefixes: Has what was read before, and keeps what is read now.
            inserts: Features that stand in the place of some tokens.
            into: float32 [batch, max_tokens, width], receives the states of a trunk.
        """
        self.slot = slot
        self.done = 0
        self.cached = 0
        self._decoder, self._source, self._prompt, self._keys = decoder, source, prompt, keys
        self._prefixes, self._inserts, self._into = prefixes, inserts, into

    @property
    def complete(self) -> bool:
        """See `Prefill`."""
        return self.done >= self._prompt

    def read(self, most: int) -> Logits | None:
        """See `Prefill`; a trunk gives the states of the last piece."""
        self._restore()
        if self.complete:
            return None
        start = self.done
        stop = start + piece_size(self._prompt - start, min(most, self._decoder.chunk))
        stop = piece_end(self._inserts, start, stop, self._prompt)
        piece = self._source[start:stop]
        into = None if self._into is None else self._into[self.slot, start:stop]
        logits = self._decoder.read_piece(self.slot, start, piece, into, self._inserts)
        self.done = stop
        self._keep(start, stop)
        if not self.complete:
            return None
        self._prefixes.touch(self._decoder.name, self._keys)
        last: Logits = logits[-1]
        return last

    def _restore(self) -> None:
        """Take the blocks that are known from here on; a prompt that is new keeps something to read."""
        if self.done % BLOCK or self.complete:
            return
        first = self.done // BLOCK
        last = first + self._prefixes.known(self._decoder.name, self._keys, first)
        last = min(last, (len(self._source) - 1) // BLOCK)
        if self._prompt - last * BLOCK == 1 and last > first:
            last -= 1  # a piece of one token would run other kernels than the prompt does as a whole
        entries: list[Entry] = []
        for key in self._keys[first:last]:
            entry = self._prefixes.get(self._decoder.name, key)
            assert entry is not None, "it is known"
            entries.append(entry)
        last = first + self._decoder.kv.restorable(first, entries)
        if self._prompt - last * BLOCK == 1 and last > first:  # see above
            last = first + self._decoder.kv.restorable(first, entries[: last - first - 1])
        if last > first:
            self._write(first, entries[: last - first])
            self._decoder.set_length(self.slot, last * BLOCK)
            self.cached += min(last * BLOCK, self._prompt) - self.done
            self.done = last * BLOCK

    def _write(self, first: int, entries: list[Entry]) -> None:
        self._decoder.kv.restore(self.slot, first, entries)
        if self._into is not None:
            for index, entry in enumerate(entries, first):
                self._into[self.slot, index * BLOCK : (index + 1) * BLOCK] = entry[-1]

    def _keep(self, start: int, stop: int) -> None:
        states = None if self._into is None else self._into[self.slot]
        for index in range(start // BLOCK, min(stop // BLOCK, len(self._keys))):
            self._decoder.keep_block(self.slot, index, self._keys[index], states)
