"""branch: a block that may be skipped becomes an If that runs it or what stands in for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.skip_ffn.skips import CHEAP, FULL, Skip, run_always, serving_only, skips
from adaptc.runtime.bundle.names import RAN
from adaptc.runtime.bundle.plan import Switch

GATE = "adaptc.gate"
"""Metadata of an If that `branch` made: the index of its gate, in the order of `ran`."""


@dataclass(frozen=True, slots=True)
class Branch(Pass):
    """Run a block that has a gate only where the gate wants it.

    Before:  y = Skip(logit, threshold, block(x), cheap(x))
    After:   ran = any(logit ≥ threshold); y = If(ran) {block(x)} else {cheap(x)}; and, unless the program has routes,
             the same graph without gates beside it, `GRAPH.dense`

    What only the block needs moves into the branch, so that a skipped block reads none of its weights. Weights stay
    where they are and branches read them from outside. The decision is one for the whole step: several rows, or
    several tokens of a prompt, run the block if one of them wants it; with `batch: group`, if they do on average.
    Blocks that read one logit share its decision. A program with routes has no dense twin, as its parts are many.

    Needs: ONNX level, last: a pass before it finds blocks where they were.
    Shapes: threshold float32[batch, tokens]; new output `ran`, bool[gates] in the order of layers.
    Cost: a comparison, a reduction and an If for each gate, 10 to 17 µs with its product (SmolLM2-135M, 2 threads);
          a skipped block saves the time its weights take to read.
    """

    name: ClassVar[str] = "branch"

    def apply(self, program: Program) -> Program:
        routes = any(isinstance(step, Switch) for step in program.plan)
        for name, graph in program.at_level(OnnxGraph).items():
            count = len(skips(graph.model.graph))
            if not count:
                continue
            gates = program.gates.get(name)
            gated = branched(graph, together=gates is not None and gates.batch == "group")
            program = program.with_graph(name, gated)
            if routes:
                continue
            program = program.with_graph(dense_name(name), run_always(graph, range(count)))
            if gates is not None:
                program = replace(program, gates={**program.gates, name: replace(gates, dense=dense_name(name))})
        return program


def dense_name(graph: str) -> str:
    """What the dense twin of a graph is called."""
    return f"{graph}.dense"


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
    leaders = {gate.logit: gate for gate in reversed(gates)}  # of gates that read one logit, the first
    comparisons = _comparisons(main, [gate for gate in gates if leaders[gate.logit] is gate])
    decide = _decide_on_average if together else _decide_if_any
    decisions = {logit: decide(main, leaders[logit].node, *compared) for logit, compared in comparisons.items()}
    for index, gate in enumerate(gates):
        _replace(main, gate, decisions[gate.logit], index)
    _report(main, [decisions[gate.logit] for gate in gates])
    RemoveUnusedNodesPass()(fork.model)
    RemoveUnusedOpsetsPass()(fork.model)
    NameFixPass()(fork.model)  # ONNX Runtime refuses equal names inside a branch, and passes may give them
    return fork


def conditionals(graph: OnnxGraph) -> list[ir.Node]:
    """The Ifs that `branch` made, in the order of `ran`."""
    return [node for node in graph.model.graph if GATE in node.metadata_props]


def _comparisons(graph: ir.Graph, gates: Sequence[Skip]) -> Mapping[ir.Value, tuple[ir.Value, ir.Value]]:
    """By logit, what is compared with what: float[batch, tokens] or [batch, tokens, 1] each.

    Gates say x·w + b: x·w is compared with threshold - b, two nodes fewer for each gate. At batch 1 a node costs some
    microseconds whatever it computes. Gates of another form are compared as they are.
    """
    products = [_product(gate.logit) for gate in gates]
    folded = [product for product in products if product is not None]
    if len(folded) < len(gates):
        return {gate.logit: (gate.logit, gate.threshold) for gate in gates}
    threshold = gates[0].threshold
    stem = threshold.name
    last = ir.node("Constant", [], {"value_ints": [-1]}, name=f"{stem}/axis")
    wide = ir.node("Unsqueeze", [threshold, last.outputs[0]], name=f"{stem}/Unsqueeze")
    biases = ir.node("Concat", [bias for _, bias in folded], {"axis": 0}, name=f"{stem}/Concat")
    levels = ir.node("Sub", [wide.outputs[0], biases.outputs[0]], name=f"{stem}/Sub")
    count = len(folded)
    split = ir.node(
        "Split", [levels.outputs[0]], {"axis": -1, "num_outputs": count}, num_outputs=count, name=f"{stem}/Split"
    )
    first = next(iter(graph))
    for node in (last, wide, biases, levels, split):
        node.metadata_props[PATH] = ""
        for index, value in enumerate(node.outputs):
            value.name, value.type = f"{node.name}:{index}", threshold.type
        graph.insert_before(first, node)
    last.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    for level, (product, _) in zip(split.outputs, folded, strict=True):
        level.shape = product.shape
    return {
        gate.logit: (product, level) for gate, (product, _), level in zip(gates, folded, split.outputs, strict=True)
    }


def _product(logit: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """x·w and b, float[batch, tokens, 1] and float[1], of a gate that says Squeeze(x·w + b, -1)."""
    squeeze = logit.producer()
    total = squeeze.inputs[0] if squeeze is not None and squeeze.op_type == "Squeeze" else None
    add = total.producer() if total is not None else None
    if add is None or add.op_type != "Add":
        return None
    for value, bias in (add.inputs, reversed(add.inputs)):
        if value is not None and bias is not None and value.shape is not None and bias.is_initializer():
            column = len(value.shape) == 3 and value.shape[2] == 1
            return (value, bias) if column and list(bias.shape or ()) == [1] else None
    return None


def _decide_if_any(graph: ir.Graph, before: ir.Node, value: ir.Value, level: ir.Value) -> ir.Value:
    """One decision for all tokens of a step: whether one of them wants the block."""
    stem = label(before)
    wants = ir.node("GreaterOrEqual", [value, level], name=f"{stem}/wants", metadata_props={PATH: stem})
    _describe(wants.outputs[0], f"{stem}/wants", ir.DataType.BOOL, level.shape)
    decision = ir.node(
        "ReduceMax", [wants.outputs[0]], {"keepdims": 1}, name=f"{stem}/ReduceMax", metadata_props={PATH: stem}
    )
    _describe(decision.outputs[0], f"{stem}/ReduceMax", ir.DataType.BOOL, _ones(level))
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
        _describe(node.outputs[0], node.name or "", dtype, shape)
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
        _describe(identity.outputs[0], f"{name}/Identity", value.dtype, value.shape)
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
    _describe(ran.outputs[0], RAN, ir.DataType.BOOL, ir.Shape([len(decisions)]))
    graph.extend([joined, flat, ran])
    graph.outputs.append(ran.outputs[0])


def _describe(value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    value.name, value.shape = name, shape
    value.type = None if dtype is None else ir.TensorType(dtype)
