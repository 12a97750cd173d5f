"""A decoder cut into its layers, for prompts that a GPU reads by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.device_lowering import PromptLowering
from adaptc.ir.marks import LAYER, path_of
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.onnx_ops import is_skip
from adaptc.passes.device.prompt_graph import PieceWriter
from adaptc.passes.skip_ffn.skips import Skip
from adaptc.runtime.bundle.gpu_steps.device_prompt import VERSION, PromptCall, PromptGraph, PromptPieces, PromptProduct
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepValue
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, LOGITS_FROM

_TABLES = frozenset(("Gather", "GatherBlockQuantized"))


def prompt_layers(graph: ir.Graph, step: DeviceStep) -> PromptLowering:
    """The pieces of a decoder, one a layer, and one each for what stands before and behind its layers.

    Args:
        graph: As `read_atoms` reads it.
        step: Its step; values at both ends and weights are called as there.

    Raises:
        PassError: it cannot be cut so; prompts are then read by the step's own kernels.
    """
    end, ends = _end(graph, step)
    starts = dict(_starts(graph, step))
    needed, same = _needed(graph, end, starts)
    places = _places(needed, starts, same)
    values = dict(starts)  # what pieces give each other
    for node in needed:
        for source in _sources(node, same):
            producer = source.producer()
            if producer in places and places[producer] != places[node]:
                values[source] = source.name or ""
    models: dict[str, ir.Model] = {}
    contents: dict[bytes, str] = {}
    calls, factors = [], dict[str, float]()
    for place in sorted(set(places.values())):
        nodes = [node for node in needed if places.get(node) == place]
        last = place == max(places.values())
        writer = _piece(nodes, values, same, {end: ends} if last else {})
        if not writer.writes:
            continue
        model = writer.model()
        name = contents.setdefault(OnnxGraph(model).bytes(), str(len(contents)))
        models.setdefault(name, model)
        factors |= writer.products
        calls.append(PromptCall(name, tuple(writer.reads), tuple(writer.writes)))
    which = {weight.codes: index for index, weight in enumerate(step.gemms)}
    if missing := set(factors) - set(which):
        raise PassError(f"{', '.join(sorted(missing))}: no product of the step")
    crossing = {name: StepValue(_width(value), "float32") for value, name in values.items() if name != step.source}
    crossing |= {name: step.values[name] for name in ends}
    graphs = {name: model.graph for name, model in models.items()}
    pieces = PromptPieces(
        VERSION,
        {name: PromptGraph("", _specs(graph.inputs), _specs(graph.outputs)) for name, graph in graphs.items()},
        tuple(calls),
        crossing,
        {name: PromptProduct(which[name], factors[name]) for name in sorted(factors)},
        tuple(ends),
    )
    return PromptLowering(pieces, models)


def _end(graph: ir.Graph, step: DeviceStep) -> tuple[ir.Value, dict[str, ir.DataType]]:
    """What the head reads, or the hidden states; and under which of the step's names, in which types."""
    if step.result == HIDDEN:
        return next(value for value in graph.outputs if value.name == HIDDEN), {HIDDEN: ir.DataType.FLOAT}
    slices = [n for n in graph if n.op_type == "Slice" and n.inputs[1] is not None and n.inputs[1].name == LOGITS_FROM]
    written = {name for call in step.head for name in call.writes}
    read = {name for call in step.head for name in call.reads if name in step.values} - written
    if len(slices) != 1 or not read or len({name[1:] for name in read}) != 1:
        raise PassError(f"head: it reads {', '.join(sorted(read)) or 'nothing'}; one value is right")
    kinds = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
    value = slices[0].inputs[0]
    assert value is not None
    return value, {name: kinds[step.values[name].dtype] for name in sorted(read)}


def _starts(graph: ir.Graph, step: DeviceStep) -> Iterator[tuple[ir.Value, str]]:
    """Values that a prompt's layers start from, and what the step calls them."""
    for value in graph.inputs:
        if value.name == HIDDEN:
            yield value, HIDDEN
    given = {step.lookups[call.which].codes: call.writes[0] for call in step.body if call.kind == "lookup"}
    for node in graph:
        table = node.inputs[0].name if node.op_type in _TABLES and node.inputs[0] is not None else None
        if table in given:
            yield node.outputs[0], given[table]


