"""The language-model head is marked where its graph is made; passes read the mark and search no more."""

from __future__ import annotations

import onnx_ir as ir

from adaptc.ir.marks import HEAD
from adaptc.runtime.bundle.names import LOGITS

NORMS = frozenset({"RMSNormalization", "LayerNormalization"})

AFTER_PROJECTION = frozenset({"Add", "Div", "Mul", "Tanh"})
"""What may stand between the projection and the logits: a bias, and the soft cap of Gemma 2."""


def mark_head(graph: ir.Graph) -> None:
    """Mark what gives the output `logits`: the last norm, the projection and what follows it.

    A graph without such an output, like the trunk of a stitched model, has no head.
    """
    logits = next((value for value in graph.outputs if value.name == LOGITS), None)
    node = logits.producer() if logits is not None else None
    head: list[ir.Node] = []
    while node is not None and node.op_type in AFTER_PROJECTION:
        head.append(node)
        node = _source(node)
    if node is None or node.op_type != "MatMul":
        return
    norm = _source(node)
    ends = [norm] if norm is not None and norm.op_type in NORMS else []
    for each in (*head, node, *ends):
        each.metadata_props[HEAD] = ""


def _source(node: ir.Node) -> ir.Node | None:
    """What computes a node's first input that is computed."""
    producers = [value.producer() for value in node.inputs if value is not None]
    return next((each for each in producers if each is not None and each.op_type != "Constant"), None)
