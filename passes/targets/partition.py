"""partition: a decoder is cut at its gates and GEMMs into partitions, each of which becomes an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import in_head, label
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.partitions import Split
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.emit import GEMM
from adaptc.passes.skip_ffn.skips import CHEAP, FULL, Skip, gives_zero, serving_only, skips
from adaptc.passes.targets.piece import FREE, Shared
from adaptc.passes.targets.stages import Stage, in_stages
from adaptc.runtime.bundle.names import CACHE_POSITIONS
from adaptc.runtime.bundle.partitions import Call, PartitionStep, When
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates


@dataclass(frozen=True, slots=True)
class Partition(Pass):
    """Cut a decoder at its gates, and around its GEMMs with weights.

    Before:  one graph; y = Skip(logit, threshold, block(x), cheap(x))
    After:   the graph stays, and beside it: partition, gemm, partition, when(logit) {gemm, block, gemm} else {cheap},
             partition, …, head, gemm

    A partition is all that lies between two gates or GEMMs. Weights become inputs, so that partitions that differ in
    nothing but their weights are one graph: of an 8-layer model with gates everywhere, ten graphs instead of 68 pieces.
    The last norm and the GEMM with the vocabulary are a step of their own: a prompt needs them for one token only;
    the trunk of a stitched program has none, so its last step is empty.
    A GEMM is a partition because a step multiplies few rows, for which TensorRT 8.6 has no kernels that read weights as
    quickly as memory gives them; the runtime has (runtime/backends/cuda/kernels/skinny_gemm.py).

    Needs: ONNX level, after legalize; not after branch.
    Shapes: unchanged.
    Cost: a kernel that could be fused over a cut is not, about 2 µs for a cut on a GPU.

    Attributes:
        gemms: Whether GEMMs are partitions of their own; if not, they stay in the engines.

    Raises:
        PassError: a block that may be skipped gives more than one value, the plan is not one decoder, or rows are to
            decide each for itself.
    """

    name: ClassVar[str] = "partition"
    gemms: bool = True

    def apply(self, program: Program) -> Program:
        decoders = {
            name: graph
            for name, graph in program.at_level(OnnxGraph).items()
            if name not in program.partitions
            and any(value.name == CACHE_POSITIONS for value in graph.model.graph.inputs)
        }
        if decoders and not (isinstance(program.plan[0], Run) and all(isinstance(s, Switch) for s in program.plan[1:])):
            plan = "; ".join(map(str, program.plan))
            raise PassError(f"plan: {plan}; TensorRT runs one decoder, with or without routes after its first part")
        found = {name: split(graph, gemms=self.gemms) for name, graph in decoders.items()}
        if not found:
            return program
        gates = {name: _as_a_step(each) if name in found else each for name, each in program.gates.items()}
        return replace(program, partitions={**program.partitions, **found}, gates=gates)


def _as_a_step(gates: SkipGates) -> SkipGates:
    """Gates whose rows decide together: the blocks of a step are kernels of one captured graph."""
    if gates.batch == "rows":
        raise PassError("batch: rows; TensorRT runs a block for all rows of a step: auto, any or off is right")
    return replace(gates, batch="any") if gates.batch == "auto" else gates


def split(graph: OnnxGraph, *, gemms: bool = True) -> Split:
    """The pieces of a graph and the order in which they run."""
    main = graph.model.graph
    gates = skips(main)
    pieces = {
        place: in_stages(nodes) if gemms else [Stage(tuple(nodes))] for place, nodes in _assign(main, gates).items()
    }
    zeros = {index for index in range(len(gates)) if gives_zero(_nodes(pieces.get(("else", index), [])))}
    for index in zeros:
        del pieces["else", index]
    shared = Shared({}, Counter())
    steps: list[PartitionStep] = []
    needed = _crossing(main, gates, pieces)
    for index in range(len(gates) + 1):
        steps += _plain(_calls(shared, "partition", pieces.get(("main", index), []), needed))
        if index < len(gates):
            sides = [
                None if index in zeros and kind == "else" else pieces.get((kind, index), [])
                for kind in ("then", "else")
            ]
            steps.append(PartitionStep((), _when(shared, gates[index], sides, needed)))
    steps.append(PartitionStep(_calls(shared, "head", pieces.get(("head", 0), []), needed)))
    whole = shared.call("whole", _dense(main, gates), {v.name or "" for v in main.outputs}, _stand_ins(gates))
    assert whole is not None
    weights = {name: value.const_value for name, value in main.initializers.items() if value.const_value is not None}
    graphs = {name: OnnxGraph(model) for name, model in shared.models.items()}
    return Split(graphs, tuple(steps), whole, weights, frozenset(_named(graphs, "gemm")))


def _named(graphs: Collection[str], label: str) -> Iterator[str]:
    """The graphs that were called so: the label, or the label and a number."""
    return (name for name in graphs if name.partition("_")[0] == label)


Place = tuple[str, int]
"""A piece: "main", "then", "else" or "head", and after how many gates, or of which."""


def _assign(main: ir.Graph, gates: Sequence[Skip]) -> dict[Place, list[ir.Node]]:
    """Which nodes belong to which piece, in order; nodes that only need where a step stands are in none."""
    level = {gate.result: index + 1 for index, gate in enumerate(gates)}
    taken: dict[ir.Node, Place | None] = {gate.node: None for gate in gates}
    for index, gate in enumerate(gates):
        for at, kind in ((FULL, "then"), (CHEAP, "else")):
            taken |= dict.fromkeys(serving_only(main, gate, at), (kind, index))
    home: dict[ir.Node, Place] = {}
    first = {gate.logit.producer(): ("main", index) for index, gate in enumerate(gates)}
    for node in main:
        after = [_level(value, level) for value in node.inputs if value is not None]
        for value in node.outputs:
            level.setdefault(value, max(after, default=-1))
        if node in taken and taken[node] is None:
            continue
        if max(after, default=-1) < 0:
            if node in first:  # a gate that looks at no state still needs a partition that tells its logit
                home[node] = first[node]
            continue
        mark = ("head", 0) if in_head(node) else ("main", max(after))
        home[node] = _of_its_value(node, home) or taken.get(node) or mark
    pieces: dict[Place, list[ir.Node]] = {}
    for node, place in home.items():
        pieces.setdefault(place, []).append(node)
    return pieces


def _of_its_value(node: ir.Node, home: Mapping[ir.Node, Place]) -> Place | None:
    """A cast belongs to what makes the value it casts: in a gated block it would be a piece of its own."""
    source = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    if source is None or GEMM in node.metadata_props:
        return None
    place = home.get(source)
    return place if place is not None and place[0] == "main" else None


def _level(value: ir.Value, level: Mapping[ir.Value, int]) -> int:
    """Number of gates that a value comes after; -1 for constants and for what is known at the start of a step."""
    if value in level:
        return level[value]
    return 0 if value.is_graph_input() and value.name not in FREE else -1


def _crossing(main: ir.Graph, gates: Sequence[Skip], pieces: Mapping[Place, Sequence[Stage]]) -> set[str]:
    """Names of the values that one piece makes and another reads, or that the whole gives."""
    home = {node: part for parts in pieces.values() for part in parts for node in part.nodes}
    names = {value.name or "" for value in main.outputs}
    names |= {gate.logit.name or "" for gate in gates}
    for node, part in home.items():
        for value in node.outputs:
            if any(use.node in home and home[use.node] is not part for use in value.uses()):
                names.add(value.name or "")
    for gate in gates:
        names |= {gate.full.name or "", gate.cheap.name or ""}
    return names


def _calls(shared: Shared, label: str, parts: Sequence[Stage], needed: Collection[str]) -> tuple[Call, ...]:
    """The calls of a partition's parts, in order."""
    calls = [shared.call("gemm" if part.gemm else label, part.nodes, needed) for part in parts]
    return tuple(call for call in calls if call is not None)


