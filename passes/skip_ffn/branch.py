"""branch: a block that may be skipped becomes an If that runs it or what stands in for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.ir.graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.match import PATH, path

THRESHOLD = "threshold"
"""The input that gates are compared with: float32 [batch, tokens]."""

RAN = "ran"
"""The output that says which blocks ran: bool [gates]."""


@dataclass(frozen=True, slots=True)
class Branch(Pass):
    """Run a block that has a gate only where the gate wants it.

    Before:  y = Where(logit ≥ threshold, block(x), cheap(x)), both computed
    After:   ran = any(logit ≥ threshold); y = If(ran) {block(x)} else {cheap(x)}

    What only the block needs moves into the branch, so that a skipped block reads none of its weights. Weights stay
    where they are and branches read them from outside. The decision is one for the whole step: several rows, or
    several tokens of a prompt, run the block if one of them wants it; with `batch: group`, if they do on average.

    Needs: ONNX level, last: a pass before it finds blocks where they were.
    Shapes: threshold float32[batch, tokens]; new output `ran`, bool[gates] in the order of layers.
    Cost: a comparison, a reduction and an If for each gate, 10 to 17 µs with its product (SmolLM2-135M, 2 threads);
          a skipped block saves the time its weights take to read.
    """

    name: ClassVar[str] = "branch"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(True for _ in choices(graph.model.graph)):
                fork = graph.fork()
                gates = program.gates.get(name)
                _branch(fork.model, together=gates is not None and gates.batch == "group")
                program = program.with_graph(name, fork)
        return program


@dataclass(frozen=True, slots=True)
class Choice:
    """A Where that takes a block's result or what stands in for it.

    Attributes:
        where: Its node; the second input is the block's result, the third what stands in for it.
        wanted: bool[batch, tokens], for each token whether it wants the block.
    """

    where: ir.Node
    wanted: ir.Value


def choices(graph: ir.Graph) -> Iterator[Choice]:
    """Every Where over a comparison with the input `threshold`, in order."""
    for node in graph:
        if node.op_type != "Where":
            continue
        spread = node.inputs[0]
        unsqueeze = spread.producer() if spread is not None else None
        wanted = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
        compare = wanted.producer() if wanted is not None else None
        threshold = compare.inputs[1] if compare is not None and compare.op_type == "GreaterOrEqual" else None
        if threshold is None or not threshold.is_graph_input() or threshold.name != THRESHOLD:
            continue
        assert wanted is not None
        yield Choice(node, wanted)


def _branch(model: ir.Model, *, together: bool) -> None:
    graph = model.graph
    decisions = [_replace(graph, choice, together=together) for choice in _folded(graph, list(choices(graph)))]
    joined = ir.node("Concat", decisions, {"axis": 0}, name=f"{RAN}/Concat", metadata_props={PATH: ""})
    joined.outputs[0].name = joined.name
    flat = ir.node("Constant", [], {"value_ints": [-1]}, name=f"{RAN}/flat", metadata_props={PATH: ""})
    flat.outputs[0].name = flat.name
    ran = ir.node("Reshape", [joined.outputs[0], flat.outputs[0]], name=f"{RAN}/Reshape", metadata_props={PATH: ""})
    _describe(ran.outputs[0], RAN, ir.DataType.BOOL, [len(decisions)])
    graph.extend([joined, flat, ran])
    graph.outputs.append(ran.outputs[0])
    RemoveUnusedNodesPass()(model)


def _folded(graph: ir.Graph, found: list[Choice]) -> list[Choice]:
    """Compare x·w with threshold - b, where gates say x·w + b: two nodes fewer for each gate.

    At batch 1 a node costs some microseconds whatever it computes. Gates of another form are left as they are.
    """
    products = [_product(choice.wanted) for choice in found]
    gates = [product for product in products if product is not None]
    if len(gates) < len(found):
        return found
    threshold = next(value for value in graph.inputs if value.name == THRESHOLD)
    last = ir.node("Constant", [], {"value_ints": [-1]}, name=f"{THRESHOLD}/axis")
    wide = ir.node("Unsqueeze", [threshold, last.outputs[0]], name=f"{THRESHOLD}/Unsqueeze")
    biases = ir.node("Concat", [bias for _, bias in gates], {"axis": 0}, name=f"{THRESHOLD}/Concat")
    levels = ir.node("Sub", [wide.outputs[0], biases.outputs[0]], name=f"{THRESHOLD}/Sub")
    split = ir.node(
        "Split",
        [levels.outputs[0]],
        {"axis": -1, "num_outputs": len(gates)},
        num_outputs=len(gates),
        name=f"{THRESHOLD}/Split",
    )
    first = next(iter(graph))
    for node in (last, wide, biases, levels, split):
        node.metadata_props[PATH] = ""
        for index, value in enumerate(node.outputs):
            value.name, value.type = f"{node.name}:{index}", threshold.type
        graph.insert_before(first, node)
    last.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    folded = []
    for choice, (product, _), level in zip(found, gates, split.outputs, strict=True):
        level.shape = product.shape
        wants = ir.node("GreaterOrEqual", [product, level], name=f"{path(choice.where)}/wants")
        wants.metadata_props[PATH] = path(choice.where)
        wants.outputs[0].name, wants.outputs[0].type = wants.name, ir.TensorType(ir.DataType.BOOL)
        wants.outputs[0].shape = product.shape
        graph.insert_before(choice.where, wants)
        folded.append(Choice(choice.where, wants.outputs[0]))
    return folded


def _product(wanted: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """x·w and b, float[batch, tokens, 1] and float[1], of a gate that says Squeeze(x·w + b, -1)."""
    compare = wanted.producer()
    squeeze = _producer(compare, "Squeeze")
    add = _producer(squeeze, "Add")
    if add is None:
        return None
    for value, bias in (add.inputs, reversed(add.inputs)):
        if value is not None and bias is not None and value.shape is not None and bias.is_initializer():
            column = len(value.shape) == 3 and value.shape[2] == 1
            return (value, bias) if column and list(bias.shape or ()) == [1] else None
    return None


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """What makes a node's first input, if it is of this kind."""
    value = node.inputs[0] if node is not None else None
    found = value.producer() if value is not None else None
    return found if found is not None and found.op_type == op_type else None


