"""What a decode step reads in each part of a graph: its layers, and what stands before and after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from adaptc.ir.marks import path_of
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.passes.quantize.experts import MIXTURES
from adaptc.passes.skip_ffn.sides import sides
from adaptc.report.places import AFTER, BEFORE, KINDS, place_of
from adaptc.report.record import PartRecord, Record
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import is_rope_table

_LOOKUPS = ("Gather", "GatherBlockQuantized")


def parts_of(graph: OnnxGraph) -> tuple[PartRecord, ...]:
    """Weight bytes that a step of one row reads, part by part, when every block runs.

    The bytes of a graph's parts are together its bytes a token: a weight that several parts read counts in the first.
    """
    found: dict[str, dict[str, int]] = {BEFORE: {}}
    main = list(graph.model.graph)
    layers = list(dict.fromkeys(part for part, _ in map(_place, main) if part != BEFORE))
    first = next((index for index, node in enumerate(main) if _place(node)[0] != BEFORE), len(main))
    late = set(main[first:])
    for name, reader, size in weights_read(graph):
        part, kind = place_of(path_of(reader), name, head=reader in late)
        into = found.setdefault(part, {})
        into[kind] = into.get(kind, 0) + size
    layers += [part for part in found if part not in (BEFORE, AFTER, *layers)]
    order = [part for part in (BEFORE, *layers, AFTER) if found.get(part)]
    several = len({part.rpartition(" ")[0] for part in layers}) > 1
    named = {part: part if several or part in (BEFORE, AFTER) else part.rpartition(" ")[2] for part in order}
    return tuple(PartRecord(named[part], _ordered(found[part])) for part in order)


def _place(node: ir.Node) -> tuple[str, str]:
    return place_of(path_of(node))


def with_parts(bundle: Bundle, record: Record) -> Record:
    """A record that says what each layer reads, of a bundle of an earlier version too."""
    if record.parts:
        return record
    forms = bundle.manifest.forms
    files = {name: graph.file for name, graph in bundle.manifest.graphs.items() if name not in forms}
    parts = {name: parts_of(OnnxGraph(ir.load(bundle.onnx(file)))) for name, file in files.items()}
    return replace(record, parts=parts)


def weights_read(graph: OnnxGraph) -> Iterator[tuple[str, ir.Node, int]]:
    """Every constant that a decode step of one row reads, but one row of a table that is looked up.

    Of a mixture's matrices it reads those of the experts that a token goes to. Where a block may be skipped, the step
    is one that runs it.

    Yields:
        The constant's name, the first node that reads it, and the bytes; a table that is looked up and read whole, as
        an embedding that is the head too, comes twice.
    """
    instead = {node for each in sides(graph) for node in each.stand_in}
    for value in graph.model.graph.initializers.values():
        name, tensor = value.name or "", value.const_value
        readers = [use.node for use in value.uses() if use.node not in instead]
        if tensor is None or not readers:
            continue
        lookups = [node for node in readers if node.op_type in _LOOKUPS or is_rope_table(name)]
        whole = [node for node in readers if node not in lookups]
        if lookups:
            yield name, lookups[0], tensor.nbytes // (fixed(value) or (1,))[0]
        if whole:
            yield name, whole[0], bytes_read(tensor, whole[0])


def bytes_read(tensor: ir.TensorProtocol, reader: ir.Node) -> int:
    """Bytes of a constant that a step of one row reads: of a mixture's, the chosen experts' alone."""
    while reader.op_type == "Cast" and (uses := list(reader.outputs[0].uses())):
        reader = uses[0].node
    chosen = reader.attributes.get_int("k", 0) if reader.op_type in MIXTURES else 0
    experts = tensor.shape[0] if chosen else None
    return tensor.nbytes * chosen // experts if isinstance(experts, int) else tensor.nbytes


def _ordered(sizes: dict[str, int]) -> dict[str, int]:
    return {kind: sizes[kind] for kind in KINDS if sizes.get(kind)}
