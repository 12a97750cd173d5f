"""Streams: the text of one request piece by piece, and its result afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.option_checks import OptionChecks
from adaptc.runtime.generation.result import Result
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.generation.turns import Turn, Turns
from adaptc.runtime.model.decoder import BatchDecoder

if TYPE_CHECKING:
    from typing_extensions import Self


class Writing(Turn):
    """The turn of a request that writes.

    Attributes:
        unread: Pieces of text that nobody has read yet, if the request is read piece by piece.
    """

    def __init__(
        self, decoder: BatchDecoder, sequences: Sequence[TokenSequence], ends_at: float | None, streamed: bool = False
    ) -> None:
        """Begin with nothing written.

        Args:
            decoder: Writes them.
            sequences: One, or those of a batch.
            ends_at: See `Turn`.
            streamed: Whether the one sequence is read piece by piece.
        """
        super().__init__(sequences, ends_at)
        self.unread: deque[str] = deque()
        self._decoder = decoder
        self._sequences = sequences
        if streamed:
            sequences[0].stream = self.unread

    @property
    def route(self) -> str | None:
        """The route of the first sequence; None before it was read, and for a bundle without routes."""
        return self._sequences[0].route

    def reroute(self, route: str) -> None:
        """Have the next step move the first sequence to another route."""
        self._sequences[0].route = route

    def set_budget(self, budget: float | None) -> None:
        """Have the next steps of all sequences run with another budget."""
        for sequence in self._sequences:
            sequence.set_budget(budget)

    def ran(self, token: int) -> bytes | None:
        """See `TokenSequence.ran_for`, of the first sequence."""
        return self._sequences[0].ran_for(token)

    def tokens_of_piece(self, before: int) -> int:
        """Tokens of the first sequence up to the one that brought its next piece of text, `before` of them earlier."""
        sequence = self._sequences[0]
        last = next(index for index in range(before, len(sequence.pieces)) if sequence.pieces[index])
        return last if sequence.reason == "eos" and last == len(sequence.ids) - 1 else last + 1

    def read_whole(self) -> None:
        """Say that somebody waits for the end, whoever reads the pieces."""
        for sequence in self._sequences:
            sequence.paced = False

    def results(self) -> list[Result]:
        """What was written by the end of the turn, which may have been cut.

        Raises:
            AdaptcError: another error than a cut ended it.
        """
        if self.cut is None:
            self.check()
        return [each.result(self._decoder.skips, self.cut or "cancelled") for each in self._sequences]


class _Readable:
    """What both kinds of streams have."""

    def __init__(self, turns: Turns, writing: Writing, checks: OptionChecks) -> None:
        """Made by a session."""
        self._turns = turns
        self._writing = writing
        self._checks = checks
        self._result: Result | None = None
        self._told = False  # that there is no further piece
        self._tokens = 0

    @property
    def result(self) -> Result:
        """The result, once the stream has ended or was closed.

        A stream that was closed has what was written by then, which is more than what was read if another request had
        to wait for it.

        Raises:
            RequestError: the stream goes on.
            EngineError: the engine failed.
        """
        if self._result is None:
            if self._turns.closed:
                self._writing.end("cancelled", RequestError("session: closed"))
            self._writing.end_if_late(self._turns.clock())
            if not self._writing.ended:
                raise RequestError("stream: it has not ended; read it to its end or close it, then it has a result")
            [self._result] = self._writing.results()
        return self._result

    @property
    def tokens(self) -> int:
        """Tokens whose text was read: all up to the one that completed the newest piece, but no end token."""
        return self._tokens

    def ran(self, token: int) -> bytes | None:
        """Which gated blocks ran in the step that chose a token, a byte for each; see `Skips.ran`.

        Args:
            token: Its index among those that were written, from 0.

        Returns:
            None for the first token, which the prompt's last one gave, for tokens of the warm-up, and without gates.
        """
        return self._writing.ran(token)

    def reroute(self, route: str) -> None:
        """Continue by another route, from the next token on.

        The new route's layers read the states that were kept; the layers below them are not computed again.

        Args:
            route: Its name.

        Raises:
            RequestError: there is no such route, or the stream has not begun or has ended.
        """
        self._checks.route(route)
        if self._writing.ended and not self._told and self._writing.cut is None:
            return  # its last piece was written, which its reader cannot know yet
        if self._writing.ended or self._writing.route is None:
            raise RequestError("reroute: the stream has not begun or has ended; it changes the route of one between")
        self._writing.reroute(route)

    def set_budget(self, budget: float) -> None:
        """Write on with another budget, from the token after the next on; the prompt was read whole in any case.

        Args:
            budget: From 0 (cheapest) to 1 (dense).

        Raises:
            RequestError: it is out of range, or the bundle has neither gates nor a router.
        """
        self._writing.set_budget(self._checks.budget(budget))

    def __repr__(self) -> str:
        """Where the stream stands."""
        if not self._writing.ended:
            state = "goes on" if self._writing.began else "not read yet"
        elif self._writing.error is not None:
            state = str(self._writing.error)
        else:
            state = f"ended: {self.result.finish_reason}, {len(self.result.ids)} tokens"
        return f"<{type(self).__name__}: {state}>"

    def __del__(self) -> None:
        """A stream that is dropped ends its request."""
        self._writing.end("cancelled")

    def _ready(self) -> object:
        return self._writing.unread

    def _piece(self, end: type[Exception]) -> str | None:
        """The next piece; None if it is not written yet.

        Raises:
            Exception: `end`, the text has ended; or what ended it.
        """
        ended = self._writing.ended  # looked at first: the last piece comes before the end
        try:
            piece = self._writing.unread.popleft()
        except IndexError:  # nothing, or another thread was quicker
            if self._writing.error is not None:
                raise self._writing.error from None
            if ended:
                self._told = True
                raise end from None
            return None
        self._tokens = self._writing.tokens_of_piece(self._tokens)
        return piece

    def _close(self) -> None:
        self._writing.end("cancelled")
        self._writing.unread.clear()


class Stream(_Readable):
    """The text of a request, written as it is read: an iterator over pieces, and a context manager.

    Pieces join to the text of `result`. The work is done by whoever reads; other requests may come meanwhile, and bring
    this one forward too, for its reader. A stream that is closed early, or dropped, ends its request. Threads may share
    it, each piece goes to one of them.
    """

    def __iter__(self) -> Self:
        """See `__next__`."""
        return self

    def __next__(self) -> str:
        """The next piece of the text, at least one character.

        Raises:
            StopIteration: the text has ended.
            RequestError: the session was closed.
            EngineError: the engine failed.
        """
        while (piece := self._piece(StopIteration)) is None:
            self._turns.drive(self._writing, self._ready)
        return piece

    def close(self) -> None:
        """End the request; `result` has what was written by now."""
        self._close()

    def __enter__(self) -> Self:
        """Close the stream at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_Readable):
    """The answer to a coroutine: `await` gives the result, `async for` the text piece by piece.

    The work is done in a thread of the session, so the loop runs on. Cancelling the task that waits ends the request,
    and so does closing or dropping the stream.
    """

    def __aiter__(self) -> Self:
        """See `__anext__`."""
        return self

    async def __anext__(self) -> str:
        """The next piece of the text, at least one character.

        Raises:
            StopAsyncIteration: the text has ended.
            RequestError: the session was closed.
            EngineError: the engine failed.
        """
        while (piece := self._piece(StopAsyncIteration)) is None:
            await waited(self._turns, self._writing, self._ready)
        return piece

    def __await__(self) -> Generator[Any, None, Result]:
        """The result, after the whole text was written.

        Raises:
            RequestError: the session was closed.
            EngineError: the engine failed.
        """
        self._writing.read_whole()
        yield from waited(self._turns, self._writing).__await__()
        self._writing.check()
        return self.result

    async def aclose(self) -> None:
        """End the request after its current step; `result` has what was written by now."""
        self._close()

    async def __aenter__(self) -> Self:
        """Close the stream at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def waited(turns: Turns, writing: Writing, until: Callable[[], object] = lambda: False) -> None:
    """Wait in a coroutine for a condition, or the end of the turn; a task that is cancelled meanwhile ends the turn."""
    try:
        await turns.drive_in_thread(writing, until)
    except BaseException:
        writing.end("cancelled")
        raise
