"""Weights on disk: one file for a backbone, shared by every graph that reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from adaptc.compiler.data_file import SHARD, DataFile
from adaptc.ir.device_lowering import DeviceLowering
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.onnx_ops import define
from adaptc.ir.weight_names import GATES, is_trained, owner_of
from adaptc.passes.skip_ffn.sides import sides
from adaptc.report.parts import bytes_read, weights_read
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepWeight
from adaptc.runtime.bundle.names import data_file

INLINE_BYTES = 1024
"""Smaller tensors stay in the graph: a page for each would waste more than it shares."""


def write_graph(
    graph: OnnxGraph, files: Mapping[str, DataFile], told: Callable[[ir.TensorProtocol], None] = lambda _: None
) -> bytes:
    """The graph as ONNX, its weights moved to the file of their backbone; "" is for all others.

    Operators of adaptc's that are left bring their definitions, so that any ONNX engine runs the file.

    Args:
        graph: The graph; it stays as it is.
        files: By backbone.
        told: Called with each weight that has its place now.
    """
    clone = graph.fork().model
    define(clone)
    for value in clone.graph.initializers.values():
        tensor = value.const_value
        own = GATES in files and is_trained(value.name or "")
        if tensor is None or (tensor.nbytes <= INLINE_BYTES and not own):
            continue
        data = files[GATES if own else owner_of(value.name or "", files)]
        place = data.add(tensor, (value.name or "") if own else "")
        told(tensor)
        value.const_value = ir.ExternalTensor(
            place.file,
            place.offset,
            place.length,
            tensor.dtype,
            shape=value.shape or ir.Shape([]),
            name=value.name or "",
            base_dir="",
        )
    content: bytes = ir.to_proto(clone).SerializeToString(deterministic=True)
    return content


def read_bytes_per_token(graph: OnnxGraph) -> int:
    """Weight bytes a decode step of one row reads: every constant, but one row of a table that is looked up.

    Where a block may be skipped, the step is one that runs it.
    """
    return sum(size for _, _, size in weights_read(graph))


def skippable_bytes(graph: OnnxGraph) -> list[int]:
    """For each gate, in order, the weight bytes that a step reads less if it skips the block."""
    return [_weights(each.block, graph) - _weights(each.stand_in, graph) for each in sides(graph)]


def _weights(nodes: Iterable[ir.Node], graph: OnnxGraph) -> int:
    """Bytes of the weights that one side of a gate reads."""
    readers = {value: node for node in nodes for value in node.inputs if value is not None}
    constants = [(v.const_value, readers[v]) for v in graph.model.graph.initializers.values() if v in readers]
    return sum(bytes_read(tensor, reader) for tensor, reader in constants if tensor is not None)


def write_graphs(
    graphs: Mapping[str, OnnxGraph],
    folder: Path,
    data_name: str,
    backbones: Collection[str] = (),
    *,
    swappable: bool = True,
) -> dict[str, bytes]:
    """All graphs over one data file in `folder` for each backbone; returns the graphs' bytes by name.

    Args:
        graphs: By name.
        folder: Where data files are written.
        data_name: File of weights that are no backbone's, or of all if there is one backbone.
        backbones: Weights whose names begin with one of these have a file of their own, `BACKBONE.data`.
        swappable: Whether what was trained for gates has a file of its own too, so that it can be replaced.
    """
    with data_files_of(graphs, folder, data_name, backbones, swappable=swappable) as files:
        return {name: write_graph(graph, files) for name, graph in graphs.items()}


@contextmanager
def data_files_of(
    graphs: Mapping[str, OnnxGraph],
    folder: Path,
    data_name: str,
    backbones: Collection[str] = (),
    *,
    swappable: bool = True,
    most: int | None = SHARD,
) -> Iterator[dict[str, DataFile]]:
    """The data files of these graphs, open for writing; arguments as for `write_graphs`, and `most` of `DataFile`."""
    with ExitStack() as stack:
        names = {"": data_name, **{backbone: f"{backbone}.data" for backbone in backbones}}
        files = {backbone: DataFile(folder, name, most) for backbone, name in names.items()}
        weights = [value for graph in graphs.values() for value in graph.model.graph.initializers.values()]
        if swappable and any(is_trained(value.name or "") for value in weights):
            files[GATES] = DataFile(folder, GATES, None)
        for data in files.values():
            stack.callback(data.close)
        yield files


def placed_step(lowering: DeviceLowering, files: Mapping[str, DataFile]) -> DeviceStep:
    """A step that says where its weights lie: in the places that a graph written before has for them."""
    weights = {}
    for name, tensor in lowering.tensors.items():
        own = GATES in files and is_trained(name)
        data = files[GATES if own else owner_of(name, files)]
        place = data.add(tensor, name if own else "")
        shape = tuple(int(str(size)) for size in tensor.shape)
        weights[name] = StepWeight(data_file(place.file), str(tensor.dtype.numpy()), shape, place.offset, place.length)
    return replace(lowering.step, weights=weights)


def data_files(
    graph: OnnxGraph, data_name: str, backbones: Collection[str] = (), *, swappable: bool = True
) -> tuple[str, ...]:
    """Names of the data files that a graph reads, as `write_graphs` writes them; of several shards the first."""
    weights = graph.model.graph.initializers.values()
    own = [value for value in weights if swappable and is_trained(value.name or "")]
    stored = [value for value in weights if value.const_value is not None and value not in own]
    large = [value for value in stored if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES]
    found = {owner_of(value.name or "", backbones) for value in large}
    gates = (GATES,) if own else ()
    return (*(f"{backbone}.data" if backbone else data_name for backbone in sorted(found)), *gates)
