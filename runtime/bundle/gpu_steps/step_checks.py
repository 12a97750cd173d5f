"""Whether the sizes in a step's file go with each other, so that no kernel reads or writes past what it is given.

A bundle is data and may come from anywhere; kernels on a GPU check nothing while they run. What is checked here is all
that they rely on: what each call reads and writes, where weights lie, and what the KV cache has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from adaptc.runtime.bundle.gpu_steps.device_step import (
    AttentionLayer,
    DeviceStep,
    GemmWeight,
    Half,
    LookupTable,
    RowKernel,
    RowOutput,
    StepCall,
    StepValue,
)
from adaptc.runtime.bundle.gpu_steps.row_program import check_row_kernel
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, LOGITS
from adaptc.runtime.errors import BundleError

FLOATS = ("float32", "float16")
CODES = ("uint8",)
BLOCKS = (16, 32, 64, 128, 256)
"""Neighbours that may share a scale."""


def check_step(step: DeviceStep, spec: DecoderSpec, state: int = 0) -> None:
    """Refuse a step whose sizes do not go with each other or with the decoder.

    Args:
        step: As its file says.
        spec: The decoder, as the manifest says.
        state: Numbers of the hidden state between the parts of a stitched decoder; 0 for a decoder in one part.

    Raises:
        BundleError: the first thing that does not fit.
    """
    checks = _Checks(step, spec, state)
    checks.ends()
    checks.weights()
    for index, kernel in enumerate(step.row_kernels):
        check_row_kernel(f"rows_{index}", kernel)
    for index, weight in enumerate(step.gemms):
        checks.gemm(f"gemm {index}", weight)
    for index, layer in enumerate(step.attentions):
        checks.attention(f"attention {index}", layer)
    for index, table in enumerate(step.lookups):
        checks.lookup(f"lookup {index}", table)
    checks.calls()


Wanted = StepValue | int | None
"""What a call reads or writes: a value; a weight, by its number of floats; or None, the token ids."""


class _Checks:
    def __init__(self, step: DeviceStep, spec: DecoderSpec, state: int) -> None:
        self.step, self.spec, self.state = step, spec, state
        self.hidden = StepValue(state, "float32")

    def need(self, good: bool, place: str, fault: str) -> None:
        if not good:
            raise BundleError(f"{place}: {fault}; compile again")

    # What stands by itself

    def ends(self) -> None:
        """Where rows come from, where they go, and the gates."""
        step, width = self.step, self.spec.vocab_size if self.step.result == LOGITS else self.state
        self.need(step.source in (INPUT_IDS, HIDDEN), "source", f"{step.source!r} is none")
        self.need(step.result in (LOGITS, HIDDEN), "result", f"{step.result!r} is none")
        for name, value in step.values.items():
            self.need(value.width > 0 and name != INPUT_IDS, name, f"{value.width} numbers")
        self.need(self.state > 0 or HIDDEN not in (step.source, step.result), HIDDEN, "the decoder has one part")
        for name, wanted in ((step.result, width), (HIDDEN, self.state)):
            found = step.values.get(name, self.hidden if name == HIDDEN else StepValue(0, "float32"))
            self.need(found.width == wanted, name, f"{found.width} numbers, not {wanted}")
        for gate, leader in enumerate(step.leaders):
            own = 0 <= leader <= gate and step.leaders[leader] == leader
            self.need(own, f"gate {gate}", f"gate {leader} does not decide")

    def weights(self) -> None:
        """Each has as many bytes as its shape needs."""
        for name, record in self.step.weights.items():
            self.need(record.dtype in (*FLOATS, *CODES), name, f"dtype {record.dtype!r}")
            self.need(all(size > 0 for size in record.shape), name, f"shape {list(record.shape)}")
            needed = math.prod(record.shape) * np.dtype(record.dtype).itemsize
            self.need(record.bytes == needed, name, f"{record.bytes} bytes, not {needed}")

    def stored(self, place: str, name: str, count: int, dtypes: Sequence[str] = FLOATS) -> None:
        """A weight has so many numbers of one of these types."""
        record = self.step.weights.get(name)
        if record is None:
            raise BundleError(f"{place}: nothing says where {name!r} lies; compile again")
        self.need(record.dtype in dtypes, place, f"{name!r} is {record.dtype}")
        numbers = math.prod(record.shape)
        self.need(numbers == count, place, f"{name!r} has {numbers} numbers, not {count}")

    def gemm(self, place: str, weight: GemmWeight) -> None:
        """Codes, scales and bias of a weight."""
        results, columns, bits = weight.results, weight.columns, weight.bits
        self.need(results > 0 and columns > 0 and columns % 8 == 0, place, f"{results} by {columns}")
        halves = 2 if weight.pair else 1
        whole = 0 <= weight.offset <= weight.stride - results // halves
        self.need(whole and results % (16 if weight.pair else 1) == 0, place, "results past the end of a row")
        self.need(not weight.pair or not (weight.offset or weight.bias), place, "halves with a bias or an offset")
        if bits in (16, 32):
            self.need(weight.block == 0 and not weight.scales and not weight.zeros, place, "floats with scales")
            self.stored(place, weight.codes, results * columns, (f"float{bits}",))
        else:
            self.need(weight.block in BLOCKS, place, f"blocks of {weight.block}")
            blocks = -(-columns // weight.block)
            self.stored(place, weight.codes, results * blocks * weight.block * bits // 8, CODES)
            self.stored(place, weight.scales, results * blocks)
            if weight.zeros:
                self.stored(place, weight.zeros, results * -(-blocks * bits // 8), CODES)
        if weight.bias:
            self.stored(place, weight.bias, results)

    def attention(self, place: str, layer: AttentionLayer) -> None:
        """Heads are those of the cache; a table of rotations has every position."""
        here = 0 <= layer.layer < len(self.spec.kv)
        self.need(here, place, f"layer {layer.layer} of {len(self.spec.kv)}")
        kv = layer.kv_heads, layer.width
        self.need(kv == self.spec.kv[layer.layer], place, f"{kv[0]} key heads of {kv[1]}, not as the manifest says")
        grouped = layer.heads > 0 and layer.kv_heads > 0 and layer.heads % layer.kv_heads == 0 and layer.width % 8 == 0
        self.need(grouped, place, f"{layer.heads} heads for {layer.kv_heads}, {layer.width} numbers each")
        self.need(layer.window >= 0 and layer.softcap >= 0, place, "a window or soft cap below 0")
        turned = bool(layer.cosine and layer.sine)
        self.need(turned == (layer.pairs > 0) and 0 <= 2 * layer.pairs <= layer.width, place, f"{layer.pairs} pairs")
        for name in (layer.cosine, layer.sine) if turned else ():
            record = self.step.weights.get(name)
            rows = record.shape[0] if record is not None else 0
            self.need(rows >= self.spec.max_tokens, place, f"{name!r} has {rows} of {self.spec.max_tokens} positions")
            self.stored(place, name, rows * layer.pairs)

    def lookup(self, place: str, table: LookupTable) -> None:
        """A table has a row for every token."""
        record = self.step.weights.get(table.codes)
        self.need(table.width > 0, place, f"{table.width} numbers")
        rows = math.prod(record.shape) // table.width if record is not None else 0
        self.need(rows >= self.spec.vocab_size, place, f"{rows} rows for {self.spec.vocab_size} tokens")
        if table.bits in (16, 32):
            self.need(table.block == 0 and not table.scales and not table.zeros, place, "floats with scales")
            self.stored(place, table.codes, rows * table.width, (f"float{table.bits}",))
            return
        self.need(table.block in BLOCKS, place, f"blocks of {table.block}")
        self.stored(place, table.codes, rows * table.width, CODES)
        blocks = -(-table.width // table.block)
        self.stored(place, table.scales, rows * blocks)
        if table.zeros:
            self.stored(place, table.zeros, rows * blocks, CODES)

    # What is called in order

    def calls(self) -> None:
        """Every call reads what an earlier one wrote, of the widths and types that its kernel has."""
        step = self.step
        given, decided = {step.source}, set[int]()
        for index, call in enumerate(step.calls()):
            place = f"call {index} ({call.kind} {call.which})"
            if call.gate is not None:
                self.need(call.gate in decided, place, f"gate {call.gate} has not decided")
            for name in call.reads:
                self.need(name in given or name in step.weights, place, f"{name!r} is read before it is written")
            reads, writes = _sizes(step, call)
            self.values(place, "reads", call.reads, reads)
            self.values(place, "writes", call.writes, writes)
            given |= set(call.writes)
            if call.decides is not None:
                own = 0 <= call.decides < len(step.leaders) and step.leaders[call.decides] == call.decides
                gate = step.row_kernels[call.which].gate if call.kind == "rows" else None
                self.need(own and gate is not None, place, f"it decides gate {call.decides}")
                decided.add(call.decides)
        if missing := set(step.leaders) - decided:
            raise BundleError(f"gate {min(missing)}: nothing decides it; compile again")

    def values(self, place: str, verb: str, names: Sequence[str], wanted: Sequence[Wanted]) -> None:
        """Names are the token ids, or values or weights of these sizes."""
        self.need(len(names) == len(wanted), place, f"it {verb} {len(names)} values, not {len(wanted)}")
        for name, size in zip(names, wanted, strict=True):
            if isinstance(size, int):
                self.stored(place, name, size)
            elif size is None:
                self.need(name == self.step.source == INPUT_IDS, place, f"{name!r} in the place of token ids")
            else:
                value = self.step.values.get(name, self.hidden if name == HIDDEN else None)
                self.need(value == size, place, f"{name!r} is not {size.dtype}[{size.width}]")


def _sizes(step: DeviceStep, call: StepCall) -> tuple[list[Wanted], list[Wanted]]:
    """What a call reads and writes."""
    match call.kind:
        case "rows":
            kernel = step.row_kernels[call.which]
            return [*_ends(kernel, kernel.inputs), *kernel.weights], _ends(kernel, kernel.outputs)
        case "gemm":
            weight = step.gemms[call.which]
            dtype: Half = "float16" if weight.pair else "float32"
            return [StepValue(weight.columns, "float16")], [StepValue(weight.stride, dtype)]
        case "attention":
            layer = step.attentions[call.which]
            query, key = layer.heads * layer.width, layer.kv_heads * layer.width
            widths = [query + 2 * key] if layer.packed else [query, key, key]
            return [StepValue(width, "float32") for width in widths], [StepValue(query, "float16")]
    return [None], [StepValue(step.lookups[call.which].width, "float32")]


def _ends(kernel: RowKernel, ends: Sequence[RowOutput]) -> list[Wanted]:
    return [StepValue(kernel.lines[end.line].width, end.dtype) for end in ends]