def _needed(
    graph: ir.Graph, end: ir.Value, starts: Mapping[ir.Value, str]
) -> tuple[list[ir.Node], dict[ir.Value, ir.Value]]:
    """The nodes from the starts to the end, in order; and which values are others: a block's stands for its choice."""
    same: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if is_skip(node):
            same[node.outputs[0]] = Skip.of(node).full
        elif node.op_type == "Cast" and node.inputs[0] is not None and not node.inputs[0].is_initializer():
            same[node.outputs[0]] = node.inputs[0]
    same = {value: _resolved(value, same) for value in same}
    depends = set(starts)
    order = [node for node in graph if node.outputs[0] not in same and node.outputs[0] not in starts]
    rows: list[ir.Node] = []
    for node in order:
        shapes_only = node.op_type in ("Shape", "ConstantOfShape")
        if not shapes_only and any(source in depends for source in _sources(node, same)):
            depends |= set(node.outputs)
            rows.append(node)
    wanted = {same.get(end, end)}
    found: set[ir.Node] = set()
    for node in reversed(rows):
        if any(value in wanted for value in node.outputs):
            found.add(node)
            wanted |= set(_sources(node, same))
    if same.get(end, end) not in depends:
        raise PassError(f"{end.name}: it does not depend on {INPUT_IDS}")
    return [node for node in rows if node in found], same


def _resolved(value: ir.Value, same: Mapping[ir.Value, ir.Value]) -> ir.Value:
    while value in same:
        value = same[value]
    return value


def _sources(node: ir.Node, same: Mapping[ir.Value, ir.Value]) -> list[ir.Value]:
    return [same.get(value, value) for value in node.inputs if value is not None]


def _places(
    needed: Sequence[ir.Node], starts: Mapping[ir.Value, str], same: Mapping[ir.Value, ir.Value]
) -> dict[ir.Node, int]:
    """Which piece a node is in: odd numbers are layers, even ones stand between them."""
    stems: set[str] = set()
    places: dict[ir.Node, int] = {}
    layers = [match for node in needed if (match := LAYER.match(path_of(node)))]
    last = max((int(match["index"]) for match in layers), default=-1)
    for node in needed:
        before = max((places.get(source.producer(), 0) for source in _sources(node, same)), default=0)  # type: ignore[arg-type]
        match = LAYER.match(path_of(node))
        if match is not None:
            stems.add(match["stem"])
            places[node] = max(before, 2 * int(match["index"]) + 1)
        else:
            places[node] = before if before % 2 == 0 or before < 2 * last + 1 else before + 1
    if len(stems) != 1:
        raise PassError(f"layers: {', '.join(sorted(stems)) or 'none'}; one row of layers is right")
    return places


def _piece(
    nodes: Sequence[ir.Node],
    values: Mapping[ir.Value, str],
    same: Mapping[ir.Value, ir.Value],
    ends: Mapping[ir.Value, Mapping[str, ir.DataType]],
) -> PieceWriter:
    """A piece that gives others what they read."""
    made = {value for node in nodes for value in node.outputs}
    writer = PieceWriter({value: name for value, name in values.items() if value not in made}, same)
    for node in nodes:
        writer.add(node)
    for value, name in values.items():
        if value in made:
            writer.end(value, name)
    for value, kinds in ends.items():
        for name, kind in kinds.items():
            writer.end(same.get(value, value), name, kind)
    return writer


def _width(value: ir.Value) -> int:
    """Numbers of a row."""
    row = sizes(value)[2:]
    if not all(isinstance(size, int) for size in row):
        raise PassError(f"{value.name}: shape {list(sizes(value))}; rows of a known width are right")
    return prod(int(size) for size in row)


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v.name or "", str(v.dtype.numpy()), sizes(v)) for v in values if v.dtype is not None)