def _replace(graph: ir.Graph, choice: Choice, *, together: bool) -> ir.Value:
    """Put an If in the place of a choice; its condition, bool of one element."""
    where = choice.where
    rank = len(choice.wanted.shape or ())
    if together:
        decision = _mean(graph, choice, [1] * rank)
    else:
        decision = ir.node("ReduceMax", [choice.wanted], {"keepdims": 1}, name=f"{path(where)}/ReduceMax")
        _describe(decision.outputs[0], decision.name or "", ir.DataType.BOOL, [1] * rank)
    branches = {
        name: _side(graph, where, at, f"{path(where)}/{name}") for at, name in ((1, "then_branch"), (2, "else_branch"))
    }
    chosen = ir.node("If", [decision.outputs[0]], branches, name=f"{path(where)}/If")
    for node in (decision, chosen):
        node.metadata_props[PATH] = path(where)
    old, new = where.outputs[0], chosen.outputs[0]
    new.type, new.shape = old.type, old.shape
    graph.insert_before(where, [decision, chosen])
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(where, safe=True)
    old.name, new.name = f"{old.name}:before", old.name
    return decision.outputs[0]


def _mean(graph: ir.Graph, choice: Choice, shape: list[int]) -> ir.Node:
    """One decision for all tokens of a step: whether they are above their thresholds on average.

    A token whose threshold is -inf is infinitely far above, so a block that it needs always runs.
    """
    compare = choice.wanted.producer()
    assert compare is not None
    stem = path(choice.where)
    above = ir.node("Sub", [compare.inputs[0], compare.inputs[1]], name=f"{stem}/above")
    mean = ir.node("ReduceMean", [above.outputs[0]], {"keepdims": 1}, name=f"{stem}/ReduceMean")
    zero = ir.node("Constant", [], {"value_float": 0.0}, name=f"{stem}/zero")
    decision = ir.node("GreaterOrEqual", [mean.outputs[0], zero.outputs[0]], name=f"{stem}/decision")
    for node, size in ((above, None), (mean, shape), (zero, [])):
        node.metadata_props[PATH] = stem
        value = node.outputs[0]
        value.name, value.type = node.name, ir.TensorType(ir.DataType.FLOAT)
        value.shape = choice.wanted.shape if size is None else ir.Shape(size)
    _describe(decision.outputs[0], decision.name or "", ir.DataType.BOOL, shape)
    graph.insert_before(choice.where, [above, mean, zero])
    return decision


def _side(graph: ir.Graph, where: ir.Node, at: int, name: str) -> ir.Graph:
    """A branch that computes input `at` of a choice, of the nodes that serve nothing else."""
    value = where.inputs[at]
    assert value is not None
    nodes = serving_only(graph, where, at)
    graph.remove(nodes)
    taken: Counter[str] = Counter()
    for node in nodes:  # onnxruntime refuses equal names inside a branch, and passes may give them
        taken[node.name or ""] += 1
        node.name = node.name if taken[node.name or ""] == 1 else f"{node.name}_{taken[node.name or '']}"
    if value.producer() not in nodes:
        # Others need the value too, or it is a constant: a branch must still compute what it gives.
        identity = ir.node("Identity", [value], name=f"{name}/Identity", metadata_props={PATH: path(where)})
        identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
        identity.outputs[0].name = identity.name
        nodes, value = [*nodes, identity], identity.outputs[0]
    return ir.Graph([], [value], nodes=nodes, name=name)


def serving_only(graph: ir.Graph, where: ir.Node, at: int) -> list[ir.Node]:
    """The nodes all of whose results lead to input `at` of a choice and nowhere else, in order."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        users = [use for result in node.outputs for use in result.uses()]
        ends = any(result.is_graph_output() for result in node.outputs)
        if users and not ends and all(use.node in found or (use.node is where and use.idx == at) for use in users):
            found.add(node)
    return [node for node in graph if node in found]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: list[int]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
