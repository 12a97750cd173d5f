"""A decoder on a GPU: what `Decoder` is on a CPU, with the same members.

Whatever the host changes (a prompt in a row, another budget, a row that moves) first waits for the steps in flight and
forgets the one that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from adaptc.runtime.budget import ANY, DENSE, Skips, Wish
from adaptc.runtime.decoder import Ids, Logits
from adaptc.runtime.errors import RequestError
from adaptc.runtime.gpu_flights import Flights, Read
from adaptc.runtime.gpu_part import Gpu, GpuPart
from adaptc.runtime.manifest import DecoderSpec, GateSpec
from adaptc.runtime.regions import Regions
from adaptc.runtime.router import Choice
from adaptc.runtime.sampling import Sampler


class GpuDecoder:
    """Sequences in rows, each a prefix of the positions of the KV cache on a GPU; see `rows.Rows`.

    Attributes:
        spec: What the graph expects.
        batch: Rows.
        routes: None: there is one way through.
        part: The graph.
        conditional: Whether gates are read by the GPU itself; if not, the host asks for each, which is slow.
    """

    routes: tuple[str, ...] = ()

    def __init__(
        self, gpu: Gpu, regions: Regions, spec: DecoderSpec, batch: int, gates: GateSpec | None = None
    ) -> None:
        """Take the GPU's memory.

        Args:
            gpu: The GPU and what runs on it; closed with this.
            regions: The decoder.
            spec: What the graph expects.
            batch: Rows of the cache.
            gates: What decides which blocks run, if there are gates.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
        """
        self.spec, self.batch, self._gpu = spec, batch, gpu
        self.part = GpuPart(gpu, regions, spec, batch, gates)
        self.conditional = self.part.conditional
        self.flights = Flights(gpu.cuda, gpu.stream, self)
        self._rows = 0  # of the newest step

    @property
    def taken(self) -> dict[str, int]:
        """What was taken of the GPU's memory, by what for: "weights", "cache", "values"."""
        found = self.part.memory.bytes
        return found | {"values": found["values"] + self._gpu.values.bytes}

    def start(self, row: int, ids: Ids, wish: Wish) -> Logits:
        """See `Rows.start`."""
        return self.prefill(row, ids, self.part.threshold(wish))

    def prefill(self, row: int, ids: Ids, threshold: float = DENSE) -> Logits:
        """See `Decoder.prefill`."""
        self.flights.drain()
        return self.part.first(self.part.read(row, ids, threshold))

    def dense(self, wish: Wish) -> bool:
        """See `Rows.dense`."""
        return self.part.threshold(wish) == DENSE

    def route(self, row: int) -> str | None:
        """See `Rows.route`: there are none."""
        return None

    def reroute(self, row: int, route: str) -> None:
        """See `Rows.reroute`.

        Raises:
            RequestError: there are no routes.
        """
        raise RequestError(f"route: {route!r}; this bundle has no routes")

    def explain(self, ids: Ids, budget: float | None) -> Choice:
        """See `Rows.explain`.

        Raises:
            RequestError: there are no routes.
        """
        raise RequestError("route: this bundle has no routes")

    def score(self, ids: Ids, most: int, wish: Wish = ANY) -> Iterator[Logits]:
        """See `Rows.score`."""
        self.flights.drain()
        yield from self.part.score(ids, most, wish)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `Rows.decode`."""
        self.flights.decode(tokens)
        return self.part.logits(len(tokens))

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """See `rows.choose`; tokens are chosen on the GPU unless a sampler needs to see the logits."""
        if any(not sampler.free for sampler in samplers):
            return [sampler(row) for sampler, row in zip(samplers, self.decode(tokens), strict=True)]
        return self.flights.choose(tokens, samplers)

    def ran(self, row: int) -> bytes | None:
        """See `Rows.ran`."""
        return self.part.ran(row)

    def skips(self, steps: Sequence[bytes], route: str | None = None) -> Skips | None:
        """See `Rows.skips`."""
        gates = self.part.gates
        if gates is None:
            return None
        ran = np.frombuffer(b"".join(steps), np.bool_).reshape(len(steps), len(gates.layers))
        return Skips(ran, gates.blocks)

    def move(self, row: int, to: int) -> None:
        """See `Rows.move`."""
        self.flights.drain()
        self.part.move(row, to)

    def close(self) -> None:
        """Free all that was taken of the GPU."""
        self.part.close()
        self._gpu.pieces.close()
        self._gpu.cuda.close()

    def begin(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> None:
        """See `Steps.begin`."""
        self._rows = len(tokens)
        self.part.begin(tokens, samplers)

    def launch(self, samplers: Sequence[Sampler], ahead: int) -> Read:
        """See `Steps.launch`."""
        rows = self._rows
        slot, way = self.part.launch(rows, samplers, ahead)
        return lambda: self.part.take(slot, rows, way)

    def room(self) -> int:
        """See `Steps.room`."""
        return self.part.room(self._rows)

    def settle(self) -> None:
        """See `Steps.settle`."""
        self.part.settle()
