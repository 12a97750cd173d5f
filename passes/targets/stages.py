"""The nodes of a partition in the order their pieces run: what comes before a GEMM, the GEMM, what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from adaptc.passes.emit import GEMM


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes that become one piece.

    Attributes:
        nodes: In the graph's order.
        gemm: Whether they are one GEMM with a weight.
    """

    nodes: tuple[ir.Node, ...]
    gemm: bool = False


def in_stages(nodes: Sequence[ir.Node]) -> list[Stage]:
    """Stages in an order in which each finds what it reads.

    A GEMM is a part of its own, in an odd stage; all else that needs the same number of GEMMs before it is one
    part, in an even stage.

    Args:
        nodes: Nodes of one partition, in an order in which they can run; marked with `GEMM` by `legalize`.
    """
    stages: dict[ir.Node, int] = {}
    parts: dict[tuple[int, str], list[ir.Node]] = {}
    for node in nodes:
        gemm = _gemm(node)
        stage = int(bool(gemm))
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer in stages:
                stage = max(stage, stages[producer] + _cuts(_gemm(producer), gemm))
        stages[node] = stage
        parts.setdefault((stage, gemm), []).append(node)
    return [Stage(tuple(parts[key]), bool(key[1])) for key in sorted(parts, key=lambda key: key[0])]


def _gemm(node: ir.Node) -> str:
    """The GEMM that a node belongs to; "" if to none."""
    return node.metadata_props.get(GEMM, "")


def _cuts(before: str, after: str) -> int:
    """Stages from a node to one that reads it: a GEMM's inputs and its result are each in another piece."""
    if before == after:
        return 0
    return 2 if before and after else 1