def _plain(calls: tuple[Call, ...]) -> list[PartitionStep]:
    return [PartitionStep(calls)] if calls else []


def _when(shared: Shared, gate: Skip, sides: Sequence[Sequence[Stage] | None], needed: Collection[str]) -> When:
    """The two sides of a gate, which write one value with their last call; None for zeros."""
    result = gate.result.name or ""
    found: list[tuple[Call, ...]] = []
    for value, side, parts in zip((gate.full, gate.cheap), ("block", "cheap"), sides, strict=True):
        calls = () if parts is None else _calls(shared, side, parts, needed)
        if parts is None:
            found.append(())
        elif not calls or calls[-1].writes != (value.name or "",):
            raise PassError(
                f"{label(gate.node)}: its {side} gives {calls[-1].writes if calls else 'nothing'}; one value is right"
            )
        else:
            found.append((*calls[:-1], replace(calls[-1], writes=(result,))))
    return When(gate.logit.name or "", found[0], found[1], result)


def _nodes(parts: Sequence[Stage]) -> list[ir.Node]:
    return [node for part in parts for node in part.nodes]


def _dense(main: ir.Graph, gates: Sequence[Skip]) -> list[ir.Node]:
    """All nodes of the model that runs every block."""
    left = {gate.node for gate in gates}
    for gate in gates:
        left |= set(serving_only(main, gate, CHEAP))
    return [node for node in main if node not in left and node.op_type != "Constant"]


def _stand_ins(gates: Sequence[Skip]) -> dict[ir.Value, ir.Value]:
    """In the dense model a block's result stands for the choice."""
    return {gate.result: gate.full for gate in gates}
