"""switch_adapters: beside each decoder a form in which every sequence has the adapter that its request chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from adaptc.ir.low_rank import AdaptedProduct, KeptAdapter
from adaptc.ir.marks import HEAD, PATH, in_head, label
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.passes.adapters.stacks import Stack, stacked
from adaptc.passes.base import Pass
from adaptc.passes.match import initializer
from adaptc.runtime.bundle.adapters import AdaptedGraph, AdapterRecord
from adaptc.runtime.bundle.names import ADAPTER, adapted_graph


@dataclass(frozen=True, slots=True)
class SwitchAdapters(Pass):
    """Add a form of each decoder in which the rows of a step choose among adapters.

    Before:  y = x·Wᵀ, in whatever form W has by now
    After:   the same; and in `GRAPH.adapted`: y = x·Wᵀ + (x·A[adapter])·B[adapter], where A and B of index 0 are zero

    The weights are those of the graph as it was, which steps without adapters run: they cost what they did. Where
    products were joined, one A and one B serve all parts: the columns of A stand side by side, and B has zeros where a
    column is not of a part. Adapters of smaller ranks are filled up with zeros, scales are multiplied into B.

    Needs: ONNX level, after adapter_places and the passes that store weights and the cache, before branch.
    Shapes: adapter int64[batch]; A float32[adapters + 1, inputs, rank], B float32[adapters + 1, rank, outputs].
    Cost: the matrices of all adapters; five small nodes for each product, and a step reads the matrices of those
          adapters that its rows have (docs/adapters.md has times).

    Reference: Hu et al. 2021, "LoRA"; Chen et al. 2023, "Punica: Multi-Tenant LoRA Serving", whose batched product
    this is, by gathered matrices.
    """

    name: ClassVar[str] = "switch_adapters"

    def apply(self, program: Program) -> Program:
        made: dict[str, AdaptedGraph] = {}
        for name, products in program.adapted_products.items():
            if name in program.adapters:
                continue
            kept = program.kept_adapters[program.model(name)]
            program = program.with_graph(adapted_graph(name), adapted(program.graph(name, OnnxGraph), products, kept))
            made[name] = AdaptedGraph(tuple(map(_record, kept)), adapted_graph(name))
        return replace(program, adapters={**program.adapters, **made}) if made else program


def adapted(graph: OnnxGraph, products: Sequence[AdaptedProduct], kept: Sequence[KeptAdapter]) -> OnnxGraph:
    """A fork in which adapters add to products.

    Args:
        graph: It has a value `x` and a value `result` for each of the products.
        products: In any order.
        kept: The adapters, in the order by which the input `adapter` counts them.
    """
    fork = graph.fork()
    main = fork.model.graph
    batch = sizes(main.inputs[0])[0]
    chosen = ir.Value(name=ADAPTER, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([batch]))
    main.inputs.append(chosen)
    values = {value.name: value for node in main for value in node.outputs}
    for product in products:
        _add(main, values[product.x], values[product.result], chosen, stacked(product, kept))
    return fork


def _add(main: ir.Graph, x: ir.Value, result: ir.Value, chosen: ir.Value, stack: Stack) -> None:
    """Add to a product, for all that reads it."""
    producer = result.producer()
    assert producer is not None
    stem = f"{producer.name}/adapter"
    batch, tokens, outputs = sizes(result)
    inputs, rank = stack.inputs, stack.rank
    new: list[ir.Node] = []

    def call(op_type: str, name: str, shape: Sequence[int | str], *given: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, list(given), attributes, name=f"{stem}/{name}")
        node.metadata_props[PATH] = label(producer)
        if in_head(producer):
            node.metadata_props[HEAD] = producer.metadata_props[HEAD]
        value = node.outputs[0]
        value.name, value.type, value.shape = node.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        new.append(node)
        return value

    stacks = (initializer(main, constant) for constant in stack.constants(f"{result.name}.adapters"))
    a, b = (
        call("Gather", name, [batch, *shape], constant, chosen, axis=0)
        for name, constant, shape in zip("AB", stacks, ((inputs, rank), (rank, outputs)), strict=True)
    )
    if x.dtype != ir.DataType.FLOAT:  # attention's result, where keys and values are kept in half precision
        x = call("Cast", "x", sizes(x), x, to=int(ir.DataType.FLOAT))
    low = call("MatMul", "low", [batch, tokens, rank], x, a)
    change = call("MatMul", "change", [batch, tokens, outputs], low, b)
    total = call("Add", "Add", [batch, tokens, outputs], result, change)
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    new[-1].replace_input_with(0, result)
    main.insert_after(producer, new)
    if total.is_graph_output():
        result.name, total.name = f"{result.name}:before", result.name


def _record(adapter: KeptAdapter) -> AdapterRecord:
    return AdapterRecord(adapter.name, adapter.origin, adapter.rank, adapter.bytes)
