"""One step of a decoder on a GPU: partitions in order, and what happens at a gate.

The same walk serves four execution modes: dense; with a mask that is known beforehand; captured into a CUDA graph whose
conditional nodes read the gates on the device; and with the host asking after each gate, where a driver has no
conditional nodes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.device import Device
from adaptc.runtime.backends.cuda.kernels.skinny_gemm import NO_FLAG, SkinnyGemm, SkipFlag, gemms_read_gate
from adaptc.runtime.backends.cuda.kernels.step_kernels import NAMES, PARTS, RING, THREADS, step_source
from adaptc.runtime.backends.cuda.memory import GraphMemory
from adaptc.runtime.backends.cuda.partition_runner import PartitionRunner
from adaptc.runtime.bundle.names import HIDDEN, LOGITS, POSITIONS
from adaptc.runtime.bundle.partitions import Call, Partitions, When

POINTER, INT = ctypes.c_void_p, ctypes.c_int

CONDITIONAL_DRIVER, ELSE_DRIVER = 12040, 12080
"""Drivers of CUDA 12.4 know conditional nodes, those of 12.8 also ones with two bodies."""


@dataclass(frozen=True, slots=True)
class StepPlacement:
    """Where a step works.

    Attributes:
        batch: Rows.
        tokens: Tokens of each row.
        bucket: Positions of the cache that are read.
        given: Addresses of the step's inputs and of the cache's rows.
        thresholds: Address of what gates are compared with, float32[batch · tokens].
        state: Address of the step's state, which says how many rows are written.
    """

    batch: int
    tokens: int
    bucket: int
    given: Mapping[str, int]
    thresholds: int
    state: int

    @property
    def rows(self) -> int:
        """Tokens of all rows."""
        return self.batch * self.tokens

    @property
    def sizes(self) -> dict[str, int]:
        """As engines name them."""
        return {"batch": self.batch, "tokens": self.tokens, "kv_bucket": self.bucket}


@dataclass(frozen=True, slots=True)
class StateLink:
    """Where the parts of a stitched model meet.

    Attributes:
        states: Address of what the trunk gave, float32[rows, tokens, width].
        width: Width of a state.
        tokens: Positions of a row.
        ids: Address of the tokens that the trunk reads next, where tails write; 0 in the trunk itself.
    """

    states: int
    width: int
    tokens: int
    ids: int = 0

    def at(self, row: int, token: int) -> int:
        """Address of a state."""
        return self.states + 4 * self.width * (row * self.tokens + token)


Chooser = Callable[[int, When, StepPlacement, Any], None]
"""Called at each gate with its number; runs one of its two sides, or both into their bodies."""


def has_nodes(partitions: Partitions, driver: int) -> bool:
    """Whether a driver has the conditional nodes that these gates would need."""
    return driver >= (ELSE_DRIVER if any(gate.otherwise for gate in partitions.gates) else CONDITIONAL_DRIVER)


def decides_itself(partitions: Partitions, rows: int, device: Device) -> bool:
    """Whether a GPU reads all gates of a step of so many rows by itself."""
    by_gemms = (gemms_read_gate(partitions, when, rows, device.sm) for when in partitions.gates)
    return has_nodes(partitions, device.driver) or all(by_gemms)


class StepEnds:
    """What begins and ends a step, whatever computes its logits: positions, thresholds, tokens, the cache.

    Attributes:
        ran: Address of a byte for each gate: whether its block ran in the newest step.
        apart: Rows for which `ran` tells that, one after another; 0 if all rows of a step are told as one.
    """

    apart = 0
    _early = False  # whether a kernel may begin before the one before it has ended: not behind a conditional node

    def __init__(self, cuda: Cuda, gates: int, values: Mapping[str, int]) -> None:
        """Compile the kernels.

        Args:
            cuda: The GPU.
            gates: How many there are.
            values: Addresses of logits and hidden states, by name.
        """
        self._cuda, self._count, self._ends = cuda, gates, values
        self._kernels = cuda.kernels(step_source(), NAMES)
        self.ran = cuda.alloc(gates)

    def begin(self, state: int, place: StepPlacement, levels: int, stream: Any) -> None:
        """Each row goes on by one position."""
        args = [(state, POINTER), (place.given[POSITIONS], POINTER), (levels, POINTER), (place.thresholds, POINTER)]
        self._start("begin_step", (1, 1), max(32, place.batch), [*args, (place.batch, INT), (RING, INT)], stream)

    def choose(self, state: int, place: StepPlacement, at: Mapping[str, int], vocab: int, stream: Any) -> None:
        """Each row's next token from its logits.

        Args:
            state: Address of the step's state.
            place: Where the step works.
            at: Addresses of `values`, `places` (scratch), `choices`, `points`, `ids`, `told`, `ran`, `ran_told` and
                `rows`; and `stride`, rows of the ring.
            vocab: Width of the logits.
            stream: In whose order.
        """
        logits = self._ends[LOGITS]
        found = [(at["values"], POINTER), (at["places"], POINTER)]
        self._start("highest", (PARTS, place.batch), 256, [(logits, POINTER), (vocab, INT), *found], stream)
        names = ("ids", "told", "ran", "ran_told", "rows")
        pointers = (at["choices"], at["points"], state, *(at[name] for name in names))
        args = [(logits, POINTER), (vocab, INT), *found, (PARTS, INT), *((each, POINTER) for each in pointers)]
        ends = [(self._count, INT), (at["stride"], INT)]
        self._start("choose", (place.batch, 1), THREADS, [*args, *ends], stream)

    def keep(self, state: int, place: StepPlacement, at: Mapping[str, int], link: StateLink, stream: Any) -> None:
        """In the trunk of a stitched model: keep a step's states, and tell which blocks ran; `at` as in `choose`."""
        pointers = (link.states, self._ends[HIDDEN], place.given[POSITIONS], state)
        ends = [(at["ran"], POINTER), (at["ran_told"], POINTER), (self._count, INT)]
        args = [*((each, POINTER) for each in pointers), (link.width, INT), (link.tokens, INT), *ends]
        self._start("keep_states", (place.batch, 1), 256, args, stream)

    def take(self, state: int, place: StepPlacement, at: Mapping[str, int], link: StateLink, stream: Any) -> None:
        """In a tail: read what the trunk kept for each row's position; `at` as in `choose`."""
        pointers = (place.given[HIDDEN], link.states, at["rows"], place.given[POSITIONS], state)
        args = [*((each, POINTER) for each in pointers), (link.width, INT), (link.tokens, INT)]
        self._start("take_states", (place.batch, 1), 256, args, stream)

    def write_kv(self, state: int, place: StepPlacement, layers: tuple[int, int], valid: int, stream: Any) -> None:
        """Put the step's keys and values into the cache; `layers` is where the table lies, and how many."""
        if layers[1] == 0:  # attention has written them
            return
        args = [(layers[0], POINTER), (place.given[POSITIONS], POINTER), (state, POINTER)]
        sizes = [(place.tokens, INT), (valid, INT), (place.bucket, INT)]
        self._start("write_kv", (layers[1], place.batch), THREADS, [*args, *sizes], stream)

    def _start(
        self, name: str, grid: tuple[int, int], threads: int, args: Sequence[tuple[Any, Any]], stream: Any
    ) -> None:
        self._cuda.launch(self._kernels[name], grid, threads, args, stream, early=self._early)


