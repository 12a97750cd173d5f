"""Row compaction: each row of a step runs a block or what stands in for it, by its own threshold alone.

The rows that want a block are put together, the block runs over these, and its results go back to their rows; the rows
left over go through what stands in for it likewise. There is no conditional: over no rows a node costs its launch and
reads no weight, and a conditional costs more than such nodes do (docs/results/batched-gates.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.passes.emit import INT, Emitter
from adaptc.passes.skip_ffn.comparisons import comparisons, describe
from adaptc.passes.skip_ffn.sides import mark
from adaptc.passes.skip_ffn.skips import CHEAP, FULL, Skip, deciding, finish, gives_zero, serving_only, skips
from adaptc.runtime.bundle.names import RAN

BOOL = ir.DataType.BOOL

Form = tuple[ir.DataType | None, tuple[int | str, ...]]
"""Type and shape of what a gate gives."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a step.

    Attributes:
        taken: Which they are, bool[batch].
        places: Where they are, int64[count, 1].
        count: What the number of them is called in shapes.
    """

    taken: ir.Value
    places: ir.Value
    count: str


@dataclass(frozen=True, slots=True)
class _Step:
    """What gates share, computed once a step.

    Attributes:
        zeros: By form of what a gate gives, what rows have that nothing is written to.
        places: Where each row is, int64[batch, 1].
    """

    zeros: Mapping[Form, ir.Value]
    places: ir.Value


@dataclass(frozen=True, slots=True)
class _Decision:
    """Which rows run a block, and which what stands in for it."""

    full: _Rows
    cheap: _Rows


def compacted(graph: OnnxGraph) -> OnnxGraph:
    """A fork in which each row of a step decides for itself; a graph without gates as it is.

    Before:  y = Skip(logit, threshold, block(x), cheap(x))
    After:   runs = any over a row's tokens (logit ≥ threshold); y = 0; y[runs] = block(x[runs]);
             y[not runs] = cheap(x[not runs]), unless that is zero

    Every value with rows that only the block reads is compacted, so a block may read several. The new output `ran` is
    bool[batch, gates].

    Raises:
        PassError: a block reads a value of which nobody knows whether it has rows, or gives one of another form.
    """
    if not skips(graph.model.graph):
        return graph
    fork = graph.fork()
    main = fork.model.graph
    gates = skips(main)
    compared = comparisons(main, [*deciding(gates).values()])
    step = _step(main, gates)
    decisions: dict[ir.Value, _Decision] = {}
    for index, gate in enumerate(gates):
        if gate.logit not in decisions:
            decisions[gate.logit] = _decide(Emitter(main, gate.node), step, *compared[gate.logit])
        _replace(main, gate, decisions[gate.logit], step.zeros[_form(gate)], index)
    _report(main, [decisions[gate.logit].full.taken for gate in gates])
    return finish(fork)


def _decide(new: Emitter, step: _Step, value: ir.Value, level: ir.Value) -> _Decision:
    """What each row decides: that it runs the block if one of its tokens wants it."""
    stem = label(new.before)
    wants = new.call("GreaterOrEqual", value, level, dtype=BOOL, shape=sizes(level))
    axes = new.constant(list(range(1, len(level.shape or ()))))
    batch = sizes(level)[0]
    runs = new.call("ReduceMax", wants, axes, shape=[batch], keepdims=0)
    rests = new.call("Not", runs, shape=[batch])
    both = ((runs, f"{stem}.runs"), (rests, f"{stem}.rests"))
    full, cheap = (
        _Rows(taken, new.call("Compress", step.places, taken, shape=[count, 1], axis=0), count) for taken, count in both
    )
    return _Decision(full, cheap)


def _replace(graph: ir.Graph, gate: Skip, decision: _Decision, zeros: ir.Value, index: int) -> None:
    """Put both sides, each over its rows, in the place of a Skip node."""
    result = zeros
    new = Emitter(graph, gate.node)
    for at, value, rows in ((FULL, gate.full, decision.full), (CHEAP, gate.cheap, decision.cheap)):
        nodes = serving_only(graph, gate, at)
        if at == CHEAP and gives_zero(nodes):
            continue
        inner = _over(new, gate, nodes, value, rows)
        mark(nodes, at, index)
        result = new.call("ScatterND", result, rows.places, inner, shape=sizes(gate.result))
    new.replace(result)


def _over(new: Emitter, gate: Skip, nodes: Sequence[ir.Node], value: ir.Value, rows: _Rows) -> ir.Value:
    """One input of a Skip node for some rows: its nodes, after those rows of what they read."""
    batch = sizes(gate.threshold)[0]
    inside = {result for node in nodes for result in node.outputs}
    taken: dict[ir.Value, ir.Value] = {}

    def some_of(whole: ir.Value) -> ir.Value:
        if whole not in taken:
            shape = [rows.count, *sizes(whole)[1:]]
            taken[whole] = new.call("Compress", whole, rows.taken, shape=shape, axis=0)
        return taken[whole]

    new.graph.remove(nodes)
    for node in nodes:
        for place, source in enumerate(node.inputs):
            if source is not None and source not in inside and _has_rows(source, batch, gate):
                node.replace_input_with(place, some_of(source))
    new.graph.insert_before(gate.node, nodes)
    for result in inside:
        if sizes(result)[:1] == (batch,):
            result.shape = ir.Shape([rows.count, *sizes(result)[1:]])
    return value if value in inside else some_of(value)  # what others read too is computed for all rows


def _has_rows(value: ir.Value, batch: int | str, gate: Skip) -> bool:
    """Whether a value's first axis is the rows of a step."""
    source = value.producer()
    if value.is_initializer() or (source is not None and source.op_type == "Constant"):
        return False
    if value.shape is None:
        raise PassError(f"{label(gate.node)}: {value.name} has no shape; batch: any needs none")
    return sizes(value)[:1] == (batch,)


