"""A decoder's steps as CUDA graphs: each is captured when it is first needed, and then launched whole."""

from __future__ import annotations

from typing import Any

from adaptc.runtime.cuda import Cuda
from adaptc.runtime.gpu_cache import Cache
from adaptc.runtime.gpu_control import Control
from adaptc.runtime.gpu_step import Place, Stepper

Way = str | tuple[bool, ...]
"""How a step runs: "dense", "gated" by what the device reads itself, or with a mask that is known beforehand."""

Key = tuple[int, int, Way]
"""Rows, slots of the cache, and the way."""


class Graphs:
    """The graphs of one session."""

    def __init__(
        self, cuda: Cuda, stepper: Stepper, control: Control, cache: Cache, vocab: int, gates: int, stream: Any
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

    def get(self, key: Key) -> Any:
        """A step's graph; None where the driver has no conditional nodes and this step needs them."""
        if key not in self._known:
            self._known[key] = self.capture(key)
        return self._known[key]

    def capture(self, key: Key) -> Any:
        """Capture a step anew."""
        batch, slots, way = key
        place = self.place(batch, slots)
        self._stepper.load(place)
        # Engines settle their memory when they first run, which cannot be captured.
        self._stepper.walk(place, self._stepper.all_run, self._stream)
        self._stepper.walk(place, self._stepper.masked([False] * self._gates), self._stream)
        self._stepper.head(place, self._stream)
        self._cuda.sync(self._stream)
        if way == "gated" and not self._stepper.on_device_only(place):
            return None
        self._mask(way)  # what it copies to the GPU cannot be captured
        self._cuda.begin_capture(self._stream)
        try:
            self.enqueue(key)
        except BaseException:
            self._cuda.drop_capture(self._stream)
            raise
        return self._cuda.end_capture(self._stream)

    def enqueue(self, key: Key) -> None:
        """A whole step in the stream's order."""
        batch, slots, way = key
        place, stepper, control = self.place(batch, slots), self._stepper, self._control
        stepper.begin(control.state, place, control.levels, self._stream)
        at = control.addresses(stepper.ran)
        if way == "gated":
            itself = stepper.on_device_only(place)
            stepper.walk(place, stepper.on_device if itself else stepper.by_host, self._stream)
        else:
            mask, at["ran"] = self._mask(way)
            stepper.walk(place, stepper.masked(mask), self._stream)
        stepper.head(place, self._stream)
        self.finish(place, at)

    def finish(self, place: Place, at: dict[str, int]) -> None:
        """What follows the logits: each row's token, and the cache."""
        self._stepper.choose(self._control.state, place, at, self._vocab, self._stream)
        self._stepper.write_kv(self._control.state, place, self._table, 1, self._stream)

    def place(self, batch: int, slots: int) -> Place:
        """Where a step works."""
        given = self._control.given() | self._cache.row(0)
        return Place(batch, 1, slots, given, self._control.thresholds)

    def forget(self, way: Way) -> None:
        """Capture the steps of one way anew when they are next needed."""
        for key in [key for key in self._known if key[2] == way]:
            self._cuda.drop(self._known.pop(key))

    def close(self) -> None:
        """Forget them; the GPU's own are freed with it."""
        self._known.clear()

    def _mask(self, way: Way) -> tuple[tuple[bool, ...], int]:
        """The mask of a step that is known beforehand, and where the GPU has it."""
        if isinstance(way, tuple):
            return way, self._control.mask(way)
        if way == "gated":
            return (), 0
        mask = (True,) * self._gates
        return mask, self._control.mask(mask)
