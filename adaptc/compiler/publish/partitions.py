"""Partitions in a bundle: their graphs, and where each weight lies in the data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from adaptc.compiler.data_file import PAGE
from adaptc.ir.partitions import Split
from adaptc.passes.targets.piece import specs
from adaptc.runtime.bundle.partitions import VERSION, PartitionGraph, Partitions, WeightRecord


def partition_files(name: str, split: Split, written: bytes, data: Path, into: str) -> dict[str, bytes]:
    """A graph's partitions as files of a bundle.

    Args:
        name: Name of the whole graph.
        split: Its pieces.
        written: The whole graph as ONNX, which says where large weights lie.
        data: The file they lie in; small ones are added at its end.
        into: That file's name in the bundle.
    """
    graphs = {
        label: PartitionGraph(
            file=f"partitions/{name}-{label}.onnx",
            inputs=specs(graph.model.graph.inputs),
            outputs=specs(graph.model.graph.outputs),
            weights=_weight_bytes(split, label),
            gemm=label in split.gemms,
        )
        for label, graph in split.graphs.items()
    }
    weights = _weights(split, written, data)
    half = next(spec.dtype for graph in graphs.values() for spec in graph.inputs if "kv_bucket" in spec.shape[1:])
    partitions = Partitions(VERSION, graphs, split.steps, split.whole, weights, into, half)
    files = {
        graphs[label].file: ir.to_proto(graph.model).SerializeToString(deterministic=True)
        for label, graph in split.graphs.items()
    }
    return files | {f"partitions/{name}.json": partitions.to_json().encode()}


def partition_report(partitions: Partitions) -> dict[str, Any]:
    """For the manifest's report: how often each graph is called, and the bytes of weights a call reads."""
    calls = [call.graph for call in partitions.calls()]
    return {name: {"calls": calls.count(name), "bytes": graph.weights} for name, graph in partitions.graphs.items()}


def _weight_bytes(split: Split, label: str) -> int:
    """Bytes of weights that one call of a graph reads, but for tables that are looked up."""
    call = next(
        call for call in (*(call for step in split.steps for call in step.calls()), split.whole) if call.graph == label
    )
    tables = {
        name
        for node in split.graphs[label].model.graph
        if node.op_type == "Gather"
        for value, name in zip(split.graphs[label].model.graph.inputs, call.reads, strict=True)
        if value is node.inputs[0]
    }
    return sum(split.weights[name].nbytes for name in set(call.reads) - tables if name in split.weights)


def _weights(split: Split, written: bytes, data: Path) -> dict[str, WeightRecord]:
    """Where each weight lies."""
    places: dict[str, tuple[int, int]] = {}
    for tensor in onnx.load_model_from_string(written).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            places[tensor.name] = int(entries["offset"]), int(entries["length"])
    with data.open("r+b") as stream:
        for name, weight in split.weights.items():
            if name not in places:
                offset = stream.seek(0, 2)
                offset += -offset % (PAGE // 16)
                stream.seek(offset)
                places[name] = offset, stream.write(weight.tobytes())
    return {
        name: WeightRecord(str(weight.dtype.numpy()), tuple(int(str(size)) for size in weight.shape), *places[name])
        for name, weight in split.weights.items()
    }
