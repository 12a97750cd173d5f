"""One graph on a GPU, with its cache and the steps captured of it: a decoder, or one part of a stitched one.

Steps are captured once for each number of rows, size of the cache and execution mode, and then launched whole. A step
finds what it goes on from where the step before it left that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from adaptc.runtime.backends.cuda.captured_steps import CapturedSteps, ExecutionMode, Key, OneStepLate
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernels.step_kernels import RING
from adaptc.runtime.backends.cuda.machinery import GraphForm
from adaptc.runtime.backends.cuda.memory import HEAD_ROWS
from adaptc.runtime.backends.cuda.step import StateLink, StepPlacement
from adaptc.runtime.backends.cuda.step_control import Prompt, StepControl
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import HIDDEN, LOGITS
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import DENSE, batched_dense, threshold_of
from adaptc.runtime.model.decoder import Logits, piece_size
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.text.sampling import Sampler


class StepRunner(Protocol):
    """What runs the graphs of a bundle: engines, or kernels of ours."""

    def rows(self) -> tuple[int, ...]:
        """Rows that a step may have."""

    def tokens(self) -> int:
        """Most tokens of a prompt at once."""

    def close(self) -> None:
        """Free it."""


class TakenMemory(Protocol):
    """Memory that graphs share."""

    bytes: int


@dataclass(frozen=True, slots=True)
class GpuResources:
    """What the graphs of one bundle share on a GPU.

    Attributes:
        cuda: The GPU.
        stream: In whose order all of them run.
        runner: What runs them; closed with the session.
        values: Memory for the values between their parts.
        sizes: Numbers of rows that there are engines for, up to the session's.
        chunk: Most tokens of a prompt at once.
        mode: "on_device" or "one_step_late"; see docs/tensorrt.md.
    """

    cuda: Cuda
    stream: Any
    runner: StepRunner
    values: TakenMemory
    sizes: tuple[int, ...]
    chunk: int
    mode: str = "on_device"


def row_sizes(runner: StepRunner, batch: int) -> tuple[int, ...]:
    """Numbers of rows that there are engines for, the last at least `batch`.

    Raises:
        RequestError: no engine serves so many rows.
    """
    there = runner.rows() or (1,)
    if there[-1] < batch:
        raise RequestError(f"batch: {batch}; the engines serve up to {there[-1]}, adaptc build --batch {batch}")
    return (*(rows for rows in there if rows < batch), min(rows for rows in there if rows >= batch))


class GpuGraph:
    """Sequences in rows, each a prefix of the positions of the KV cache.

    Attributes:
        spec: What the graph expects.
        batch: Rows.
        gates: What decides which of its blocks run; None if it has no gates.
        memory: What was taken of the GPU's for this graph alone.
        conditional: Whether gates are read by the GPU itself; if not, the host asks for each, which is slow.
        mode: "on_device", or "one_step_late" for masks that the step before gave.
        force: A mask that all steps run with, whatever their gates say, for measurements; None for the gates.
        length: Tokens of each row whose step was read.
        levels: What each row's gates are compared with.
        ring_index: Place in the ring of the step launched last.
    """

    def __init__(
        self,
        gpu: GpuResources,
        form: GraphForm,
        spec: DecoderSpec,
        batch: int,
        gates: SkipGates | None,
        link: StateLink | None = None,
    ) -> None:
        """Take the GPU's memory.

        Args:
            gpu: What it shares with the bundle's other graphs.
            form: The graph.
            spec: What it expects.
            batch: Rows of the cache.
            gates: What decides which blocks run, if there are gates.
            link: Where it meets the other parts of a stitched model; None for a whole one.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
        """
        self.spec, self.batch, self.gates, self.mode = spec, batch, gates, gpu.mode
        self._gpu, cuda, most, self.link = gpu, gpu.cuda, gpu.sizes[-1], link
        machinery = form.put(spec, most)
        self.partitions, self.memory = machinery.form, machinery.memory
        self.stepper, self.cache = machinery.stepper, machinery.cache
        self._prompts = machinery.prompts
        count = len(self.partitions.gates)
        apart = max(1, self.stepper.apart)
        self.control = StepControl(cuda, spec, most, gpu.chunk, count * apart, self.cache.positions, link)
        self.captured = CapturedSteps(cuda, self.stepper, self.control, self.cache, spec.vocab_size, count, gpu.stream)
        self.conditional = self.stepper.on_device_only(self.captured.place(most, self.cache.bucket))
        self.length = np.zeros(batch, np.int64)
        self.levels = np.full(batch, DENSE, np.float32)
        self.ring_index = 0
        self.force: tuple[bool, ...] | None = None
        self._settled: tuple[Key, Any] | None = None  # the graph that goes on as long as nothing changes
        self._room = 0  # steps until the KV bucket is full
        self._warmup = 0 if gates is None else gates.warmup
        self._ran = np.ones((apart, count), np.bool_)
        self._next = (True,) * count  # what the gates said in the newest step, for the one after
        static = gates is not None and gates.policy == "static"
        self._constants = form.constants(machinery) if static else None

    def threshold(self, options: RequestOptions) -> float:
        """What the gates are compared with as a request wants it."""
        return threshold_of(self.gates, options.budget, options.ceiling, scored=options.scored)

    def open(self, row: int, threshold: float) -> None:
        """Empty a row for a prompt; `threshold` is what its gates are compared with later."""
        self.length[row], self.levels[row] = 0, threshold

    def read(self, row: int, prompt: Prompt, most: int) -> StepPlacement:
        """Have a row read the next tokens of its prompt, by all but the head. Nothing may be in flight.

        Args:
            row: The row.
            prompt: All of it.
            most: The largest number of tokens that are read.

        Returns:
            Where they were read, for `first`.
        """
        start = int(self.length[row])
        stop = start + piece_size(len(prompt) - start, min(most, self._gpu.chunk))
        longest = int(max(self.length.max(), len(prompt)))
        self.cache.fit(longest + 1, keep=bool(self.length.any()), stream=self._gpu.stream)
        place = self._read(row, prompt, range(start, stop))
        self.length[row] = stop
        self._next = (True,) * len(self._next)
        return place

    def first(self, place: StepPlacement) -> Logits:
        """Logits of the token that follows a prompt: float32[vocab]."""
        self.stepper.head(place, self._gpu.stream, range(place.tokens - 1, place.tokens))
        logits: Logits = self.logits(1)[0]
        return logits

    def score(self, prompt: Prompt, most: int, row: int = 0) -> Iterator[Logits]:
        """Read a text in a row; logits at every position, float32[some, vocab]."""
        self.length[row] = 0
        longest = int(max(self.length.max(), len(prompt)))
        self.cache.fit(longest + 1, keep=bool(self.length.any()), stream=self._gpu.stream)
        size = min(most, self._gpu.chunk)
        for start in range(0, len(prompt), size):
            part = range(start, min(start + size, len(prompt)))
            place = self._read(row, prompt, part)
            for first in range(0, len(part), HEAD_ROWS):
                tokens = range(first, min(len(part), first + HEAD_ROWS))
                self.stepper.head(place, self._gpu.stream, tokens)
                yield self.logits(len(tokens))
        self.length[row] = len(prompt)

    def begin(self, tokens: Sequence[int], samplers: Sequence[Sampler], order: Sequence[int] = ()) -> None:
        """Tell the GPU what the host knows before a step; `order` says of a tail's rows which of the trunk's they are.

        A tail reads states, so what `tokens` says there does not matter, only how many.
        """
        rows = len(tokens)
        longest = int(self.length[:rows].max())
        self.cache.fit(longest + 1, keep=True, stream=self._gpu.stream)
        self._room = self.cache.bucket - longest
        off = batched_dense(self.gates, rows)
        before, levels = self.length[:rows] - 1, self.levels[:rows]
        self.control.set(tokens, before, levels, samplers, self._warmup, off, self.ring_index, order)

    def launch(self, rows: int, samplers: Sequence[Sampler], ahead: int) -> tuple[int, ExecutionMode]:
        """Launch a step; its place in the ring, and how it runs."""
        self.ring_index = (self.ring_index + 1) % RING
        for row, sampler in enumerate(samplers):
            if not sampler.greedy:
                self.control.points[self.ring_index, row] = sampler.point(ahead)
        key, graph = self._settled or self._step(rows, ahead)
        if graph is None:
            self.captured.enqueue(key)
        else:
            self._gpu.cuda.run(graph, self._gpu.stream)
        self._room -= 1
        return self.ring_index, key[2]

    def take(self, ring_index: int, rows: int, mode: ExecutionMode) -> list[int]:
        """Take note of a step that is done; the tokens it chose."""
        self.length[:rows] += 1
        self._ran[:] = self.control.ran[ring_index].reshape(self._ran.shape)
        self._next = tuple(self._ran[0].tolist())
        if isinstance(mode, OneStepLate):
            self._ran[:] = mode.mask
        chosen: list[int] = self.control.told[ring_index, :rows].tolist()
        return chosen

    def room(self, rows: int) -> int:
        """Steps that may be launched before the newest is read: none if its gates decide how the next one runs."""
        return 0 if isinstance(self.execution_mode(rows, 1), OneStepLate) else self._room

    def settle(self) -> None:
        """Look anew, before the next step, for how it runs."""
        self._settled = None

    def set_budget(self, row: int, options: RequestOptions) -> None:
        """Have the later tokens of a row run with another budget. Nothing may be in flight."""
        self.levels[row] = self.threshold(options)

    def ran(self, row: int) -> bytes | None:
        """Which gated blocks the newest step ran: a byte for each; None while the row warms up."""
        if self.gates is None or self.length[row] - 1 < self._warmup:
            return None
        ran: bytes = self._ran[row if self.stepper.apart else 0].tobytes()
        return ran

    def move(self, row: int, to: int) -> None:
        """Put the sequence of one row in the place of another."""
        self.cache.move(row, to, self._gpu.stream)
        self.length[to], self.levels[to] = self.length[row], self.levels[row]

    def logits(self, rows: int) -> Logits:
        """What the head gave: float32[rows, vocab]."""
        self._gpu.cuda.sync(self._gpu.stream)
        logits = np.empty((rows, self.spec.vocab_size), np.float32)
        self._gpu.cuda.get(self.memory.values[LOGITS], logits)
        return logits

    def close(self) -> None:
        """Forget captured steps; the memory is the GPU's to free."""
        self.captured.close()

    def execution_mode(self, rows: int, ahead: int) -> ExecutionMode:
        """How a step runs: what the host knows for certain needs no conditional nodes."""
        if self.force is not None:
            return self.force
        levels = self.levels[:rows]
        warm = self.length[:rows] + ahead < self._warmup
        if batched_dense(self.gates, rows) or bool((warm | (levels == DENSE)).all()):
            return "dense"
        if self._constants is not None:
            lowest = np.where(warm, DENSE, levels).min()
            return tuple(bool(logit >= lowest) for logit in self._constants)
        return "on_device" if self.mode == "on_device" else OneStepLate(self._next)

    def _step(self, rows: int, ahead: int) -> tuple[Key, Any]:
        """The graph of the next step; it stays as it is once all rows are warm."""
        key = (
            next(size for size in self._gpu.sizes if size >= rows),
            self.cache.bucket,
            self.execution_mode(rows, ahead),
        )
        found = key, self.captured.get(key)
        warm = int(self.length[:rows].min()) + ahead >= self._warmup
        if warm and not isinstance(key[2], OneStepLate):
            self._settled = found
        return found

    def _read(self, row: int, prompt: Prompt, part: range) -> StepPlacement:
        """Run part of a prompt through every partition but the head, and put it into the cache."""
        cuda, stream, link = self._gpu.cuda, self._gpu.stream, self.link
        given = self.control.prompt(prompt, part) | self.cache.row(row)
        place = StepPlacement(1, len(part), self.cache.bucket, given, self.control.whole, self.control.one)
        if self._prompts is not None and self._prompts.serves(len(part)):
            place = self._prompts.read(place, part, stream)
        else:
            self.stepper.load(place)
            self.stepper.walk(place, self.stepper.all_run, stream)
        table = self.control.table(self.cache.layers(row), stream)
        self.stepper.write_kv(self.control.one, place, table, len(part), stream)
        if link is not None and not link.ids:
            size = 4 * link.width * len(part)
            made = place.given.get(HIDDEN, self.memory.values[HIDDEN])
            cuda.copy_rows((link.at(row, part.start), size), (made, size), size, 1, stream)
        cuda.sync(stream)
        return place
