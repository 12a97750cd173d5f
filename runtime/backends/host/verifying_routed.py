"""A trunk and tails that verify drafted tokens: states of several tokens go through the tail of a sequence's route."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptc.runtime.backends.host.routed import HostRoutedDecoder
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.model.decoder import Logits, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import Verified


class VerifyingRoutedDecoder(HostRoutedDecoder[VerifyingDecoder]):
    """A `HostRoutedDecoder` that is a `Verifier`, and lets one route guess what another one goes on with."""

    @property
    def capacity(self) -> int:
        """See `Verifier.capacity`."""
        return self.spec.max_tokens

    def verifiable(self, options: RequestOptions) -> int:
        """See `Verifier.verifiable`."""
        return min(each.verifiable(options) for each in self._run_by(options))

    def _run_by(self, options: RequestOptions) -> tuple[VerifyingDecoder, ...]:
        """What a sequence with these options may run."""
        tails = [self._tails[options.route]] if options.route is not None else list(self._tails.values())
        return self._trunk, *tails

    def apart(self, options: RequestOptions, sequences: int) -> bool:
        """See `Verifier.apart`."""
        return all(each.apart(options, sequences) for each in self._run_by(options))

    def verify(self, slot: int, tokens: Sequence[int]) -> Verified:
        """See `Verifier.verify`."""
        route, tail_slot = self._place(slot)
        start, trunk, tail = self.length(slot), self._trunk, self._tails[route]
        states, ran_below = trunk.read_rows(slot, np.array(tokens, np.int64))
        self._states[slot, start : start + len(tokens)] = states
        logits, ran_above = tail.read_rows(tail_slot, states)
        gated = [rows for each, rows in ((trunk, ran_below), (tail, ran_above)) if each.gates is not None]
        if not gated:
            return Verified(logits, (None,) * len(tokens))
        rows = zip(*gated, strict=True)
        return Verified(logits, tuple(None if None in row else b"".join(filter(None, row)) for row in rows))

    def read_token(self, slot: int, token: int, options: RequestOptions | None = None) -> Logits:
        """See `Verifier.read_token`."""
        route, tail_slot = self._place(slot)
        state = self._read_state(slot, token, options)
        return self._tails[route].extend(tail_slot, state[None], options)

    def guess(self, slot: int, token: int, route: str, tail_slot: int) -> Logits:
        """Add a token to the trunk's sequence, and have the tail of another route read all states that it lacks.

        Args:
            slot: Of the sequence.
            token: Its id.
            route: The other route.
            tail_slot: A slot of that tail that no sequence has, see `DecoderOptions.spare`.

        Returns:
            float32 [vocab]: logits of the token that follows by that route; the caller's to keep and to change.

        Raises:
            EngineError: the engine failed.
        """
        self._read_state(slot, token, None)
        tail = self._tails[route]
        return tail.extend(tail_slot, self._states[slot, tail.length(tail_slot) : self._trunk.length(slot)])

    def forget_guesses(self, route: str, tail_slot: int, tokens: int) -> None:
        """Have a slot that `guess` fills keep the first tokens only."""
        self._tails[route].set_length(tail_slot, tokens)

    def rewind(self, slot: int, tokens: int) -> None:
        """See `Verifier.rewind`."""
        route, tail_slot = self._place(slot)
        self._trunk.set_length(slot, tokens)
        self._tails[route].set_length(tail_slot, tokens)

    def length(self, slot: int) -> int:
        """See `Verifier.length`."""
        return self._trunk.length(slot)

    def digest(self, slot: int, first: int) -> bytes:
        """See `Verifier.digest`."""
        route, tail_slot = self._place(slot)
        return self._trunk.digest(slot, first) + self._tails[route].digest(tail_slot, first)

    def _read_state(self, slot: int, token: int, options: RequestOptions | None) -> States:
        """Have the trunk read a token, and keep its state: float32 [width]."""
        start = self._trunk.length(slot)
        state = self._trunk.extend(slot, np.array([token], np.int64), options)
        self._states[slot, start] = state
        return state
