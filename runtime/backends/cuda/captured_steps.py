"""A decoder's steps as CUDA graphs: each is captured when it is first needed, and then launched whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.machinery import GraphCache, GraphStepper
from adaptc.runtime.backends.cuda.step import StepPlacement
from adaptc.runtime.backends.cuda.step_control import StepControl


@dataclass(frozen=True, slots=True)
class OneStepLate:
    """Blocks run by what the gates decided a step before; the gates are computed for the step after."""

    mask: tuple[bool, ...]


ExecutionMode = str | tuple[bool, ...] | OneStepLate
"""How a step follows gates: "dense" for none, "on_device" where the GPU reads them, a mask that the host knows
beforehand, or the mask that the step before gave."""

MASKS = 64
"""Most graphs kept of `OneStepLate` masks; the one that was not used for longest goes first."""

Key = tuple[int, int, ExecutionMode]
"""Rows, KV bucket and the execution mode."""


class CapturedSteps:
    """The graphs of one session."""

    def __init__(
        self,
        cuda: Cuda,
        stepper: GraphStepper,
        control: StepControl,
        cache: GraphCache,
        vocab: int,
        gates: int,
        stream: Any,
    ) -> None:
        """Capture nothing yet.

        Args:
            cuda: The GPU.
            stepper: Runs the parts of a step.
            control: What the host tells the GPU.
            cache: Keys and values.
            vocab: Width of the logits.
            gates: How many there are.
            stream: In whose order steps run.
        """
        self._cuda, self._stepper, self._control, self._cache = cuda, stepper, control, cache
        self._vocab, self._gates, self._stream = vocab, gates, stream
        self._table = control.step_table(cache.layers(0))
        self._known: dict[Key, Any] = {}
        self._warm: set[tuple[int, int]] = set()
        self._late: dict[Key, Any] = {}  # None for a mask that was seen once

    def get(self, key: Key) -> Any:
        """A step's graph; None if its parts are to go to the stream one by one.

        So they do where the driver has no conditional nodes and this step needs them, and where a mask comes for the
        first time: most come never again, and capturing takes as long as many steps.
        """
        if isinstance(key[2], OneStepLate):
            return self._get_late(key)
        if key not in self._known:
            self._known[key] = self.capture(key)
        return self._known[key]

    def _get_late(self, key: Key) -> Any:
        seen = key in self._late
        graph = self._late.pop(key, None)
        if graph is None and seen:
            graph = self.capture(key)
        elif not seen:
            self._make_ready(self.place(*key[:2]))
        self._late[key] = graph
        if len(self._late) > MASKS:
            oldest = self._late.pop(next(iter(self._late)))
            if oldest is not None:
                self._cuda.drop(oldest)
        return graph

    def _make_ready(self, place: StepPlacement) -> None:
        """Load what a step needs, and run it once where that settles memory, which cannot be captured."""
        if (place.batch, place.bucket) in self._warm:
            return
        self._stepper.load(place)
        self._stepper.settle(place, self._stream)
        self._warm.add((place.batch, place.bucket))

    def capture(self, key: Key) -> Any:
        """Capture a step anew."""
        batch, bucket, mode = key
        place = self.place(batch, bucket)
        self._make_ready(place)
        if mode == "on_device" and not self._stepper.on_device_only(place):
            return None
        self._mask(mode)  # what it copies to the GPU cannot be captured
        self._cuda.begin_capture(self._stream)
        try:
            self.enqueue(key)
        except BaseException:
            self._cuda.drop_capture(self._stream)
            raise
        return self._cuda.end_capture(self._stream)

    def enqueue(self, key: Key) -> None:
        """A whole step in the stream's order."""
        batch, bucket, mode = key
        place, stepper, control = self.place(batch, bucket), self._stepper, self._control
        stepper.begin(control.state, place, control.levels, self._stream)
        at, link = control.addresses(stepper.ran), control.link
        if link is not None and link.ids:
            stepper.take(control.state, place, at, link, self._stream)
        if isinstance(mode, OneStepLate):
            stepper.walk(place, stepper.one_step_late(mode.mask), self._stream)
        elif mode == "on_device":
            itself = stepper.on_device_only(place)
            stepper.walk(place, stepper.on_device if itself else stepper.by_host, self._stream)
        else:
            mask, told = self._mask(mode)
            at["ran"] = stepper.ran if stepper.apart else told
            stepper.walk(place, stepper.masked(mask), self._stream)
        stepper.head(place, self._stream)
        self.finish(place, at)

    def finish(self, place: StepPlacement, at: dict[str, int]) -> None:
        """What follows the logits: each row's token, or the states that are kept; and the cache."""
        state, link = self._control.state, self._control.link
        if link is not None and not link.ids:
            self._stepper.keep(state, place, at, link, self._stream)
        else:
            self._stepper.choose(state, place, at, self._vocab, self._stream)
        self._stepper.write_kv(self._control.state, place, self._table, 1, self._stream)

    def place(self, batch: int, bucket: int) -> StepPlacement:
        """Where a step works."""
        given = self._control.given() | self._cache.row(0)
        return StepPlacement(batch, 1, bucket, given, self._control.thresholds, self._control.state)

    def forget(self, mode: ExecutionMode) -> None:
        """Drop the captured steps of one mode, so that they are captured anew when they are next needed."""
        for kept in (self._known, self._late):
            for key in [key for key in kept if key[2] == mode]:
                graph = kept.pop(key)
                if graph is not None:
                    self._cuda.drop(graph)

    def close(self) -> None:
        """Forget them; the GPU's own are freed with it."""
        self._known.clear()
        self._late.clear()

    def _mask(self, mode: ExecutionMode) -> tuple[tuple[bool, ...], int]:
        """The mask of a step that is known beforehand, and where the GPU has it."""
        if isinstance(mode, tuple):
            return mode, self._control.mask(mode)
        if isinstance(mode, OneStepLate):
            return mode.mask, self._stepper.ran
        if mode == "on_device":
            return (), 0
        mask = (True,) * self._gates
        return mask, self._control.mask(mask)
