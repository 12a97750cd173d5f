"""branch: a block that may be skipped runs only for the rows, or the steps, that want it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.skip_ffn.compaction import compacted
from adaptc.passes.skip_ffn.comparisons import comparisons, describe
from adaptc.passes.skip_ffn.sides import GATE
from adaptc.passes.skip_ffn.skips import CHEAP, FULL, Skip, deciding, finish, run_always, serving_only, skips
from adaptc.runtime.bundle.names import RAN


@dataclass(frozen=True, slots=True)
class Branch(Pass):
    """Run a block that has a gate only where the gate wants it.

    Before:  y = Skip(logit, threshold, block(x), cheap(x))
    After:   ran = logit ≥ threshold for one of a row's tokens; y[ran] = block(x[ran]), y[not ran] = cheap(x[not ran]);
             and the same graph without gates beside it, `GRAPH.dense`, of a program with routes for each of its parts

    So a block costs what the rows that want it cost, and reads no weight if none does; and what a row answers does not
    depend on the others. With `batch: any` and `group` a step decides as a whole: ran = any(logit ≥ threshold), or the
    same on average; y = If(ran) {block(x)} else {cheap(x)}, where branches read weights from outside. Several tokens
    of a row, as a prompt has, always decide together. Blocks that read one logit share its decision.

    Needs: ONNX level, last: a pass before it finds blocks where they were.
    Shapes: threshold float32[batch, tokens]; new output `ran`, in the order of layers: bool[batch, gates], or
            bool[gates] where a step decides as a whole.
    Cost: a comparison, a reduction and six small nodes for each gate, or an If: 2 to 17 µs with its product;
          a skipped block saves the time its weights take to read.
    """

    name: ClassVar[str] = "branch"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            count = len(skips(graph.model.graph))
            if not count:
                continue
            gates = program.gates.get(program.adapted.get(name, name))
            batch = "any" if gates is None else "rows" if gates.batch == "auto" else gates.batch
            program = program.with_graph(name, emitted(graph, batch))
            program = program.with_graph(dense_name(name), run_always(graph, range(count)))
            if name in program.adapted:
                program = _with_adapted_twin(program, name)
            elif gates is not None:
                gates = replace(gates, batch=batch, dense=dense_name(name))
                program = replace(program, gates={**program.gates, name: gates})
        return program


def _with_adapted_twin(program: Program, graph: str) -> Program:
    """Note the dense twin of a graph with adapters; its gates are those of the graph that it is a form of."""
    plain = program.adapted[graph]
    form = replace(program.adapters[plain], dense=dense_name(graph))
    return replace(program, adapters={**program.adapters, plain: form})


def dense_name(graph: str) -> str:
    """What the dense twin of a graph is called."""
    return f"{graph}.dense"


def emitted(graph: OnnxGraph, batch: str) -> OnnxGraph:
    """The form of a graph with gates that a batch policy needs: see `SkipGates.batch`."""
    return compacted(graph) if batch in ("rows", "auto") else branched(graph, together=batch == "group")


def branched(graph: OnnxGraph, *, together: bool = False) -> OnnxGraph:
    """A fork with an If for each Skip node; a graph without any as it is.

    Args:
        graph: What is rewritten.
        together: Whether the tokens of a step run a block if they want it on average; if not, if one of them does.
    """
    if not skips(graph.model.graph):
        return graph
    fork = graph.fork()
    main = fork.model.graph
    gates = skips(main)
    leaders = deciding(gates)
    compared = comparisons(main, [*leaders.values()])
    decide = _decide_on_average if together else _decide_if_any
    decisions = {logit: decide(main, leaders[logit].node, *pair) for logit, pair in compared.items()}
    for index, gate in enumerate(gates):
        _replace(main, gate, decisions[gate.logit], index)
    _report(main, [decisions[gate.logit] for gate in gates])
    return finish(fork)


def _decide_if_any(graph: ir.Graph, before: ir.Node, value: ir.Value, level: ir.Value) -> ir.Value:
    """One decision for all tokens of a step: whether one of them wants the block."""
    stem = label(before)
    wants = ir.node("GreaterOrEqual", [value, level], name=f"{stem}/wants", metadata_props={PATH: stem})
    describe(wants.outputs[0], f"{stem}/wants", ir.DataType.BOOL, level.shape)
    decision = ir.node(
        "ReduceMax", [wants.outputs[0]], {"keepdims": 1}, name=f"{stem}/ReduceMax", metadata_props={PATH: stem}
    )
    describe(decision.outputs[0], f"{stem}/ReduceMax", ir.DataType.BOOL, _ones(level))
    graph.insert_before(before, [wants, decision])
    return decision.outputs[0]


def _decide_on_average(graph: ir.Graph, before: ir.Node, value: ir.Value, level: ir.Value) -> ir.Value:
    """One decision for all tokens of a step: whether they are above their thresholds on average.

    A token whose threshold is -inf is infinitely far above, so a block that it needs always runs.
    """
    stem = label(before)
    above = ir.node("Sub", [value, level], name=f"{stem}/above")
    mean = ir.node("ReduceMean", [above.outputs[0]], {"keepdims": 1}, name=f"{stem}/ReduceMean")
    zero = ir.node("Constant", [], {"value_float": 0.0}, name=f"{stem}/zero")
    decision = ir.node("GreaterOrEqual", [mean.outputs[0], zero.outputs[0]], name=f"{stem}/decision")
    for node, shape in ((above, level.shape), (mean, _ones(level)), (zero, ir.Shape([])), (decision, _ones(level))):
        node.metadata_props[PATH] = stem
        dtype = ir.DataType.BOOL if node is decision else ir.DataType.FLOAT
        describe(node.outputs[0], node.name or "", dtype, shape)
    graph.insert_before(before, [above, mean, zero, decision])
    return decision.outputs[0]


def _ones(value: ir.Value) -> ir.Shape:
    """The shape of a value reduced over all axes, which are kept."""
    return ir.Shape([1] * len(value.shape or ()))


def _replace(graph: ir.Graph, gate: Skip, decision: ir.Value, index: int) -> None:
    """Put an If in the place of a Skip node."""
    stem = label(gate.node)
    branches = {
        name: _side(graph, gate, at, value, f"{stem}/{name}")
        for name, at, value in (("then_branch", FULL, gate.full), ("else_branch", CHEAP, gate.cheap))
    }
    marks = {PATH: stem, GATE: str(index)}
    chosen = ir.node("If", [decision], branches, name=f"{stem}/If", metadata_props=marks)
    old, new = gate.result, chosen.outputs[0]
    new.type, new.shape = old.type, old.shape
    graph.insert_before(gate.node, chosen)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(gate.node, safe=True)
    old.name, new.name = f"{old.name}:before", old.name


def _side(graph: ir.Graph, gate: Skip, at: int, value: ir.Value, name: str) -> ir.Graph:
    """A branch that computes one input of a Skip node, of the nodes that serve nothing else."""
    nodes = serving_only(graph, gate, at)
    graph.remove(nodes)
    if value.producer() not in nodes:
        # Others need the value too, or it is a constant: a branch must still compute what it gives.
        identity = ir.node("Identity", [value], name=f"{name}/Identity", metadata_props={PATH: label(gate.node)})
        describe(identity.outputs[0], f"{name}/Identity", value.dtype, value.shape)
        nodes, value = [*nodes, identity], identity.outputs[0]
    return ir.Graph([], [value], nodes=nodes, name=name)


def _report(graph: ir.Graph, decisions: Sequence[ir.Value]) -> None:
    """Add the output `ran`."""
    joined = ir.node("Concat", decisions, {"axis": 0}, name=f"{RAN}/Concat")
    flat = ir.node("Constant", [], {"value_ints": [-1]}, name=f"{RAN}/flat")
    ran = ir.node("Reshape", [joined.outputs[0], flat.outputs[0]], name=f"{RAN}/Reshape")
    for node in (joined, flat, ran):
        node.metadata_props[PATH] = ""
        node.outputs[0].name = node.name
    describe(ran.outputs[0], RAN, ir.DataType.BOOL, ir.Shape([len(decisions)]))
    graph.extend([joined, flat, ran])
    graph.outputs.append(ran.outputs[0])
