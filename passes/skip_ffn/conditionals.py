"""The Ifs that `branch` made: find them, let one gate decide for several blocks, take gates out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.ir.graph import OnnxGraph
from adaptc.passes.skip_ffn.branch import RAN, THRESHOLD


def conditionals(graph: OnnxGraph) -> list[ir.Node]:
    """The Ifs that `branch` made, in the order of `ran`."""
    joined = graph.model.graph.outputs[-1].producer() if _has_gates(graph) else None
    joined = joined.inputs[0].producer() if joined is not None and joined.inputs[0] is not None else None
    decisions = set(joined.inputs) if joined is not None else set()
    return [node for node in graph.model.graph if node.op_type == "If" and node.inputs[0] in decisions]


def grouped(graph: OnnxGraph, leaders: Sequence[int]) -> OnnxGraph:
    """A fork in which some blocks are decided by the gate of an earlier one, and their own gates are gone.

    Args:
        graph: After `branch`.
        leaders: For each place in `ran`, the place of the gate that decides: itself or one before it.
    """
    fork = graph.fork()
    found = conditionals(fork)
    decisions = [found[leader].inputs[0] for leader in leaders]
    joined = fork.model.graph.outputs[-1].producer().inputs[0].producer()  # type: ignore[union-attr]
    assert joined is not None
    for place, (node, decision) in enumerate(zip(found, decisions, strict=True)):
        node.replace_input_with(0, decision)
        joined.replace_input_with(place, decision)
    RemoveUnusedNodesPass()(fork.model)
    return fork


def run_always(graph: OnnxGraph, gates: Collection[int]) -> OnnxGraph:
    """The graph without some of its gates: their blocks always run.

    Args:
        graph: After `branch`.
        gates: Places in `ran`; with all of them it is the dense twin, without the input `threshold` and `ran`.
    """
    fork = graph.fork()
    main = fork.model.graph
    found = conditionals(fork)
    joined = main.outputs[-1].producer().inputs[0].producer()  # type: ignore[union-attr]
    kept = [node.inputs[0] for place, node in enumerate(found) if place not in gates]
    for node in (node for place, node in enumerate(found) if place in gates):
        then, instead = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
        nodes, result = list(then), then.outputs[0]
        then.outputs.clear()
        then.remove(nodes)
        instead.outputs.clear()
        instead.remove(list(instead), safe=True)  # so that it no longer uses its weights
        main.insert_before(node, nodes)
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        main.remove(node, safe=True)
    if kept:
        assert joined is not None
        joined.resize_inputs(len(kept))
        for place, value in enumerate(kept):
            joined.replace_input_with(place, value)
        main.outputs[-1].shape = ir.Shape([len(kept)])
    else:
        main.outputs.pop()
    RemoveUnusedNodesPass()(fork.model)
    for value in [v for v in main.inputs if v.name == THRESHOLD and not v.uses()]:
        main.inputs.remove(value)
    return fork


def _has_gates(graph: OnnxGraph) -> bool:
    return graph.model.graph.outputs[-1].name == RAN
