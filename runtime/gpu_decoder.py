"""A decoder on a GPU: what `Decoder` is on a CPU, with the same members.

Steps are captured once for each number of rows, size of the cache and way to run, and then launched whole. A step finds
the token that the step before it chose where that one left it, so the next step is launched before the host has read
the last token. Whatever the host changes (a prompt in a row, another budget, a row that moves) first waits for the
steps in flight and forgets the one that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.runtime.budget import ANY, DENSE, Skips, Wish, threshold_of
from adaptc.runtime.cuda import Cuda
from adaptc.runtime.decoder import Ids, Logits
from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.gpu_cache import Cache
from adaptc.runtime.gpu_control import Control
from adaptc.runtime.gpu_flights import AHEAD, Flights
from adaptc.runtime.gpu_graphs import Graphs, Key, Way
from adaptc.runtime.gpu_memory import HEAD_ROWS, Memory
from adaptc.runtime.gpu_step import Place, Stepper
from adaptc.runtime.manifest import DecoderSpec, GateSpec
from adaptc.runtime.pieces import Pieces
from adaptc.runtime.regions import Regions
from adaptc.runtime.sampling import Sampler


class GpuDecoder:
    """Sequences in rows, each a prefix of the positions of the KV cache on a GPU.

    Attributes:
        spec: What the graph expects.
        batch: Rows.
        memory: What was taken of the GPU's.
        conditional: Whether gates are read by the GPU itself; if not, the host asks for each, which is slow.
        force: A mask that all steps run with, whatever their gates say, for measurements; None for the gates.
    """

    def __init__(
        self,
        cuda: Cuda,
        pieces: Pieces,
        regions: Regions,
        data: Path,
        spec: DecoderSpec,
        batch: int,
        chunk: int,
        gates: GateSpec | None = None,
    ) -> None:
        """Take the GPU's memory and load engines.

        Args:
            cuda: The GPU; closed with this.
            pieces: What runs the regions; closed with this.
            regions: The decoder.
            data: The file of its weights.
            spec: What the graph expects.
            batch: Rows of the cache.
            chunk: Most tokens of a prompt at once.
            gates: What decides which blocks run, if there are gates.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
            RequestError: no engine serves so many rows.
        """
        self.spec, self.batch = spec, batch
        self._cuda, self._pieces, self._regions, self._gates = cuda, pieces, regions, gates
        self._rows = [rows for rows in pieces.rows() if rows <= batch] or [1]
        if self._rows[-1] < batch:
            bigger = [rows for rows in pieces.rows() if rows > batch]
            if not bigger:
                raise RequestError(
                    f"batch: {batch}; the engines serve up to {self._rows[-1]}, adaptc build --batch {batch}"
                )
            self._rows.append(bigger[0])
        self._chunk = chunk = min(chunk, pieces.tokens())
        most = self._rows[-1]
        self.memory = Memory(cuda, regions, spec, most, max(most, chunk), data)
        self._stepper = Stepper(cuda, pieces, regions, self.memory)
        self._stream = cuda.stream()
        self._cache = Cache(cuda, self.memory, spec, most, pieces.slots() or (spec.max_tokens,))
        self._control = Control(cuda, self.memory, spec, most, chunk, len(regions.gates), self._cache.positions)
        self._graphs = Graphs(
            cuda, self._stepper, self._control, self._cache, spec.vocab_size, len(regions.gates), self._stream
        )
        self._flights = Flights(cuda, self._graphs, self._stream)
        self.conditional = self._stepper.on_device_only(self._graphs.place(most, self._cache.slots))
        self._settled: tuple[Key, Any] | None = None  # the graph that goes on as long as nothing changes
        self._room = 0  # steps that the cache has slots for
        self._length = np.zeros(batch, np.int64)  # tokens of each row whose step was read
        self._levels = np.full(batch, DENSE, np.float32)
        self._expected: tuple[list[int], list[int]] | None = None  # what goes on without a word
        self._warmup = 0 if gates is None else gates.warmup
        self._ran = np.ones(len(regions.gates), np.bool_)
        self.force: tuple[bool, ...] | None = None
        self._constants = self._static_logits()

    def start(self, row: int, ids: Ids, wish: Wish) -> Logits:
        """See `Rows.start`."""
        return self.prefill(row, ids, threshold_of(self._gates, wish.budget))

    def dense(self, wish: Wish) -> bool:
        """See `Rows.dense`."""
        return threshold_of(self._gates, wish.budget) == DENSE

    def route(self, row: int) -> str | None:
        """See `Rows.route`: there are none."""
        return None

    def reroute(self, row: int, route: str) -> None:
        """See `Rows.reroute`.

        Raises:
            RequestError: there are no routes.
        """
        raise RequestError(f"route: {route!r}; this bundle has no routes")

    def prefill(self, row: int, ids: Ids, threshold: float = DENSE) -> Logits:
        """See `Decoder.prefill`."""
        self._drain()
        if row == 0:
            self._length[:] = 0
        self._length[row] = 0
        self._cache.fit(int(max(self._length.max(), len(ids))) + 1, keep=row > 0, stream=self._stream)
        place = None
        for start in range(0, len(ids), self._chunk):
            part = ids[start : start + self._chunk]
            place = self._read(row, start, part)
        assert place is not None
        tokens = place.tokens
        self._stepper.head(place, self._stream, range(tokens - 1, tokens))
        self._length[row] = len(ids)
        self._levels[row] = threshold
        logits: Logits = self._logits(1)[0]
        return logits

    def score(self, ids: Ids, most: int, wish: Wish = ANY) -> Iterator[Logits]:
        """See `Decoder.score`."""
        self._drain()
        self._length[:] = 0
        self._cache.fit(len(ids) + 1, keep=False, stream=self._stream)
        size = min(most, self._chunk)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            place = self._read(0, start, part)
            for first in range(0, len(part), HEAD_ROWS):
                tokens = range(first, min(len(part), first + HEAD_ROWS))
                self._stepper.head(place, self._stream, tokens)
                yield self._logits(len(tokens))
        self._length[0] = len(ids)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """See `Decoder.decode`."""
        self._drain()
        self._start(tokens, ())
        self._take()
        return self._logits(len(tokens))

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """See `rows.choose`; tokens are chosen on the GPU unless a sampler needs to see the logits."""
        if any(not sampler.free for sampler in samplers):
            return [sampler(row) for sampler, row in zip(samplers, self.decode(tokens), strict=True)]
        names = [id(sampler) for sampler in samplers]
        if self._expected != (list(tokens), names) or not self._flights:
            self._drain()
            self._start(tokens, samplers)
        if len(self._flights) < AHEAD and self._room > 0:
            self._launch(len(tokens), samplers, ahead=len(self._flights))
        chosen = self._take()
        for sampler, token in zip(samplers, chosen, strict=True):
            if token < 0:
                raise EngineError("logits: the highest is nan; the graph computes no finite numbers")
            sampler.advance()
        self._expected = chosen, names
        return chosen

    def ran(self, row: int) -> bytes | None:
        """See `Decoder.ran`."""
        if self._gates is None or self._length[row] - 1 < self._warmup:
            return None
        return self._ran.tobytes()

    def skips(self, steps: Sequence[bytes], route: str | None = None) -> Skips | None:
        """See `Decoder.skips`."""
        if self._gates is None:
            return None
        ran = np.frombuffer(b"".join(steps), np.bool_).reshape(len(steps), len(self._gates.layers))
        return Skips(ran, self._gates.blocks)

    def move(self, row: int, to: int) -> None:
        """See `Decoder.move`."""
        self._drain()
        self._cache.move(row, to, self._stream)
        self._length[to], self._levels[to] = self._length[row], self._levels[row]

    def close(self) -> None:
        """Free all that was taken of the GPU."""
        self._graphs.close()
        self._pieces.close()
        self._cuda.close()

    def _read(self, row: int, start: int, ids: Ids) -> Place:
        """Run part of a prompt through every region but the head, and put it into the cache."""
        given = self._control.prompt(ids, start) | self._cache.row(row)
        place = Place(1, len(ids), self._cache.slots, given, self._control.whole)
        self._stepper.load(place)
        self._stepper.walk(place, self._stepper.all_run, self._stream)
        table = self._control.table(self._cache.layers(row), self._stream)
        self._stepper.write_kv(self._control.one, place, table, len(ids), self._stream)
        self._cuda.sync(self._stream)
        return place

    def _logits(self, rows: int) -> Logits:
        """What the head gave: float32[rows, vocab]."""
        self._cuda.sync(self._stream)
        logits = np.empty((rows, self.spec.vocab_size), np.float32)
        self._cuda.get(self.memory.values["logits"], logits)
        return logits

    def _start(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> None:
        """Tell the GPU what the host knows, and launch a step."""
        rows = len(tokens)
        self._cache.fit(int(self._length[:rows].max()) + 1, keep=True, stream=self._stream)
        self._room = self._cache.slots - int(self._length[:rows].max())
        off = self._gates is not None and self._gates.batch == "off"
        before, levels = self._length[:rows] - 1, self._levels[:rows]
        self._control.set(tokens, before, levels, samplers, self._warmup, off, self._flights.slot)
        self._launch(rows, samplers, ahead=0)

    def _launch(self, rows: int, samplers: Sequence[Sampler], ahead: int) -> None:
        for row, sampler in enumerate(samplers):
            if not sampler.greedy:
                self._control.points[self._flights.next, row] = sampler.point(ahead)
        key, graph = self._settled or self._step(rows, ahead)
        self._flights.launch(key, graph, rows)
        self._room -= 1

    def _step(self, rows: int, ahead: int) -> tuple[Key, Any]:
        """The graph of the next step; it stays as it is once all rows are warm."""
        key = next(size for size in self._rows if size >= rows), self._cache.slots, self._way(rows, ahead)
        found = key, self._graphs.get(key)
        if int(self._length[:rows].min()) + ahead >= self._warmup:
            self._settled = found
        return found

    def _take(self) -> list[int]:
        """Wait for the oldest step in flight; the tokens it chose."""
        flight = self._flights.take()
        self._length[: flight.rows] += 1
        self._ran[:] = self._control.ran[flight.slot]
        chosen: list[int] = self._control.told[flight.slot, : flight.rows].tolist()
        return chosen

    def _drain(self) -> None:
        """Wait for all that was launched; what was expected to go on does not."""
        self._flights.drain()
        self._expected = self._settled = None

    def _way(self, rows: int, ahead: int) -> Way:
        """How the next step runs: what the host knows for certain needs no conditional nodes."""
        if self.force is not None:
            return self.force
        levels = self._levels[:rows]
        warm = self._length[:rows] + ahead < self._warmup
        off = self._gates is not None and self._gates.batch == "off" and rows > 1
        if off or bool((warm | (levels == DENSE)).all()):
            return "dense"
        if self._constants is None:
            return "gated"
        lowest = np.where(warm, DENSE, levels).min()
        return tuple(bool(logit >= lowest) for logit in self._constants)

    def _static_logits(self) -> list[float] | None:
        """The gates' logits if they are the same for every token; then a mask follows from the thresholds."""
        if self._gates is None or self._gates.policy != "static":
            return None
        found = []
        for gate in self._regions.gates:
            value = np.zeros(1, np.float32)
            self._cuda.get(self.memory.weights[gate.logit], value)
            found.append(float(value[0]))
        return found
