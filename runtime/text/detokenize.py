"""Turn a growing sequence into text piece by piece: only whole characters, and never a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from adaptc.runtime.errors import RequestError
from adaptc.runtime.validation import check_elements, shown

_UNFINISHED = "\ufffd"  # what decoders put where the bytes make no character yet
_FIRST_MARK = 0xD800
_NO_TOKENS: Mapping[int, str] = MappingProxyType({})
_PATIENCE = 8  # tokens; a character has at most 4 bytes, so after these it is not going to be one


class Decoding(Protocol):
    """The text of one sequence as its tokens come in."""

    def push(self, token: int) -> str:
        """The text that is certain now; the pieces joined are the text of all tokens."""

    def finish(self) -> str:
        """What is left when no token follows: usually nothing."""


class ByteDecoding:
    """For byte-level vocabularies: exact, whatever the tokens are."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """See `Decoding.push`."""
        return self._decoder.decode(self._bytes_of(token))

    def finish(self) -> str:
        """See `Decoding.finish`."""
        return self._decoder.decode(b"", final=True)


class WindowDecoding:
    """For all other vocabularies: decodes a few tokens together, and tells what the newest added.

    A token's text can depend on the tokens before it (a space that is dropped at the start, bytes that make
    a character together), so the window begins with tokens whose text is out already.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._out = 0  # characters of the window's text that are out
        self._sent = 0  # tokens of the window whose text is out

    def push(self, token: int) -> str:
        """See `Decoding.push`."""
        self._window.append(token)
        text = self._decode(self._window)
        waiting = len(self._window) - self._sent
        if len(text) <= self._out or (text.endswith(_UNFINISHED) and waiting < _PATIENCE):
            return ""
        piece = text[self._out :]
        self._window = self._window[self._sent :]
        self._sent = len(self._window)
        self._out = len(self._decode(self._window))
        return piece

    def finish(self) -> str:
        """See `Decoding.finish`."""
        return self._decode(self._window)[self._out :]


class Text:
    """The text of one sequence up to the first stop string.

    Text that may be the beginning of a stop string is held back until it is certain. A special token that is left out
    of the text counts as part of a stop string that has its name in it.

    Attributes:
        stopped: A stop string has come; no more text follows.
    """

    def __init__(self, decoding: Decoding, stops: tuple[str, ...], special: Mapping[int, str] = _NO_TOKENS) -> None:
        """Begin with no token.

        Args:
            decoding: Spells the tokens.
            stops: The stop strings.
            special: Names of the tokens that `decoding` leaves out of the text, of those that `stops` name.
        """
        self.stopped = False
        self._decoding = decoding
        # Each stands for a token that has no text; no text has a lone surrogate in it.
        self._marks = {token: chr(_FIRST_MARK + place) for place, token in enumerate(special)}
        names = {special[token]: mark for token, mark in self._marks.items()}
        marked = (_replaced(stop, names) for stop in stops)
        self._stops = tuple(dict.fromkeys((*stops, *marked)))
        self._held = ""

    def push(self, token: int, may_stop: bool = True) -> str:
        """The text that is certain now; a stop string whose end comes while it may not stop is ordinary text."""
        piece = self._decoding.push(token)
        if not self._stops or not may_stop:
            return piece
        return self._shown(self._until_stop(piece + self._marks.get(token, "")))

    def finish(self, may_stop: bool = True) -> str:
        """What was held back, when no token follows; see `push`."""
        if self.stopped:
            return ""
        piece = self._decoding.finish()
        piece = self._until_stop(piece) if may_stop else piece
        rest, self._held = self._held, ""
        return self._shown(piece + rest)

    def _until_stop(self, piece: str) -> str:
        text = self._held + piece
        matches = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if matches:
            # The stop string that was complete first, whatever pieces the text came in.
            self.stopped, self._held = True, ""
            return text[: min(matches)[1]]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[certain:]
        return text[:certain]

    def _shown(self, text: str) -> str:
        for mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _replaced(text: str, marks: Mapping[str, str]) -> str:
    """A text with marks for the names of tokens in it; of names that overlap the longest counts."""
    for name in sorted(marks, key=len, reverse=True):
        text = text.replace(name, marks[name])
    return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def stop_strings(stop: object) -> tuple[str, ...]:
    """The stop strings of a request: one string, or an iterable of some.

    Raises:
        RequestError: one is empty or not a string.
    """
    needed = "a string, or a list of strings"
    stops = (stop,) if isinstance(stop, str) else tuple(check_elements("stop", stop, needed))
    for one in stops:
        if not isinstance(one, str) or not one:
            raise RequestError(f"stop: {shown(one)}; each must be a string of at least one character")
    return stops  # type: ignore[return-value]