class Stepper(StepEnds):
    """Runs partitions and our own kernels between them.

    Attributes:
        nodes: Whether every gated block is under a conditional node, for measurements.
    """

    def __init__(self, cuda: Cuda, runner: PartitionRunner, partitions: Partitions, memory: GraphMemory) -> None:
        super().__init__(cuda, len(partitions.gates), memory.values)
        self._runner, self._partitions, self._memory = runner, partitions, memory
        self._skinny_gemm = SkinnyGemm(cuda, partitions.half)
        self._gates = partitions.gates
        self._body = cuda.stream()
        self.nodes = False
        self._answer = np.zeros(1, np.uint8)
        self.conditional = has_nodes(partitions, cuda.device.driver)

    def load(self, place: StepPlacement) -> None:
        """Make every engine that a step needs ready."""
        for call in self._partitions.calls():
            self._load(call, place)

    def settle(self, place: StepPlacement, stream: Any) -> None:
        """Run each engine once: they take their memory then."""
        self.walk(place, self.all_run, stream)
        self.walk(place, self.masked([False] * len(self._gates)), stream)
        self.head(place, stream)
        self._cuda.sync(stream)

    def walk(self, place: StepPlacement, choose: Chooser, stream: Any) -> None:
        """All steps but the last, the head."""
        gate = 0
        for step in self._partitions.steps[:-1]:
            self._calls(step.then, place, stream)
            if step.when is not None:
                choose(gate, step.when, place, stream)
                gate += 1

    def head(self, place: StepPlacement, stream: Any, tokens: range | None = None) -> None:
        """Logits of each row, or of some tokens of the first."""
        calls = self._partitions.steps[-1].then
        if tokens is None:
            self._calls(calls, place, stream)
            return
        given = dict(place.given)
        made = {name for call in calls for name in call.writes}
        for name in {name for call in calls for name in call.reads} - made:
            if name in self._memory.values:
                given[name] = self._memory.values[name] + tokens.start * self._memory.row[name]
        one = replace(place, batch=1, tokens=len(tokens), given=given)
        for call in calls:
            self._load(call, one)
        self._calls(calls, one, stream)

    def all_run(self, gate: int, when: When, place: StepPlacement, stream: Any) -> None:
        """Chooser: every block runs."""
        self._calls(when.then, place, stream)

    def masked(self, mask: Sequence[bool]) -> Chooser:
        """Chooser: blocks run as the mask says."""

        def choose(gate: int, when: When, place: StepPlacement, stream: Any) -> None:
            self._side(when, mask[gate], place, stream)

        return choose

    def one_step_late(self, mask: Sequence[bool]) -> Chooser:
        """Chooser: blocks run as the mask says, and `ran` tells what the gates would have had run."""

        def choose(gate: int, when: When, place: StepPlacement, stream: Any) -> None:
            self._decide(gate, when, place, 0, stream, zeros=False)
            self._side(when, mask[gate], place, stream)

        return choose

    def on_device(self, gate: int, when: When, place: StepPlacement, stream: Any) -> None:
        """Chooser, while capturing: GEMMs that read their gate, or a conditional node whose condition is set."""
        if self._by_gemms(when, place):
            self._decide(gate, when, place, 0, stream, zeros=False)
            for call in when.then:
                self._calls((call,), place, stream, SkipFlag(self.ran + gate, zeros=call is when.then[-1]))
            return
        handle = self._cuda.handle(stream)
        self._decide(gate, when, place, handle, stream, zeros=not when.otherwise)
        sides = [calls for calls in (when.then, when.otherwise) if calls]
        bodies = self._cuda.branch(stream, handle, len(sides))
        for calls, body in zip(sides, bodies, strict=True):
            self._cuda.begin_body(self._body, body)
            self._calls(calls, place, self._body)
            self._cuda.end_body(self._body)

    def on_device_only(self, place: StepPlacement) -> bool:
        """Whether the device reads all gates of a step by itself."""
        return self.conditional or all(self._by_gemms(when, place) for when in self._gates)

    def by_host(self, gate: int, when: When, place: StepPlacement, stream: Any) -> None:
        """Chooser: wait for the gate and ask it."""
        self._decide(gate, when, place, 0, stream, zeros=not when.otherwise)
        self._cuda.sync(stream)
        self._cuda.get(self.ran + gate, self._answer)
        if self._answer[0] or when.otherwise:
            self._side(when, bool(self._answer[0]), place, stream)

    def _by_gemms(self, when: When, place: StepPlacement) -> bool:
        """Whether a block's GEMMs read their gate themselves, so that it needs no conditional node."""
        return not self.nodes and gemms_read_gate(self._partitions, when, place.rows, self._cuda.device.sm)

    def _side(self, when: When, runs: bool, place: StepPlacement, stream: Any) -> None:
        calls = when.then if runs else when.otherwise
        self._calls(calls, place, stream)
        if not calls:
            address = self._memory.address(when.result, place.given)
            self._cuda.clear(address, self._memory.row[when.result] * place.batch * place.tokens, stream)

    def _decide(self, gate: int, when: When, place: StepPlacement, handle: int, stream: Any, *, zeros: bool) -> None:
        rows = place.batch * place.tokens
        size = self._memory.row[when.result] // 4 * rows if zeros else 0
        same = when.logit in self._memory.weights
        args = [
            (handle, ctypes.c_uint64),
            (self._memory.address(when.logit, place.given), POINTER),
            (1 if same else rows, INT),
            (place.thresholds, POINTER),
            (rows, INT),
            (self.ran + gate, POINTER),
            (self._memory.address(when.result, place.given), POINTER),
            (size, INT),
        ]
        self._start("decide", (1, 1), 256, args, stream)

    def _load(self, call: Call, place: StepPlacement) -> None:
        if not self._skinny_gemm.serves(self._partitions.graphs[call.graph], place.rows):
            self._runner.load(call.graph, place.sizes)

    def _calls(self, calls: Sequence[Call], place: StepPlacement, stream: Any, flag: SkipFlag = NO_FLAG) -> None:
        for call in calls:
            graph = self._partitions.graphs[call.graph]
            reads, writes = self._memory.reads(call, place.given), self._memory.writes(call, place.given)
            if self._skinny_gemm.serves(graph, place.rows):
                self._skinny_gemm.enqueue(graph, place.rows, reads, writes, stream, flag)
            else:
                self._runner.enqueue(call.graph, place.sizes, reads, writes, stream)
