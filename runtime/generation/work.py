"""What the scheduler runs: sequences that are written, and jobs that read a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator


class Work:
    """Something that needs a slot of the decoder.

    Attributes:
        priority: Higher comes first.
        owner: Whoever asked for it; callers share slots evenly.
        arrival: Its place in the order in which requests were made; set by the scheduler.
        began: `perf_counter` when it was added; set by the scheduler.
        cancelled: Set by anybody, from any thread, to have it end before the next step.
        error: What ended it.
    """

    def __init__(self, priority: int = 0, owner: object = None) -> None:
        self.priority = priority
        self.owner = owner
        self.arrival = 0
        self.began = 0.0
        self.cancelled = False
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it came to its own end."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """Whether no step follows."""
        return self.cancelled or self.error is not None or self.done

    @property
    def unread(self) -> int:
        """How far it is ahead of its reader, in pieces of text; 0 if nobody reads it piece by piece."""
        return 0


class ReadingJob(Work):
    """A text that is read, not written: to score it, or to see where a router sends it."""

    def __init__(self, run: Callable[[int], Iterator[object]], alone: bool, priority: int = 0) -> None:
        """Begin with nothing done.

        Args:
            run: Given a slot, does a part of the work whenever its result is advanced.
            alone: Whether it needs the whole decoder, so that no sequence may be in it meanwhile.
            priority: See `Work`.
        """
        super().__init__(priority)
        self.alone = alone
        self._run = run
        self._parts: Iterator[object] | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """See `Work`."""
        return self._done

    def advance(self, slot: int) -> None:
        """Do the next part."""
        if self._parts is None:
            self._parts = self._run(slot)
        if next(self._parts, _END) is _END:
            self._done = True


_END = object()
