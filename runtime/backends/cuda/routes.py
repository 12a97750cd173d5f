"""A stitched bundle on a GPU: a trunk for all rows, and after it, in the same stream, each route's tail for its own.

The states stay on the GPU, where tails read them and where they are kept for requests that change their route. A
request's route is known before its first token, so the host launches the graphs that a step needs, one after another,
and nothing is decided on the GPU but what gates decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adaptc.runtime.backends.cuda.graph import GpuGraph, GpuResources
from adaptc.runtime.backends.cuda.in_flight import InFlightSteps, ReadStep
from adaptc.runtime.backends.cuda.machinery import GraphForm
from adaptc.runtime.backends.cuda.prefill import GpuPrefill
from adaptc.runtime.backends.cuda.step import StateLink
from adaptc.runtime.backends.cuda.step_control import KeptStates
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.decoder import Ids, Logits, Prefill, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import Choice, RouterNet
from adaptc.runtime.model.routes import RoutedDecoder
from adaptc.runtime.text.sampling import Sampler

Given = tuple[GraphForm, DecoderSpec, SkipGates | None]
"""A part: its graph, what that expects, and its gates."""


class GpuRoutes(RoutedDecoder[GpuGraph]):
    """Rows over a trunk and several tails on a GPU.

    Attributes:
        conditional: Whether all gates are read by the GPU itself.
    """

    def __init__(
        self,
        gpu: GpuResources,
        trunk: Given,
        tails: Mapping[str, Given],
        width: int,
        batch: int,
        router: RouterNet | None = None,
    ) -> None:
        """Take the GPU's memory.

        Args:
            gpu: The GPU and what runs on it; closed with this.
            trunk: What all requests run.
            tails: By route, the default first.
            width: Width of a state.
            batch: Rows.
            router: Picks a route where a request names none.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
        """
        self._gpu, tokens = gpu, trunk[1].max_tokens
        states = gpu.cuda.alloc(4 * gpu.sizes[-1] * tokens * width)
        self._link = StateLink(states, width, tokens)
        form, spec, gates = trunk
        first = GpuGraph(gpu, form, spec, batch, gates, self._link)
        link = StateLink(states, width, tokens, first.control.ids)
        parts = {route: GpuGraph(gpu, form, spec, batch, gates, link) for route, (form, spec, gates) in tails.items()}
        super().__init__(first, parts, router)
        self.conditional = all(part.conditional for part in self.parts)
        self.in_flight = InFlightSteps(gpu.cuda, gpu.stream, self)
        self._now: dict[str, list[int]] = {}  # rows of the newest step, by route
        self._logits = np.empty((batch, self.spec.vocab_size), np.float32)

    @property
    def parts(self) -> tuple[GpuGraph, ...]:
        """The trunk, and the tails in the order of the routes."""
        return (self._trunk, *self._tails.values())

    @property
    def taken(self) -> dict[str, int]:
        """What was taken of the GPU's memory, by what for: "weights", "cache", "values", "states"."""
        found = {kind: sum(part.memory.bytes[kind] for part in self.parts) for kind in ("weights", "cache", "values")}
        states = 4 * self._gpu.sizes[-1] * self._link.tokens * self._link.width
        return found | {"values": found["values"] + self._gpu.values.bytes, "states": states}

    def admit(self, row: int, ids: Ids, options: RequestOptions, prompt: int | None = None) -> Prefill:
        """See `BatchDecoder.admit`."""
        self.in_flight.drain()
        return super().admit(row, ids[:prompt], options)

    def retire(self, row: int, ids: Ids, options: RequestOptions, prompt: int) -> None:
        """See `BatchDecoder.retire`."""
        self.in_flight.drain()
        self._leave(row)
        self._trunk.length[row] = 0

    def start(self, row: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`; the first row is that of a new batch."""
        self.in_flight.drain()
        for other in range(self.batch if row == 0 else 0):
            self._leave(other)
            self._trunk.length[other] = 0
        return super().start(row, ids, options)

    def reroute(self, row: int, route: str) -> None:
        """See `BatchDecoder`."""
        if route != self.route(row):
            self.in_flight.drain()
            super().reroute(row, route)

    def explain(self, ids: Ids, budget: float | None, slot: int = 0) -> Choice:
        """See `BatchDecoder`."""
        self.in_flight.drain()
        return super().explain(ids, budget, slot)

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """See `BatchDecoder`."""
        self.in_flight.drain()
        super().set_budget(slot, options)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `BatchDecoder`."""
        self.in_flight.decode(tokens)
        for route, order in self._now.items():
            self._logits[order] = self._tails[route].logits(len(order))
        return self._logits[: len(tokens)]

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """See `TokenChooser`."""
        return self.in_flight.choose(tokens, samplers)

    def move(self, row: int, to: int) -> None:
        """See `BatchDecoder`."""
        self.in_flight.drain()
        self._leave(to)
        self._trunk.move(row, to)
        size = 4 * self._link.width * int(self._trunk.length[row])
        self._gpu.cuda.copy_rows((self._link.at(to, 0), size), (self._link.at(row, 0), size), size, 1, self._gpu.stream)
        self._options[to] = self._options[row]
        self._places[to], self._places[row] = self._places[row], None

    def score(self, ids: Ids, most: int, options: RequestOptions, slot: int = 0) -> Iterator[Logits]:
        """See `BatchDecoder`."""
        self.in_flight.drain()
        route, row = self._route_text(slot, ids, options)
        yield from self._tails[route].score(KeptStates(slot, len(ids)), most, row)

    def close(self) -> None:
        """See `BatchDecoder`: free all that was taken of the GPU."""
        super().close()
        self._gpu.runner.close()
        self._gpu.cuda.close()

    def begin(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> None:
        """See `StepLauncher.begin`."""
        self._now = self._groups(len(tokens))
        self._trunk.begin(tokens, ())
        for route, order in self._now.items():
            self._tails[route].begin([0] * len(order), _of(samplers, order), order)

    def launch(self, samplers: Sequence[Sampler], ahead: int) -> ReadStep:
        """See `StepLauncher.launch`."""
        now, rows = self._now, sum(map(len, self._now.values()))
        below = self._trunk.launch(rows, (), ahead)
        above = {
            route: self._tails[route].launch(len(order), _of(samplers, order), ahead) for route, order in now.items()
        }

        def read() -> list[int]:
            self._trunk.take(below[0], rows, below[1])
            chosen = [0] * rows
            for route, order in now.items():
                ring_index, mode = above[route]
                for row, token in zip(order, self._tails[route].take(ring_index, len(order), mode), strict=True):
                    chosen[row] = token
            return chosen

        return read

    def room(self) -> int:
        """See `StepLauncher.room`."""
        rows = sum(map(len, self._now.values()))
        return min(self._trunk.room(rows), *(self._tails[route].room(len(order)) for route, order in self._now.items()))

    def settle(self) -> None:
        """See `StepLauncher.settle`."""
        for part in self.parts:
            part.settle()

    def _open_trunk(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> GpuPrefill:
        threshold = self._trunk.threshold(options)
        return GpuPrefill(self._trunk, slot, ids[:prompt], threshold, self.in_flight.drain, gives_logits=False)

    def _trunk_states(self, slot: int, tokens: int) -> States:
        states = np.empty((tokens, self._link.width), np.float32)
        self._gpu.cuda.get(self._link.at(slot, 0), states)
        return states

    def _length(self, slot: int) -> int:
        return int(self._trunk.length[slot])

    def _set_length(self, slot: int, tokens: int) -> None:
        self._trunk.length[slot] = tokens

    def _open_tail(self, route: str, tail_slot: int, slot: int, ids: Ids | None, prompt: int) -> GpuPrefill:
        tail = self._tails[route]
        kept = KeptStates(slot, self._length(slot))
        return GpuPrefill(tail, tail_slot, kept, tail.threshold(self._options[slot]), self.in_flight.drain)


def _of(samplers: Sequence[Sampler], order: Sequence[int]) -> list[Sampler]:
    """The samplers of a tail's rows; none if there are none."""
    return [samplers[row] for row in order] if samplers else []
