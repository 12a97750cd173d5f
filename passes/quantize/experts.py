"""A mixture of experts as one node of ONNX Runtime's, which reads the matrices of the experts that a row chose.

QMoE multiplies by blocks of 4 or 8 bits with MatMulNBits' own kernels, MoE by floats. Both would choose experts
themselves. They are given a table [rows, experts] of what the router decided instead, zero for all others: its k
largest numbers are the experts that were chosen, whatever the router did to choose them.

On two cores a step of one row takes what a dense block of the chosen experts' size takes; other forms take more
(docs/results/experts.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.blocks import LEAST_BLOCK, Bits, Blocks
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import fixed
from adaptc.ir.onnx_ops import is_experts
from adaptc.ir.unread.rows import Rows
from adaptc.passes.emit import FLOAT, Emitter
from adaptc.passes.match import initializer, projections, rows
from adaptc.passes.quantize.blockwise import concatenate, quantize_blocks
from adaptc.passes.quantize.linears import mixtures_of, tensor_of
from adaptc.passes.spool import Spool

MIXTURES = ("QMoE", "MoE")
"""ONNX Runtime's mixtures of experts, whose constants are [experts, …]."""


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How the matrices of a block's experts are stored: one block size for both, as QMoE has.

    Attributes:
        block_size: Columns that share a scale.
        padding: Inner neurons that are added to each expert, of weights 0, so that blocks fill its rows.
        symmetric: Whether gate and up do without zero points; down always does.
    """

    block_size: int
    padding: int
    symmetric: bool


def expert_form(width: int, inner: int, block_size: int) -> ExpertForm:
    """How experts of these sizes are stored.

    Args:
        width: Width of a state.
        inner: Inner neurons of an expert.
        block_size: Columns that would share a scale; fewer do if no such blocks fill a row.

    Raises:
        PassError: no block fills a row of `width` columns.
    """
    padding = -inner % LEAST_BLOCK
    while block_size > LEAST_BLOCK and (width % block_size or (inner + padding) % block_size):
        block_size //= 2
    if width % block_size:
        raise PassError(f"experts over {width} columns: a multiple of {LEAST_BLOCK} is right, or weights: fp32")
    # With one block to a row, QMoE wants zero points in another layout.
    return ExpertForm(block_size, padding, symmetric=width == block_size)


def expert_forms(graph: FxGraph, block_size: int) -> dict[str, tuple[int, bool]]:
    """Block size of the weights of experts in a graph, and whether they do without zero points, by name.

    Raises:
        PassError: as in `expert_form`.
    """
    forms: dict[str, tuple[int, bool]] = {}
    for gate_up, down in mixtures_of(graph).values():
        _, width, inner = tensor_of(graph.module, down).shape
        form = expert_form(width, inner, block_size)
        forms |= {gate_up: (form.block_size, form.symmetric), down: (form.block_size, True)}
    return forms


def routers(graph: ir.Graph) -> set[ir.Value]:
    """Weights of the projections by which experts are chosen: they stay floats, as a choice has no small error."""
    found = {projection.matmul.outputs[0]: projection.weight for projection in projections(graph)}
    weights: set[ir.Value] = set()
    waiting = [value for node in graph if is_experts(node) for value in node.inputs[1:3]]
    while waiting:
        value = waiting.pop()
        if value in found:
            weights.add(found[value])
        elif value is not None and (producer := value.producer()) is not None:
            waiting += producer.inputs
    return weights


def quantized_experts(
    graph: ir.Graph, node: ir.Node, bits: Bits, block_size: int, known: Mapping[str, Blocks], spool: Spool
) -> None:
    """Put a QMoE in the place of an Experts node.

    Args:
        graph: The graph that has it.
        node: The node.
        bits: Bits of a code.
        block_size: Columns that share a scale, as far as the experts' sizes allow.
        known: Codes that were chosen before, by the weights' names.
        spool: Gets the codes.

    Raises:
        PassError: a weight holds NaN or infinity, or experts are of an odd width.
    """
    _, _, _, gate_up, down = _inputs(node)
    experts, width, inner = fixed(down)
    try:
        form = expert_form(width, inner, block_size)
        blocks = [
            _blocks(gate_up, form, bits, known, symmetric=form.symmetric),
            _blocks(down, form, bits, known, symmetric=True),
        ]
    except PassError as error:
        raise PassError(f"{label(node)}: {error}") from error
    blocks[0] = _interleaved(blocks[0], experts, form.padding)
    new = Emitter(graph, node)
    table = _table(new, node, experts)
    first, second = (
        _constants(graph, value.name or "", each, experts, spool)
        for value, each in zip((gate_up, down), blocks, strict=True)
    )
    inputs: list[ir.Value | None] = [node.inputs[0], table, *first[:2], None, *second[:2], None]
    inputs += [None, None, None, first[2], second[2], None, table]
    options = {"expert_weight_bits": bits, "block_size": form.block_size, "accuracy_level": 4, "weights_prepacked": 0}
    _replace(graph, node, "QMoE", inputs, options)


def float_experts(graph: ir.Graph, node: ir.Node) -> None:
    """Put a MoE over floats in the place of an Experts node."""
    _, _, weights, gate_up, down = _inputs(node)
    experts, _, _ = fixed(down)
    new = Emitter(graph, node)
    # The operator makes probabilities of what it is given, and shares of those of the experts it takes.
    table = new.call("Log", _table(new, node, experts))
    last = new.constant([-1])
    whole = new.call("ReduceSum", weights, last, keepdims=1)
    interleaved = initializer(graph, _interleaved_rows(gate_up))
    mixed = _replace(graph, node, "MoE", [node.inputs[0], table, interleaved, None, down], {})
    after = mixed.outputs[0]
    scaled = ir.node("Mul", [after, whole], name=f"{mixed.name}/Mul", metadata_props={PATH: label(mixed)})
    result = scaled.outputs[0]
    result.type, result.shape = after.type, after.shape
    graph.insert_after(mixed, scaled)
    after.replace_all_uses_with(result, replace_graph_outputs=True)
    scaled.replace_input_with(0, after)
    after.name, result.name = f"{mixed.name}/mixed", after.name


def _inputs(node: ir.Node) -> Sequence[ir.Value]:
    values = [value for value in node.inputs if value is not None]
    if not all(value.is_initializer() for value in values[3:]):
        raise PassError(f"{label(node)}: experts whose matrices are computed; weights of the model are right")
    return values


def _table(new: Emitter, node: ir.Node, experts: int) -> ir.Value:
    """What each row's token gives to each expert: float32 [rows, experts], zero for those that it did not choose."""
    _, chosen, weights, _, _ = _inputs(node)
    k = _chosen(node)
    routed = f"{label(node)}.rows"  # where rows skip blocks, each block has a number of them of its own
    ids, shares = (new.reshape(value, [-1, k], [routed, k]) for value in (chosen, weights))
    rows = new.call("Shape", ids, dtype=ir.DataType.INT64, shape=[1], start=0, end=1)
    sizes = new.call("Concat", rows, new.constant([experts]), shape=[2], axis=0)
    zeros = new.call("ConstantOfShape", sizes, dtype=FLOAT, shape=[routed, experts])
    return new.call("ScatterElements", zeros, ids, shares, shape=[routed, experts], axis=1)


