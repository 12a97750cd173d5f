"""What became of skip gates in a graph that a target runs: which nodes are a block's, and which stand in for it.

An If that `branch` made holds both as its branches; where each row decides for itself, nodes say what they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.passes.skip_ffn.skips import FULL

GATE = "adaptc.gate"
"""Metadata of an If that `branch` made: the index of its gate, in the order of `ran`."""

BLOCK, STAND_IN = "adaptc.block", "adaptc.stand_in"
"""Metadata of a node that runs over some rows of a step: the index of the gate that says which."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The nodes of a gate: those that are its block, and those that stand in for it."""

    block: tuple[ir.Node, ...]
    stand_in: tuple[ir.Node, ...]


def mark(nodes: Iterable[ir.Node], at: int, gate: int) -> None:
    """Have nodes say which side of a gate they are; `at` is `FULL` or `CHEAP`."""
    for node in nodes:
        node.metadata_props[BLOCK if at == FULL else STAND_IN] = str(gate)


def sides(graph: OnnxGraph) -> tuple[Sides, ...]:
    """The gates of a graph after `branch`, in the order of `ran`; none before."""
    found: dict[int, tuple[list[ir.Node], list[ir.Node]]] = {}
    for node in graph.model.graph:
        for key, side in ((BLOCK, 0), (STAND_IN, 1)):
            if key in node.metadata_props:
                found.setdefault(int(node.metadata_props[key]), ([], []))[side].append(node)
        if GATE in node.metadata_props:
            block, stand_in = (list(node.attributes[name].as_graph()) for name in ("then_branch", "else_branch"))
            found[int(node.metadata_props[GATE])] = (block, stand_in)
    return tuple(Sides(tuple(block), tuple(stand_in)) for _, (block, stand_in) in sorted(found.items()))
