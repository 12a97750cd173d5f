"""A chat template taken apart: what stands before a user's turn, after it, and between turns, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptc.errors import LoadError, RequestError
from adaptc.runtime.errors import BundleError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.base import Source

Messages = tuple[Mapping[str, str], ...]
_MARK = "XJQ7VMARKX"


@dataclass(frozen=True, slots=True)
class Frame:
    """How one model's chats are written.

    Attributes:
        tokenizer: The model's.
        ends: Ids of the tokens that end a turn.
        systems: Whether the template writes a system message.
    """

    tokenizer: Tokenizer
    ends: frozenset[int]
    systems: bool

    @classmethod
    def of(cls, source: Source) -> Frame:
        """Take the template of a model.

        Raises:
            LoadError: it has none, or one that cannot be used, or no token ends an answer.
        """
        try:
            tokenizer = Tokenizer(source.tokenizer_files(), f"{source.origin}: tokenizer")
            written = tokenizer.render([user(_MARK)])
        except (BundleError, RequestError) as error:
            raise LoadError(f"{source.origin}: no chats can be written: {error}; an instruct model is right") from error
        if not (ends := frozenset(source.token_ids().eos)):
            raise LoadError(f"{source.origin}: no token ends an answer; a model whose config names `eos` is right")
        if written.count(_MARK) != 1:
            raise LoadError(f"{source.origin}: the chat template does not write a user's message as it is")
        try:
            systems = _MARK in tokenizer.render([{"role": "system", "content": _MARK}, user("?")])
        except RequestError:
            systems = False
        return cls(tokenizer, ends, systems)

    def prompt(self, messages: Messages) -> list[int] | None:
        """Return a conversation's ids up to where the next answer begins; None if the template refuses it."""
        text = self._rendered(messages)
        return None if text is None else self.tokenizer.encode(text, special=False)

    def header(self, system: str | None = None) -> list[int] | None:
        """Return the ids up to where a user's first message begins; None where no token ends a user's turn.

        Args:
            system: A system message, if there is to be one.
        """
        text = self._rendered((*opening(system), user(_MARK)))
        if text is None:
            return None
        before, _, after = text.partition(_MARK)
        first = self.tokenizer.encode(after, special=False)[:1]
        # A model that was not trained to end a user's turn with such a token would write the answer too.
        if not self.ends.intersection(first):
            return None
        return self.tokenizer.encode(before, special=False)

    def follow_up(self, messages: Messages, request: str | None) -> list[int] | None:
        """Return what comes after an answer's ids, which an end token ends, up to where the next turn begins.

        Args:
            messages: The conversation, whose last message is the answer.
            request: What the user says next; None for the ids up to where the model is to write that itself.

        Returns:
            None if the template does not write the conversation as it was, one token after the other.
        """
        before = self._rendered(messages[:-1])
        whole = self._rendered((*messages, user(_MARK if request is None else request)))
        if before is None or whole is None:
            return None
        said = before + messages[-1]["content"]
        if not whole.startswith(said):
            return None
        after = whole[len(said) :]
        if request is None:
            after = after.partition(_MARK)[0]
        ids = self.tokenizer.encode(after, special=False)
        return ids[1:] if self.ends.intersection(ids[:1]) else None

    def is_foreign(self, ids: Sequence[int]) -> bool:
        """Return whether a special token stands in a text, where none is written."""
        plain = self.tokenizer.decode(ids)
        return plain != self.tokenizer.decode(ids, special=True)

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        try:
            return self.tokenizer.render(messages)
        except (RequestError, BundleError):
            return None


def user(text: str) -> dict[str, str]:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}


def opening(system: str | None) -> Messages:
    """Return the messages before the user's first one."""
    return () if system is None else ({"role": "system", "content": system},)
