"""One step of a decoder as a list of GPU kernels: the dataclasses behind `steps/NAME.json` in a bundle.

The compiler writes down what is computed; the runtime has a kernel for each of the four kinds of call. What lies
between products and attention works on one row at a time, and is written as lines of a small program (`RowKernel`),
which the runtime prints as CUDA C (runtime/backends/cuda/kernels/row_source.py). A bundle holds no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from adaptc.runtime.bundle.strict_json import loads
from adaptc.runtime.errors import BundleError

VERSION = 1
"""Of this file's form."""

RowOp = Literal[
    "input",
    "weight",
    "number",
    "slice",
    "add",
    "sub",
    "mul",
    "div",
    "tanh",
    "sigmoid",
    "gelu",
    "gelu_tanh",
    "rms_norm",
    "dot",
]
"""What a line computes; `RowLine` says from what."""

Pair = Literal["", "silu", "gelu", "gelu_tanh"]
"""A function of a feed-forward block."""

Half = Literal["float32", "float16"]
"""Type of a value between kernels: float16 for what only products read."""


@dataclass(frozen=True, slots=True)
class RowLine:
    """A line of a row program; its value has `width` numbers, or one for a scalar.

    Attributes:
        op: "input" and "weight" read `RowKernel.inputs` and `.weights` number `args[0]`; "number" is `numbers[0]`;
            "slice" is line `args[0]` from position `numbers[0]` on; "rms_norm" scales line `args[0]`, in groups of
            `numbers[1]` neighbours with epsilon `numbers[0]`, by line `args[1]`, which has a number for each of them;
            "dot" sums the products of two lines. The others work number by number; a line of one number stands for all.
        args: Earlier lines, or which input or weight.
        numbers: Constants.
        width: How many numbers it gives.
    """

    op: RowOp
    args: tuple[int, ...]
    numbers: tuple[float, ...]
    width: int


@dataclass(frozen=True, slots=True)
class RowOutput:
    """A line that other kernels read.

    Attributes:
        line: Which.
        dtype: How it is stored.
    """

    line: int
    dtype: Half


@dataclass(frozen=True, slots=True)
class RowKernel:
    """A program over rows that calls share: each reads values and weights of its own.

    Attributes:
        inputs: Width and type of each value that is read, "float32[W]" or "float16[W]".
        weights: Width of each weight, float32.
        lines: In order.
        outputs: What is written.
        gate: The line of a skip gate's logit, a scalar; None without one.
    """

    inputs: tuple[RowOutput, ...]
    weights: tuple[int, ...]
    lines: tuple[RowLine, ...]
    outputs: tuple[RowOutput, ...]
    gate: int | None = None


@dataclass(frozen=True, slots=True)
class GemmWeight:
    """A weight of y = x·Wᵀ + b.

    Attributes:
        results: Rows of W.
        columns: Columns of W, a multiple of 8.
        bits: 4 and 8 for codes as MatMulNBits has them, 16 and 32 for floats.
        block: Neighbouring columns that share a scale; 0 for floats.
        codes: Name of the codes or floats.
        scales: Name of the scales, float32; "" for floats.
        zeros: Name of the zero points; "" for the middle of a code.
        bias: Name of the bias, float32; "" for none.
        offset: Where in a row of y its results begin.
        stride: Numbers of a row of y.
        pair: What joins the two halves of its results, f(first) · second; "" if nothing does.
    """

    results: int
    columns: int
    bits: Literal[4, 8, 16, 32]
    block: int
    codes: str
    scales: str
    zeros: str
    bias: str
    offset: int
    stride: int
    pair: Pair = ""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """Attention of one layer, with its rotation.

    Attributes:
        layer: Which keys and values of the cache.
        heads: Query heads.
        kv_heads: Key heads.
        width: Numbers of a head, a multiple of 8.
        scale: What scores are multiplied by.
        softcap: What scores are bent to; 0 for none.
        window: Positions that are seen, the token's own among them; 0 for all.
        cosine: Name of the table, float32[positions, pairs].
        sine: Name of the other table.
        pairs: Pairs of a head that are rotated.
        packed: Whether query, key and value are one value, side by side.
    """

    layer: int
    heads: int
    kv_heads: int
    width: int
    scale: float
    softcap: float
    window: int
    cosine: str
    sine: str
    pairs: int
    packed: bool


