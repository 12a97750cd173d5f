"""A decoder on a GPU: what `Decoder` is on a CPU, with the same members.

Whatever the host changes (a prompt in a row, another budget, a row that moves) first waits for the steps in flight and
forgets the one that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adaptc.runtime.backends.cuda.graph import GpuGraph, GpuResources
from adaptc.runtime.backends.cuda.in_flight import InFlightSteps, ReadStep
from adaptc.runtime.backends.cuda.machinery import GraphForm
from adaptc.runtime.backends.cuda.prefill import GpuPrefill
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.model.decoder import Ids, Logits, read_whole
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.model.single_route import SingleRoute
from adaptc.runtime.text.sampling import Sampler


class GpuDecoder(SingleRoute):
    """Sequences in rows, each a prefix of the positions of the KV cache on a GPU; see `BatchDecoder`.

    Attributes:
        spec: What the graph expects.
        batch: Rows.
        graph: The decoder on the GPU.
        conditional: Whether gates are read by the GPU itself; if not, the host asks for each, which is slow.
    """

    def __init__(
        self, gpu: GpuResources, form: GraphForm, spec: DecoderSpec, batch: int, gates: SkipGates | None = None
    ) -> None:
        """Take the GPU's memory.

        Args:
            gpu: The GPU and what runs on it; closed with this.
            form: The decoder.
            spec: What the graph expects.
            batch: Rows of the cache.
            gates: What decides which blocks run, if there are gates.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
        """
        self.spec, self.batch, self.gates, self._gpu = spec, batch, gates, gpu
        self.graph = GpuGraph(gpu, form, spec, batch, gates)
        self.conditional = self.graph.conditional
        self.in_flight = InFlightSteps(gpu.cuda, gpu.stream, self)
        self._rows = 0  # of the newest step

    @property
    def taken(self) -> dict[str, int]:
        """What was taken of the GPU's memory, by what for: "weights", "cache", "values"."""
        found = self.graph.memory.bytes
        return found | {"values": found["values"] + self._gpu.values.bytes}

    def admit(self, row: int, ids: Ids, options: RequestOptions, prompt: int | None = None) -> GpuPrefill:
        """See `BatchDecoder.admit`."""
        threshold = self.graph.threshold(options)
        return GpuPrefill(self.graph, row, ids[:prompt], threshold, self.in_flight.drain)

    def retire(self, row: int, ids: Ids, options: RequestOptions, prompt: int) -> None:
        """See `BatchDecoder.retire`."""
        self.in_flight.drain()
        self.graph.length[row] = 0

    def start(self, row: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`."""
        return self.prefill(row, ids, self.graph.threshold(options))

    def prefill(self, row: int, ids: Ids, threshold: float = DENSE) -> Logits:
        """See `HostDecoder.prefill`; the first row is that of a new batch."""
        if row == 0:
            self.graph.length[:] = 0
        return read_whole(GpuPrefill(self.graph, row, ids, threshold, self.in_flight.drain), len(ids) + 1)

    def dense(self, options: RequestOptions) -> bool:
        """See `BatchDecoder.dense`."""
        return self.graph.threshold(options) == DENSE

    def score(self, ids: Ids, most: int, options: RequestOptions = NO_OPTIONS, slot: int = 0) -> Iterator[Logits]:
        """See `BatchDecoder.score`."""
        self.in_flight.drain()
        for logits in self.graph.score(ids, most, slot):
            yield logits
            self.in_flight.drain()  # others may have had steps meanwhile

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `BatchDecoder.decode`."""
        self.in_flight.decode(tokens)
        return self.graph.logits(len(tokens))

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """See `TokenChooser`."""
        return self.in_flight.choose(tokens, samplers)

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """See `BatchDecoder.set_budget`."""
        self.in_flight.drain()
        self.graph.set_budget(slot, options)

    def ran(self, row: int) -> bytes | None:
        """See `BatchDecoder.ran`."""
        return self.graph.ran(row)

    def move(self, row: int, to: int) -> None:
        """See `BatchDecoder.move`."""
        self.in_flight.drain()
        self.graph.move(row, to)

    def close(self) -> None:
        """Free all that was taken of the GPU."""
        self.graph.close()
        self._gpu.runner.close()
        self._gpu.cuda.close()

    def begin(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> None:
        """See `StepLauncher.begin`."""
        self._rows = len(tokens)
        self.graph.begin(tokens, samplers)

    def launch(self, samplers: Sequence[Sampler], ahead: int) -> ReadStep:
        """See `StepLauncher.launch`."""
        rows = self._rows
        ring_index, mode = self.graph.launch(rows, samplers, ahead)
        return lambda: self.graph.take(ring_index, rows, mode)

    def room(self) -> int:
        """See `StepLauncher.room`."""
        return self.graph.room(self._rows)

    def settle(self) -> None:
        """See `StepLauncher.settle`."""
        self.graph.settle()
