"""One step of a decoder as launches of our own kernels; what `Stepper` is for partitions."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernel_steps.memory import KernelMemory
from adaptc.runtime.backends.cuda.kernels import packed_gemm, row_source
from adaptc.runtime.backends.cuda.kernels.attention import AttentionAddresses, attention_kernels, enqueue_attention
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.backends.cuda.step import StepEnds, StepPlacement
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepCall
from adaptc.runtime.bundle.names import KEY, POSITIONS, VALUE, past

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_OTHERWISE, _ZEROS, _JUST_DECIDED = 1, 2, 4  # of `skip` in common.cu
_THREADS = 256


@dataclass(frozen=True, slots=True)
class Following:
    """How the calls of a walk follow gates.

    Attributes:
        mask: Which blocks run, by gate; () for all.
        on_device: Whether the kernels ask what the gates decided.
    """

    mask: tuple[bool, ...] = ()
    on_device: bool = False

    def runs(self, call: StepCall) -> bool:
        """Whether a call is launched."""
        if call.gate is None or self.on_device:
            return True
        return (not self.mask or self.mask[call.gate]) != call.otherwise


class KernelStepper(StepEnds):
    """Launches the calls of one graph.

    Attributes:
        apart: Rows for which `ran` tells which blocks ran, a byte for each gate.
    """

    all_run = Following()
    on_device = Following(on_device=True)
    by_host = one_step_late = on_device  # the device follows gates in any mode
    _early = True

    def __init__(
        self, cuda: Cuda, step: DeviceStep, memory: KernelMemory, rows: int, max_tokens: int, together: str = ""
    ) -> None:
        """Compile what the calls need.

        Args:
            cuda: The GPU.
            step: The calls.
            memory: Where their values lie.
            rows: Most rows of a launch.
            max_tokens: Positions of a slot of the cache.
            together: "any" or "group" if a step's rows decide together, by one of them or on average; "" if each
                decides for itself.

        Raises:
            EngineError: NVRTC is not installed.
        """
        super().__init__(cuda, len(step.leaders) * rows, memory.values)
        self.apart, self._together = rows, together
        self._step, self._memory, self._max_tokens, self._rows = step, memory, max_tokens, rows
        source = KernelSource(read_kernels("common").text + row_source.row_source(step.row_kernels))
        names = [f"rows_{index}" for index in range(len(step.row_kernels))]
        self._row_kernels = list(cuda.kernels(source, names).values())
        tables = ("lookup_codes", "lookup_halves", "lookup_floats", "join", "collect")
        self._tables = cuda.kernels(read_kernels(("common", "table")), tables)
        self._decisions, self._margins = cuda.alloc(len(step.leaders) * rows), cuda.alloc(4 * rows)
        for layer in step.attentions:  # nothing is compiled while a step is captured
            attention_kernels(cuda, layer)
        leaders = np.array(step.leaders or (0,), np.int32)
        self._leaders = cuda.alloc(leaders.nbytes)
        cuda.put(self._leaders, leaders)

    def load(self, place: StepPlacement) -> None:
        """Nothing is loaded later."""

    def settle(self, place: StepPlacement, stream: Any) -> None:
        """Kernels take no memory; running them would write into the cache."""

    def masked(self, mask: Sequence[bool]) -> Following:
        """Blocks run as the mask says."""
        return Following(tuple(mask))

    def on_device_only(self, place: StepPlacement) -> bool:
        """Kernels read all gates themselves."""
        return True

    def walk(self, place: StepPlacement, following: Following, stream: Any) -> None:
        """All calls up to the head's."""
        self._calls(self._step.body, place, following, stream)
        if self._step.leaders:
            args = [(each, _POINTER) for each in (self._decisions, self._leaders, self.ran)]
            sizes = [(size, _INT) for size in (len(self._step.leaders), self._rows)]
            self._launch(self._tables["collect"], (place.rows,), 32, [*args, *sizes], stream)

    def look_up(self, place: StepPlacement, stream: Any) -> None:
        """The embedding alone, for whoever runs the calls behind it otherwise; any number of rows."""
        self._calls([call for call in self._step.body if call.kind == "lookup"], place, self.all_run, stream)

    def head(self, place: StepPlacement, stream: Any, tokens: range | None = None) -> None:
        """Logits of each row, or of some tokens of the first."""
        if tokens is not None:
            names = {name for call in self._step.head for name in call.reads} & set(self._memory.values)
            shifted = {name: self._at(name, place.given) + tokens.start * self._memory.row[name] for name in names}
            place = replace(place, batch=1, tokens=len(tokens), given={**place.given, **shifted})
        self._calls(self._step.head, place, self.all_run, stream)

    def _calls(self, calls: Sequence[StepCall], place: StepPlacement, following: Following, stream: Any) -> None:
        for call in calls:
            if following.runs(call):
                _KINDS[call.kind](self, call, place, following, stream)
            elif call.zeros:
                for name in call.writes:
                    self._cuda.clear(self._at(name, place.given), self._memory.row[name] * place.rows, stream)

    def _rows_of(self, call: StepCall, place: StepPlacement, following: Following, stream: Any) -> None:
        kernel, given = self._step.row_kernels[call.which], place.given
        pointers = [self._at(name, given) for name in (*call.reads, *call.writes)]
        decisions = 0 if call.decides is None else self._decisions + call.decides * self._rows
        wants, skip = self._skip(call, following)
        args = [(pointer, _POINTER) for pointer in (*pointers, place.thresholds, decisions, self._margins, wants)]
        grid = place.rows, row_source.blocks(kernel)
        kernel_threads = row_source.threads(kernel)
        self._launch(self._row_kernels[call.which], grid, kernel_threads, [*args, (skip, _INT)], stream)
        if decisions and self._together and place.rows > 1:
            joined = [(decisions, _POINTER), (self._margins, _POINTER), (place.rows, _INT)]
            self._launch(self._tables["join"], (1,), 32, [*joined, (int(self._together == "group"), _INT)], stream)

    def _gemm(self, call: StepCall, place: StepPlacement, following: Following, stream: Any) -> None:
        weight, packed = self._step.gemms[call.which], self._memory.gemms[call.which]
        [x], [y] = call.reads, call.writes
        bias = self._memory.weights[weight.bias] if weight.bias else 0
        into = self._at(y, place.given) + 4 * weight.offset
        addresses = packed.records, bias, self._at(x, place.given), into
        scratch = self._memory.shared.parts, self._memory.shared.arrived
        skip = self._skip(call, following)
        layout = packed_gemm.PackedLayout.of(weight)
        packed_gemm.enqueue_gemm(
            self._cuda, layout, place.rows, addresses, packed.factor, weight.stride, weight.pair, skip, scratch, stream
        )

    def _attention(self, call: StepCall, place: StepPlacement, following: Following, stream: Any) -> None:
        layer, memory = self._step.attentions[call.which], self._memory
        width, kv = layer.heads * layer.width, layer.kv_heads * layer.width
        reads = [self._at(name, place.given) for name in call.reads]
        if layer.packed:
            fresh = reads[0], reads[0] + 4 * width, reads[0] + 4 * (width + kv)
            rows = (width + 2 * kv,) * 3
        else:
            fresh, rows = (reads[0], reads[1], reads[2]), (width, kv, kv)
        tables = memory.weights.get(layer.cosine, 0), memory.weights.get(layer.sine, 0)
        at = AttentionAddresses(
            fresh,
            rows,
            tables,
            (place.given[past(layer.layer, KEY)], place.given[past(layer.layer, VALUE)]),
            memory.shared.queries,
            memory.shared.parts,
            memory.shared.arrived,
            self._at(call.writes[0], place.given),
            place.given[POSITIONS],
            place.state,
        )
        enqueue_attention(self._cuda, layer, at, place.rows, place.tokens, self._max_tokens, stream)

    def _lookup(self, call: StepCall, place: StepPlacement, following: Following, stream: Any) -> None:
        table, memory = self._step.lookups[call.which], self._memory
        ids, into = self._at(call.reads[0], place.given), self._at(call.writes[0], place.given)
        args = [(ids, _POINTER), (into, _POINTER), (table.width, _INT)]
        codes = (memory.weights[table.codes], _POINTER)
        if table.bits == 8:
            zeros = memory.weights[table.zeros] if table.zeros else 0
            args = [(memory.weights[table.scales], _POINTER), (zeros, _POINTER), *args, (table.block, _INT)]
        name = {8: "lookup_codes", 16: "lookup_halves", 32: "lookup_floats"}[table.bits]
        self._launch(self._tables[name], (place.rows,), _THREADS, [codes, *args], stream)

    def _skip(self, call: StepCall, following: Following) -> tuple[int, int]:
        """Where a call reads whether it runs, and what it does then; nothing where the host knows."""
        if call.gate is None or not following.on_device:
            return 0, 0
        skip = (_OTHERWISE if call.otherwise else 0) + (_ZEROS if call.zeros else 0)
        late = _JUST_DECIDED if self._just_decided(call) else 0
        return self._decisions + call.gate * self._rows, skip + late

    def _just_decided(self, call: StepCall) -> bool:
        """Whether a gate's decision may not be there yet when a call that begins early looks at it."""
        decided = next(i for i, each in enumerate(self._step.body) if each.decides == call.gate)
        return self._step.body.index(call) - decided < 2

    def _at(self, name: str, given: Mapping[str, int]) -> int:
        found = given.get(name) or self._memory.values.get(name)
        return found if found is not None else self._memory.weights[name]

    def _launch(self, kernel: Any, grid: tuple[int, ...], threads: int, args: Sequence[Any], stream: Any) -> None:
        self._cuda.launch(kernel, grid, threads, args, stream, early=True)


_KINDS = {
    "rows": KernelStepper._rows_of,
    "gemm": KernelStepper._gemm,
    "attention": KernelStepper._attention,
    "lookup": KernelStepper._lookup,
}
"""How each kind of call is launched."""