@dataclass(frozen=True, slots=True)
class LookupTable:
    """An embedding, whose rows are looked up.

    Attributes:
        width: Numbers of a row.
        bits: 8 for codes with scales and zero points, 16 or 32 for floats.
        block: Neighbours that share a scale; 0 for floats.
        codes: Name of the table.
        scales: Name of the scales, float32; "" for floats.
        zeros: Name of the zero points; "" for the middle of a code.
    """

    width: int
    bits: Literal[8, 16, 32]
    block: int
    codes: str
    scales: str
    zeros: str


@dataclass(frozen=True, slots=True)
class StepCall:
    """One launch.

    Attributes:
        kind: Which of the tables `which` points into: `row_kernels`, `gemms`, `attentions`, `lookups`.
        which: The entry.
        reads: Values, and after them the weights of a row kernel.
        writes: Values.
        decides: For a row kernel with a gate, which gate it decides.
        gate: The gate under which it runs; None for one that always runs.
        otherwise: Whether it runs if the gate's block is skipped, in the block's place.
        zeros: Whether it gives zeros where it does not run.
    """

    kind: Literal["rows", "gemm", "attention", "lookup"]
    which: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    decides: int | None = None
    gate: int | None = None
    otherwise: bool = False
    zeros: bool = False


@dataclass(frozen=True, slots=True)
class StepWeight:
    """Where a weight lies.

    Attributes:
        file: A data file of the bundle.
        dtype: As NumPy names it.
        shape: Its sizes.
        offset: In bytes.
        bytes: How many.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StepValue:
    """A value between kernels, of each row.

    Attributes:
        width: Numbers of a row.
        dtype: How they are stored.
    """

    width: int
    dtype: Half


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One step: each row is a token at its position.

    Attributes:
        version: Version of this form.
        source: What rows come from: "input_ids" or "hidden".
        result: What they give: "logits" or "hidden".
        row_kernels: See `RowKernel`.
        gemms: See `GemmWeight`.
        attentions: By layer.
        lookups: See `LookupTable`.
        body: Calls in order, up to what the head reads.
        head: Calls from there to the logits; () for the trunk of a stitched program.
        values: By name.
        weights: By name.
        leaders: For each skip gate, the gate that decides for it: itself, or an earlier one that compares the same.
    """

    version: int
    source: str
    result: str
    row_kernels: tuple[RowKernel, ...]
    gemms: tuple[GemmWeight, ...]
    attentions: tuple[AttentionLayer, ...]
    lookups: tuple[LookupTable, ...]
    body: tuple[StepCall, ...]
    head: tuple[StepCall, ...]
    values: dict[str, StepValue]
    weights: dict[str, StepWeight]
    leaders: tuple[int, ...]

    @property
    def gates(self) -> tuple[int, ...]:
        """The skip gates, by the gate that decides for each."""
        return self.leaders

    def calls(self) -> Iterator[StepCall]:
        """All calls, in order."""
        yield from self.body
        yield from self.head

    @staticmethod
    def from_json(text: str | bytes) -> DeviceStep:
        """Read the file.

        Raises:
            BundleError: not of this form, or a call points past its table.
        """
        step = loads(DeviceStep, text)
        if step.version != VERSION:
            raise BundleError(f"version: {step.version}, not {VERSION}; compile again")
        sizes = {kind: len(table) for kind, table in step.tables().items()}
        for call in step.calls():
            if not 0 <= call.which < sizes[call.kind]:
                raise BundleError(f"{call.kind} {call.which}: there are {sizes[call.kind]}; compile again")
            for name in (*call.reads, *call.writes):
                if name not in step.values and name not in step.weights and name != step.source:
                    raise BundleError(f"nothing gives {name!r}; compile again")
        return step

    def tables(self) -> dict[str, tuple[object, ...]]:
        """What calls point into, by kind."""
        return {
            "rows": self.row_kernels,
            "gemm": self.gemms,
            "attention": self.attentions,
            "lookup": self.lookups,
        }
