"""switch_adapters: beside each decoder a form in which every sequence has the adapter that its request chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from adaptc.ir.low_rank import AdaptedProduct, KeptAdapter
from adaptc.ir.marks import PATH, marks_of
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.ir.unread.constants import UnreadConstant
from adaptc.passes.adapters.stacks import Stack, stacked
from adaptc.passes.base import Pass
from adaptc.passes.match import initializer
from adaptc.passes.skip_ffn.comparisons import describe
from adaptc.runtime.bundle.adapters import AdaptedGraph, AdapterRecord
from adaptc.runtime.bundle.names import ADAPTER, adapted_graph

SIDE_BY_SIDE = 4
"""About where both forms take the same time for one sequence; of several at once, side by side is quicker."""


@dataclass(frozen=True, slots=True)
class SwitchAdapters(Pass):
    """Add a form of each decoder in which the rows of a step choose among adapters.

    Before:  y = x·Wᵀ, in whatever form W has by now
    After:   the same; and in `GRAPH.adapted`: y = x·Wᵀ + (x·A ⊙ mask[adapter])·B, where A has the columns of all
             adapters side by side, and the mask is one for a row's own; or, of many adapters,
             y = x·Wᵀ + (x·A[adapter])·B[adapter], where A and B of index 0 are zero

    The weights are those of the graph as it was, which steps without adapters run: they cost what they did. Side by
    side all matrices are read once for all rows, and none is copied; gathered, each row copies its own. Where products
    were joined, one A serves all parts, and each changed part has a B. Scales are multiplied into B.

    Needs: ONNX level, after adapter_places and the passes that store weights and the cache, before branch.
    Shapes: adapter int64[batch]; A float32[inputs, ranks], B float32[ranks, outputs], or of [adapters + 1, …] each.
    Cost: the matrices of all adapters in the bundle; a step with an adapter reads those of all side by side, or
          those of its rows, and runs four small nodes or more for each product ([serving.md](serving.md#adapters)).

    Attributes:
        side_by_side: How many times the ranks of one adapter may stand side by side; with more, matrices are gathered.

    Reference: Hu et al. 2021, "LoRA"; Chen et al. 2023, "Punica: Multi-Tenant LoRA Serving", whose batched product by
    gathered matrices the second form is.
    """

    name: ClassVar[str] = "switch_adapters"
    side_by_side: int = SIDE_BY_SIDE

    def apply(self, program: Program) -> Program:
        made: dict[str, AdaptedGraph] = {}
        for name, products in program.adapted_products.items():
            if name in program.adapters:
                continue
            kept = program.kept_adapters[program.model(name)]
            form = adapted(program.graph(name, OnnxGraph), products, kept, self.side_by_side)
            program = program.with_graph(adapted_graph(name), form)
            made[name] = AdaptedGraph(tuple(map(_record, kept)), adapted_graph(name))
        return replace(program, adapters={**program.adapters, **made}) if made else program


def adapted(
    graph: OnnxGraph,
    products: Sequence[AdaptedProduct],
    kept: Sequence[KeptAdapter],
    side_by_side: int = SIDE_BY_SIDE,
) -> OnnxGraph:
    """A fork in which adapters add to products.

    Args:
        graph: It has a value `x` and a value `result` for each of the products.
        products: In any order.
        kept: The adapters, in the order by which the input `adapter` counts them.
        side_by_side: See `SwitchAdapters`.
    """
    fork = graph.fork()
    main = fork.model.graph
    batch = sizes(main.inputs[0])[0]
    chosen = ir.Value(name=ADAPTER, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([batch]))
    main.inputs.append(chosen)
    values = {value.name: value for node in main for value in node.outputs}
    masks = _Masks(main, chosen, len(kept))
    for product in products:
        stack = stacked(product, kept, side_by_side)
        _add(main, values[product.x], values[product.result], stack, chosen, masks)
    return fork


@dataclass(slots=True)
class _Masks:
    """Which columns each row has of matrices that stand side by side, float32 [batch, 1, columns], by their owners."""

    main: ir.Graph
    chosen: ir.Value
    count: int
    made: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)

    def of(self, owners: tuple[int, ...]) -> ir.Value:
        """The mask of columns of these adapters."""
        if owners not in self.made:
            name = f"{ADAPTER}/mask" if not self.made else f"{ADAPTER}/mask_{len(self.made)}"
            table = (np.arange(self.count + 1)[:, None] == np.array(owners)).astype(np.float32)[:, None]
            rows = initializer(self.main, ir.tensor(table, name=f"{name}.table"))
            node = ir.node("Gather", [rows, self.chosen], {"axis": 0}, name=name, metadata_props={PATH: ""})
            describe(node.outputs[0], name, ir.DataType.FLOAT, ir.Shape([*sizes(self.chosen), 1, len(owners)]))
            self.main.insert_before(next(iter(self.main)), node)
            self.made[owners] = node.outputs[0]
        return self.made[owners]


def _add(main: ir.Graph, x: ir.Value, result: ir.Value, stack: Stack, chosen: ir.Value, masks: _Masks) -> None:
    """Add to a product, for all that reads it."""
    producer = result.producer()
    assert producer is not None
    batch, tokens, outputs = sizes(result)
    new = _Nodes(producer)
    if x.dtype != ir.DataType.FLOAT:  # attention's result, where keys and values are kept in half precision
        x = new.call("Cast", "x", sizes(x), x, to=int(ir.DataType.FLOAT))

    def matrix(kind: str, constant: UnreadConstant) -> ir.Value:
        value = initializer(main, constant)
        shape = sizes(value)
        return value if stack.together else new.call("Gather", kind, [batch, *shape[1:]], value, chosen, axis=0)

    low = new.call("MatMul", "low", [batch, tokens, stack.columns], x, matrix("A", stack.a(f"{result.name}.A")))
    if stack.together:
        low = new.call("Mul", "own", sizes(low), low, masks.of(stack.owners()))
    lows: Sequence[ir.Value] = [low]
    if len(stack.groups) > 1:
        lows = new.split(low, [group.columns for group in stack.groups])
    changes = []
    for place, (part, group) in enumerate(zip(lows, stack.groups, strict=True)):
        end = f"_{place}" if place else ""
        b = matrix(f"B{end}", stack.b(f"{result.name}.B{end}", group))
        changes.append(new.call("MatMul", f"change{end}", [batch, tokens, group.outputs], part, b))
    change = changes[0]
    if len(changes) > 1:
        change = new.call("Concat", "changes", [batch, tokens, outputs], *changes, axis=-1)
    total = new.call("Add", "Add", [batch, tokens, outputs], result, change)
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    new.made[-1].replace_input_with(0, result)
    main.insert_after(producer, new.made)
    if total.is_graph_output():
        result.name, total.name = f"{result.name}:before", result.name


class _Nodes:
    """Nodes that are not in a graph yet, under the module path of one that is.

    Attributes:
        made: The nodes, in order.
    """

    def __init__(self, like: ir.Node) -> None:
        self.made: list[ir.Node] = []
        self._stem = f"{like.name}/adapter"
        self._marks = marks_of(like)

    def call(
        self, op_type: str, name: str, shape: Sequence[int | str], *given: ir.Value, **attributes: int
    ) -> ir.Value:
        """A node with one result, float32."""
        node = ir.node(op_type, list(given), attributes, name=f"{self._stem}/{name}", metadata_props=dict(self._marks))
        describe(node.outputs[0], node.name or "", ir.DataType.FLOAT, ir.Shape(shape))
        self.made.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value, widths: Sequence[int]) -> Sequence[ir.Value]:
        """A value cut along its last axis."""
        counts = ir.node("Constant", [], {"value_ints": list(widths)}, name=f"{self._stem}/widths")
        describe(counts.outputs[0], counts.name or "", ir.DataType.INT64, ir.Shape([len(widths)]))
        node = ir.node(
            "Split", [value, counts.outputs[0]], {"axis": -1}, num_outputs=len(widths), name=f"{self._stem}/Split"
        )
        for index, (part, width) in enumerate(zip(node.outputs, widths, strict=True)):
            describe(part, f"{node.name}:{index}", ir.DataType.FLOAT, ir.Shape([*sizes(value)[:-1], width]))
        for each in (counts, node):
            each.metadata_props.update(self._marks)
        self.made += [counts, node]
        return node.outputs


def _record(adapter: KeptAdapter) -> AdapterRecord:
    return AdapterRecord(adapter.name, adapter.origin, adapter.rank, adapter.bytes)