def _chosen(node: ir.Node) -> int:
    """How many experts a token goes to."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    if shape is None or not isinstance(shape[-1], int):
        raise PassError(f"{label(node)}: the number of experts of a token must be known when compiling")
    return shape[-1]


def _replace(
    graph: ir.Graph, node: ir.Node, operator: str, inputs: Sequence[ir.Value | None], options: dict[str, Any]
) -> ir.Node:
    """Put one of ONNX Runtime's mixtures in the place of ours; both compute silu(gate) · up of interleaved rows."""
    mixed = ir.node(
        operator,
        inputs,
        {
            "k": _chosen(node),
            "activation_type": "swiglu",
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "swiglu_fusion": 1,
            "normalize_routing_weights": int(operator == "MoE"),
            **options,
        },
        domain="com.microsoft",
        name=f"{label(node)}/{operator}",
        metadata_props=dict(node.metadata_props),
    )
    old, result = node.outputs[0], mixed.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph.insert_before(node, mixed)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name, result.name = f"{old.name}:before", old.name
    return mixed


def _blocks(value: ir.Value, form: ExpertForm, bits: Bits, known: Mapping[str, Blocks], *, symmetric: bool) -> Blocks:
    """The matrices of all experts, one below the other, as codes."""
    chosen = known.get(value.name or "")
    if chosen is not None and (chosen.bits, chosen.block_size) == (bits, form.block_size):
        return chosen
    return expert_blocks(rows(value), form, bits, symmetric=symmetric)


def expert_blocks(matrices: Rows, form: ExpertForm, bits: Bits, *, symmetric: bool) -> Blocks:
    """Round the matrices of all experts, each block for the least squared error.

    Args:
        matrices: float32 [experts, rows, columns], gate and up or down.
        form: How they are stored.
        bits: 4 or 8.
        symmetric: Do without zero points.

    Raises:
        PassError: a value is not finite.
    """
    each = (matrices[expert : expert + 1][0] for expert in range(matrices.shape[0]))
    parts = [quantize_blocks(matrix, bits, form.block_size, symmetric=symmetric) for matrix in each]
    return concatenate(parts)


def _interleaved(blocks: Blocks, experts: int, padding: int) -> Blocks:
    """Gate and up of all experts with their rows in turns, as the kernel wants them, and rows of 0 after each."""

    def turned(rows: np.ndarray) -> np.ndarray:
        halves = rows.reshape(experts, 2, -1, *rows.shape[1:])
        ends = [(0, 0)] * halves.ndim
        ends[2] = (0, padding)
        mixed = np.pad(halves, ends).swapaxes(1, 2)
        return np.ascontiguousarray(mixed.reshape(-1, *rows.shape[1:]))

    zeros = None if blocks.zero_points is None else turned(blocks.zero_points)
    return replace(blocks, packed=turned(blocks.packed), scales=turned(blocks.scales), zero_points=zeros)


def _interleaved_rows(value: ir.Value) -> ir.LazyTensor:
    """Gate and up of all experts with their rows in turns, put together when asked for."""
    experts, rows, width = fixed(value)
    name, tensor = f"{value.name}.interleaved", value.const_value
    assert tensor is not None

    def turn() -> ir.TensorProtocol:
        halves = tensor.numpy().reshape(experts, 2, rows // 2, width)
        return ir.tensor(np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(experts, rows, width), name=name)

    return ir.LazyTensor(turn, dtype=tensor.dtype, shape=ir.Shape([experts, rows, width]), name=name)


def _constants(graph: ir.Graph, name: str, blocks: Blocks, experts: int, spool: Spool) -> list[ir.Value | None]:
    """Codes, scales and zero points as initializers, [experts, rows, …]."""
    given: dict[str, np.ndarray | None] = {"codes": blocks.packed, "scales": blocks.scales, "zeros": blocks.zero_points}
    return [
        None if numbers is None else _constant(graph, f"{name}.{kind}", numbers, experts, spool)
        for kind, numbers in given.items()
    ]


def _constant(graph: ir.Graph, name: str, numbers: np.ndarray, experts: int, spool: Spool) -> ir.Value:
    return initializer(graph, spool.constant(numbers.reshape(experts, len(numbers) // experts, -1), name))
