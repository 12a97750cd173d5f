"""Weights on disk: one file for a backbone, shared by every graph that reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import onnx_ir as ir

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

PAGE = 4096
"""ONNX Runtime maps a tensor from the file, rather than reading it, where it starts on a page."""


@dataclass(slots=True)
class DataFile:
    """A file of tensors, each content held once.

    Two graphs that use one weight, or an embedding and a head that are one matrix, point at the same bytes. So do the
    forms of a graph for what was trained for its gates, which nothing else shares.

    Attributes:
        name: The file's name as graphs refer to it.
        stream: Where it is written.
        places: (offset, length) by hash of content and, for what is not shared, name.
    """

    name: str
    stream: IO[bytes]
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def add(self, content: bytes, own: str = "") -> tuple[int, int]:
        """Write a tensor's bytes, unless they are there; returns (offset, length).

        Args:
            content: The bytes.
            own: Name of a tensor that shares a place with those of its name only, since its content may be replaced; ""
                shares with all.
        """
        digest = hashlib.blake2b(content, digest_size=20, key=hashlib.sha256(own.encode()).digest()).digest()
        if digest not in self.places:
            offset = self.stream.seek(0, 2)
            offset += -offset % (64 if own else PAGE)
            self.stream.seek(offset)
            self.stream.write(content)
            self.places[digest] = (offset, len(content))
        return self.places[digest]


def write_graph(graph: OnnxGraph, files: Mapping[str, DataFile]) -> bytes:
    """The graph as ONNX, its weights moved to the file of their backbone; "" is for all others.

    Operators of adaptc's that are left bring their definitions, so that any ONNX engine runs the file.
    """
    clone = graph.fork().model
    define(clone)
    for value in clone.graph.initializers.values():
        tensor = value.const_value
        own = GATES in files and is_trained(value.name or "")
        if tensor is None or (tensor.nbytes <= INLINE_BYTES and not own):
            continue
        data = files[GATES if own else owner_of(value.name or "", files)]
        offset, length = data.add(tensor.tobytes(), (value.name or "") if own else "")
        value.const_value = ir.ExternalTensor(
            data.name,
            offset,
            length,
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
) -> Iterator[dict[str, DataFile]]:
    """The data files of these graphs, open for writing; arguments as for `write_graphs`."""
    with ExitStack() as stack:
        files = {
            backbone: DataFile(name, stack.enter_context((folder / name).open("wb")))
            for backbone, name in {"": data_name, **{backbone: f"{backbone}.data" for backbone in backbones}}.items()
        }
        weights = [value for graph in graphs.values() for value in graph.model.graph.initializers.values()]
        if swappable and any(is_trained(value.name or "") for value in weights):
            files[GATES] = DataFile(GATES, stack.enter_context((folder / GATES).open("wb")))
        yield files


def placed_step(lowering: DeviceLowering, files: Mapping[str, DataFile]) -> DeviceStep:
    """A step that says where its weights lie: in the places that a graph written before has for them."""
    weights = {}
    for name, tensor in lowering.tensors.items():
        own = GATES in files and is_trained(name)
        data = files[GATES if own else owner_of(name, files)]
        offset, length = data.add(tensor.tobytes(), name if own else "")
        shape = tuple(int(str(size)) for size in tensor.shape)
        weights[name] = StepWeight(data_file(data.name), str(tensor.dtype.numpy()), shape, offset, length)
    return replace(lowering.step, weights=weights)


def data_files(
    graph: OnnxGraph, data_name: str, backbones: Collection[str] = (), *, swappable: bool = True
) -> tuple[str, ...]:
    """Names of the data files that a graph reads, as `write_graphs` writes them."""
    weights = graph.model.graph.initializers.values()
    own = [value for value in weights if swappable and is_trained(value.name or "")]
    stored = [value for value in weights if value.const_value is not None and value not in own]
    large = [value for value in stored if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES]
    found = {owner_of(value.name or "", backbones) for value in large}
    gates = (GATES,) if own else ()
    return (*(f"{backbone}.data" if backbone else data_name for backbone in sorted(found)), *gates)
