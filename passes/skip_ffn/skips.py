"""The skip gates of an ONNX graph: find them, let one decide for several blocks, take some out.

Each gate is one `Skip` node until a target writes it. So what is timed, decided and emitted is derived from one graph.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.onnx_ops import is_skip

FULL, CHEAP = 2, 3
"""Inputs of a Skip node: the block's result and what stands in for it."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A choice between a block's result and what stands in for it.

    Attributes:
        node: The Skip node.
        logit: What the gate says, float[batch, tokens].
        threshold: What it is compared with, float[batch, tokens].
        full: The block's result, float[batch, tokens, width].
        cheap: What stands in for it, of the same shape.
    """

    node: ir.Node
    logit: ir.Value
    threshold: ir.Value
    full: ir.Value
    cheap: ir.Value

    @classmethod
    def of(cls, node: ir.Node) -> Skip:
        """What a Skip node reads."""
        logit, threshold, full, cheap = (value for value in node.inputs if value is not None)
        return cls(node, logit, threshold, full, cheap)

    @property
    def result(self) -> ir.Value:
        """What is chosen."""
        return self.node.outputs[0]


def skips(graph: ir.Graph) -> list[Skip]:
    """The skip gates, in the order of layers."""
    return [Skip.of(node) for node in graph if is_skip(node)]


def deciding(gates: Sequence[Skip]) -> dict[ir.Value, Skip]:
    """The gate that decides, by logit: of those that read one logit, the first."""
    first: dict[ir.Value, Skip] = {}
    for gate in gates:
        first.setdefault(gate.logit, gate)
    return first


def finish(fork: OnnxGraph) -> OnnxGraph:
    """A graph whose gates were written out, without what nothing reads any more; it is changed in place."""
    RemoveUnusedNodesPass()(fork.model)
    RemoveUnusedOpsetsPass()(fork.model)
    NameFixPass()(fork.model)  # blocks may have nodes of one name, which ONNX Runtime refuses inside a branch
    return fork


def grouped(graph: OnnxGraph, leaders: Sequence[int]) -> OnnxGraph:
    """A fork in which some blocks are decided by the gate of an earlier one, and their own gates are gone.

    Args:
        graph: Before `branch`.
        leaders: For each gate, the index of the gate that decides: itself or one before it.
    """
    fork = graph.fork()
    gates = skips(fork.model.graph)
    for gate, leader in zip(gates, leaders, strict=True):
        gate.node.replace_input_with(0, gates[leader].logit)
    RemoveUnusedNodesPass()(fork.model)
    return fork


def run_always(graph: OnnxGraph, gates: Collection[int]) -> OnnxGraph:
    """A fork without some of the gates: their blocks always run.

    Args:
        graph: Before `branch`.
        gates: Indices of the gates; without all of them it is the dense twin, which has no input `threshold`.
    """
    fork = graph.fork()
    main = fork.model.graph
    removed = [gate for index, gate in enumerate(skips(main)) if index in gates]
    for gate in removed:
        gate.result.replace_all_uses_with(gate.full, replace_graph_outputs=True)
        main.remove(gate.node, safe=True)
    RemoveUnusedNodesPass()(fork.model)
    RemoveUnusedOpsetsPass()(fork.model)
    for threshold in dict.fromkeys(gate.threshold for gate in removed):
        if threshold.is_graph_input() and not threshold.uses():
            main.inputs.remove(threshold)
    return fork


def serving_only(graph: ir.Graph, gate: Skip, index: int) -> list[ir.Node]:
    """The nodes all of whose results lead to one input of a gate, `FULL` or `CHEAP`, and nowhere else, in order."""
    serving: set[ir.Node] = set()
    for node in reversed(graph):
        users = [use for result in node.outputs for use in result.uses()]
        ends = any(result.is_graph_output() for result in node.outputs)
        if users and not ends and all(u.node in serving or (u.node is gate.node and u.idx == index) for u in users):
            serving.add(node)
    return [node for node in graph if node in serving]


def gives_zero(nodes: Sequence[ir.Node]) -> bool:
    """Whether nodes that stand in for a block give zero, which is exported as x · 0."""
    if [node.op_type for node in nodes if node.op_type != "Constant"] != ["Mul"]:
        return False
    constants = [ir.convenience.get_const_tensor(value) for value in nodes[-1].inputs if value is not None]
    return any(tensor is not None and not tensor.numpy().any() for tensor in constants)
