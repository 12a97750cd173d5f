"""A decoder cut into partitions, before it is written to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptc.runtime.bundle.names import THRESHOLD

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt
    import onnx_ir as ir

    from adaptc.ir.onnx_graph import OnnxGraph
    from adaptc.runtime.bundle.partitions import Call, PartitionStep

    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Split:
    """What `partition` makes of a graph.

    Attributes:
        graphs: The distinct partitions by name; weights are inputs.
        steps: In the order they run.
        whole: The dense model as one call.
        weights: By name, as calls read them.
        gemms: Names of the graphs that are one GEMM with a weight.
    """

    graphs: Mapping[str, OnnxGraph]
    steps: tuple[PartitionStep, ...]
    whole: Call
    weights: Mapping[str, ir.TensorProtocol]
    gemms: frozenset[str]

    def text(self) -> str:
        """The steps, one call a line, and then each distinct partition; the same text for the same split."""
        lines: list[str] = []
        for step in self.steps:
            if step.when is None:
                lines += _lines(step.then, "")
                continue
            lines.append(f"when %{step.when.logit} reaches the threshold -> %{step.when.result}")
            lines += _lines(step.when.then, "  then ")
            lines += _lines(step.when.otherwise, "  else ") or ["  else zeros"]
        graphs = "".join(f"\n# partition {name}\n{graph.text()}" for name, graph in self.graphs.items())
        return "\n".join(lines) + graphs


def _lines(calls: tuple[Call, ...], prefix: str) -> list[str]:
    return [
        f"{prefix}{', '.join(f'%{name}' for name in call.writes)} = {call.graph}({', '.join(call.reads)})"
        for call in calls
    ]


def run_split(split: Split, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the pieces one after another by ONNX Runtime: the proof that they are the whole.

    Args:
        split: The pieces; in half precision only float16, which ONNX Runtime computes on a CPU.
        feeds: The whole's inputs, `threshold` float32[batch, tokens] among them if there are gates.

    Returns:
        Every value that crosses a cut, by name; `ran.0` and so on say whether each gate's block ran: bool[].
    """
    import numpy as np

    values = {name: tensor.numpy() for name, tensor in split.weights.items()} | dict(feeds)
    gate = 0
    for step in split.steps:
        calls, when = step.then, step.when
        if when is not None:
            ran = np.array((values[when.logit] >= feeds[THRESHOLD]).any())
            values[f"ran.{gate}"] = ran
            gate += 1
            calls = when.then if ran or not when.otherwise else when.otherwise
        for call in calls:
            _call(split, call, values)
        if when is not None and not ran and not when.otherwise:
            values[when.result] = np.zeros_like(values[when.result])
    return {name: value for name, value in values.items() if name not in split.weights}


def _call(split: Split, call: Call, values: dict[str, Array]) -> None:
    graph = split.graphs[call.graph]
    given = {value.name or "": values[name] for value, name in zip(graph.model.graph.inputs, call.reads, strict=True)}
    results = graph.run(given)
    values |= {name: results[v.name or ""] for v, name in zip(graph.model.graph.outputs, call.writes, strict=True)}
