"""The part of a decoder that verifies drafted tokens: several of one sequence in one run, as steps would read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.runtime.model.options import RequestOptions


@dataclass(frozen=True, slots=True)
class Verified:
    """What a decoder says to several tokens of a sequence.

    Attributes:
        logits: float32 [tokens, vocab]: of the token that follows each; the caller's to keep and to change.
        ran: For each, which gated blocks ran, as `BatchDecoder.ran` says it.
    """

    logits: Logits
    ran: tuple[bytes | None, ...]


class DraftDecoder(Protocol):
    """A smaller decoder that guesses what another one goes on with."""

    batch: int

    def extend(self, slot: int, tokens: Ids) -> Logits:
        """Add tokens to the sequence in a slot.

        Args:
            slot: From 0 to `batch` - 1.
            tokens: int64 [tokens], at least one.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep and to change.

        Raises:
            EngineError: the engine failed.
        """

    def set_length(self, slot: int, tokens: int) -> None:
        """Have a slot forget all tokens but the first."""

    def close(self) -> None:
        """Free it."""


@runtime_checkable
class Verifier(Protocol):
    """A decoder that reads several tokens of a sequence at once to the same end as token by token."""

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds at most."""

    def verifiable(self, options: RequestOptions) -> int:
        """The largest number of tokens that `verify` takes of a sequence with these options; 0 if it takes none."""

    def apart(self, options: RequestOptions, sequences: int) -> bool:
        """Whether a step of so many sequences gives one with these options what a step of it alone does."""

    def verify(self, slot: int, tokens: Sequence[int]) -> Verified:
        """Add tokens to the sequence in a slot; see `rewind` for those that turn out to be wrong.

        Args:
            slot: Of an active sequence, which has room for them.
            tokens: 1 to `verifiable` of them.

        Raises:
            EngineError: the engine failed.
        """

    def read_token(self, slot: int, token: int, options: RequestOptions | None = None) -> Logits:
        """Add one token to the sequence in a slot, in the way that a step of this sequence alone does.

        Args:
            slot: Of an active sequence, which has room for it.
            token: Its id.
            options: With another budget, for this token; None for the sequence's own.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep and to change.

        Raises:
            EngineError: the engine failed.
        """

    def rewind(self, slot: int, tokens: int) -> None:
        """Take the newest tokens off the sequence in a slot: so many are left, the prompt's included."""

    def length(self, slot: int) -> int:
        """Tokens in a slot."""

    def digest(self, slot: int, first: int) -> bytes:
        """A hash of all that is kept of a slot's tokens from one on."""
