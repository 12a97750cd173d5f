"""Steps that were launched and not read yet: the next one is on its way before the host reads the last one's tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.errors import EngineError
from adaptc.runtime.text.sampling import Sampler

AHEAD = 2
"""Steps that may be in flight: the one whose token is wanted, and the next."""

ReadStep = Callable[[], list[int]]
"""Takes note of a step that is done; the token it chose in each row."""


class StepLauncher(Protocol):
    """Launches the steps of a session."""

    def begin(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> None:
        """Tell the GPU what the host knows: each row's newest token, and how the next ones are chosen."""

    def launch(self, samplers: Sequence[Sampler], ahead: int) -> ReadStep:
        """Launch the next step; `ahead` is how many are in flight."""

    def room(self) -> int:
        """How many more steps can be launched without a word from the host."""

    def settle(self) -> None:
        """What goes on by itself does not go on any more."""


class InFlightSteps:
    """The steps of one session, in the order they were launched."""

    def __init__(self, cuda: Cuda, stream: Any, launcher: StepLauncher) -> None:
        self._cuda, self._stream, self._launcher = cuda, stream, launcher
        self._events = deque(cuda.event() for _ in range(AHEAD + 1))
        self._launched: deque[tuple[Any, ReadStep]] = deque()
        self._expected: tuple[list[int], list[int]] | None = None  # what goes on without a word

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """Add one token to each of the first rows, and choose the one that follows on the GPU.

        Raises:
            EngineError: the graph computes no finite numbers.
        """
        names = [id(sampler) for sampler in samplers]
        if self._expected != (list(tokens), names) or not self._launched:
            self.drain()
            self._launcher.begin(tokens, samplers)
            self._launch(samplers)
        if len(self._launched) < AHEAD and self._launcher.room() > 0:
            self._launch(samplers)
        chosen = self._take()
        for sampler, token in zip(samplers, chosen, strict=True):
            if token < 0:
                raise EngineError("logits: the highest is nan; the graph computes no finite numbers")
            sampler.advance()
        self._expected = chosen, names
        return chosen

    def decode(self, tokens: Sequence[int]) -> None:
        """One step alone, whose logits the host wants."""
        self.drain()
        self._launcher.begin(tokens, ())
        self._launch(())
        self._take()

    def drain(self) -> None:
        """Wait for all that was launched; steps that nobody asked for are forgotten."""
        if self._launched:
            self._cuda.sync(self._stream)
            self._launched.clear()
        self._expected = None
        self._launcher.settle()

    def _launch(self, samplers: Sequence[Sampler]) -> None:
        read = self._launcher.launch(samplers, len(self._launched))
        event = self._events[0]
        self._events.rotate(-1)
        self._cuda.record(event, self._stream)
        self._launched.append((event, read))

    def _take(self) -> list[int]:
        """Wait for the oldest step; the tokens it chose."""
        event, read = self._launched.popleft()
        self._cuda.wait(event)
        return read()