def _form(gate: Skip) -> Form:
    return gate.result.dtype, sizes(gate.result)


def _step(graph: ir.Graph, gates: Sequence[Skip]) -> _Step:
    """Add what gates share, before all nodes."""
    threshold = gates[0].threshold
    batch = sizes(threshold)[0]
    size = ir.node("Shape", [threshold], name="rows/Shape")
    zero, one = (ir.node("Constant", [], {"value_int": n}, name=f"rows/{n}") for n in (0, 1))
    last = ir.node("Constant", [], {"value_ints": [1]}, name="rows/axis")
    count = ir.node("Gather", [size.outputs[0], zero.outputs[0]], {"axis": 0}, name="rows/Gather")
    line = ir.node("Range", [zero.outputs[0], count.outputs[0], one.outputs[0]], name="rows/Range")
    places = ir.node("Unsqueeze", [line.outputs[0], last.outputs[0]], name="rows/Unsqueeze")
    nodes = [size, zero, one, last, count, line, places]
    found: dict[Form, ir.Value] = {}
    for form, gate in {_form(gate): gate for gate in gates}.items():
        made = _zeros(gate, size.outputs[0])
        found[form] = made[-1].outputs[0]
        nodes += made
    for node in nodes:
        node.metadata_props[PATH] = ""
        node.outputs[0].name = node.name
    describe(places.outputs[0], places.name or "", INT, ir.Shape([batch, 1]))
    graph.insert_before(next(iter(graph)), nodes)
    return _Step(found, places.outputs[0])


def _zeros(gate: Skip, size: ir.Value) -> list[ir.Node]:
    """Nodes that give zeros of the form of a gate's result; `size` is the batch and the tokens, int64[2]."""
    dtype, shape = _form(gate)
    widths = [width for width in shape[2:] if isinstance(width, int)]
    if dtype is None or shape[:2] != sizes(gate.threshold) or len(widths) + 2 != len(shape):
        raise PassError(f"{label(gate.node)}: gives {dtype} {list(shape)}; [batch, tokens, width] is right")
    stem = f"zeros/{'x'.join(map(str, widths))}"
    width = ir.node("Constant", [], {"value_ints": widths}, name=f"{stem}/Constant")
    whole = ir.node("Concat", [size, width.outputs[0]], {"axis": 0}, name=f"{stem}/Concat")
    value = ir.tensor([0], dtype)
    zeros = ir.node("ConstantOfShape", [whole.outputs[0]], {"value": value}, name=f"{stem}/ConstantOfShape")
    describe(zeros.outputs[0], zeros.name or "", dtype, ir.Shape(shape))
    return [width, whole, zeros]


def _report(graph: ir.Graph, decisions: Sequence[ir.Value]) -> None:
    """Add the output `ran`."""
    joined = ir.node("Concat", decisions, {"axis": 0}, name=f"{RAN}/Concat")
    form = ir.node("Constant", [], {"value_ints": [len(decisions), -1]}, name=f"{RAN}/form")
    by_gate = ir.node("Reshape", [joined.outputs[0], form.outputs[0]], name=f"{RAN}/Reshape")
    ran = ir.node("Transpose", [by_gate.outputs[0]], {"perm": [1, 0]}, name=f"{RAN}/Transpose")
    for node in (joined, form, by_gate, ran):
        node.metadata_props[PATH] = ""
        node.outputs[0].name = node.name
    batch = sizes(decisions[0])[0]
    value = ran.outputs[0]
    value.name, value.type, value.shape = RAN, ir.TensorType(BOOL), ir.Shape([batch, len(decisions)])
    graph.extend([joined, form, by_gate, ran])
    graph.outputs.append(value)
