"""Graphs of a bundle's ONNX files, read without the onnx libraries: to print, to draw, and to find where weights lie.

Nodes and values answer as those of onnx-ir do, as far as printing and drawing ask. Numbers of fields: onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.onnx_file import all_fields, packed_numbers

Field = memoryview | int


class DataType(IntEnum):
    """Kinds of numbers, by ONNX's names."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    UINT4 = 21
    INT4 = 22


_PRINTED = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""Kinds of numbers in constants that may be printed."""


class AttributeType(IntEnum):
    """Kinds of attributes, by ONNX's names."""

    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A constant.

    Attributes:
        name: Its name.
        dtype: Kind of its numbers.
        shape: Its sizes.
        offset: Where it begins in its file of weights; None for a constant within the graph.
        nbytes: Its bytes there; 0 for a constant within the graph.
        content: Its bytes within the graph.
    """

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    offset: int | None
    nbytes: int
    content: bytes

    def numpy(self) -> npt.NDArray[np.generic]:
        """The numbers of a constant within the graph; of the kinds that ours have."""
        return np.frombuffer(self.content, _PRINTED[self.dtype]).reshape(self.shape)


@dataclass(slots=True, eq=False)
class StoredValue:
    """What a node reads or gives; the reader fills it in."""

    name: str
    dtype: DataType | None = None
    shape: tuple[int | str, ...] | None = None
    const_value: StoredTensor | None = None
    made_by: StoredNode | None = None
    readers: list[StoredNode] = field(default_factory=list)

    def is_initializer(self) -> bool:
        """Whether it is a constant of a graph."""
        return self.const_value is not None

    def producer(self) -> StoredNode | None:
        """The node that gives it; None for an input or a constant."""
        return self.made_by

    def consumers(self) -> tuple[StoredNode, ...]:
        """The nodes that read it."""
        return tuple(self.readers)


@dataclass(frozen=True, slots=True)
class StoredAttribute:
    """An attribute of a node."""

    type: AttributeType
    value: Any

    def as_graph(self) -> StoredGraph:
        """The branch that it is."""
        assert isinstance(self.value, StoredGraph)
        return self.value

    def as_int(self) -> int:
        """The number that it is."""
        assert isinstance(self.value, int)
        return self.value


@dataclass(frozen=True, slots=True, eq=False)
class StoredNode:
    """An operation."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[StoredValue | None, ...]
    outputs: tuple[StoredValue, ...]
    attributes: Mapping[str, StoredAttribute]
    metadata_props: Mapping[str, str]
    graph: StoredGraph


@dataclass(frozen=True, slots=True, eq=False)
class StoredGraph:
    """A graph, or a branch of one: its nodes in order, and its values by name."""

    nodes: list[StoredNode]
    inputs: list[StoredValue]
    outputs: list[StoredValue]
    initializers: dict[str, StoredValue]

    def __iter__(self) -> Iterator[StoredNode]:
        return iter(self.nodes)


def read_graph(content: bytes) -> StoredGraph:
    """The graph of an ONNX file.

    Args:
        content: The file.

    Raises:
        ValueError: it is not an ONNX file, or of a kind that adaptc does not write.
    """
    try:
        [graph] = _by_number(memoryview(content))[7]
        return _graph(graph, {})
    except (LookupError, RecursionError, struct.error) as error:
        raise ValueError(f"a message without what it must have: {error}") from error


def _graph(message: Field, outer: Mapping[str, StoredValue]) -> StoredGraph:
    parts = _by_number(message)
    graph = StoredGraph([], [], [], {})
    values: dict[str, StoredValue] = {}
    for each in (*parts.get(11, ()), *parts.get(12, ()), *parts.get(13, ())):
        value = _value(each)
        values.setdefault(value.name, value)
    for each in parts.get(5, ()):
        tensor = _tensor(each)
        value = values.setdefault(tensor.name, StoredValue(tensor.name, tensor.dtype, tensor.shape))
        value.const_value = tensor
        graph.initializers[tensor.name] = value
    graph.inputs.extend(values[_text(_by_number(each)[1][0])] for each in parts.get(11, ()))
    for each in parts.get(1, ()):
        graph.nodes.append(_node(each, graph, values, outer))
    graph.outputs.extend(values[_text(_by_number(each)[1][0])] for each in parts.get(12, ()))
    return graph


def _node(
    message: Field, graph: StoredGraph, values: dict[str, StoredValue], outer: Mapping[str, StoredValue]
) -> StoredNode:
    parts = _by_number(message)
    reads: list[StoredValue | None] = []
    for name in map(_text, parts.get(1, ())):
        value = values.get(name) or outer.get(name)
        if value is None and name:
            raise ValueError(f"a node reads {name!r}, which nothing gives")
        reads.append(value)
    gives = tuple(values.setdefault(name, StoredValue(name)) for name in map(_text, parts.get(2, ())))
    scope = {**outer, **values}
    node = StoredNode(
        name=_text(parts.get(3, (b"",))[0]),
        op_type=_text(parts.get(4, (b"",))[0]),
        domain=_text(parts.get(7, (b"",))[0]),
        inputs=tuple(reads),
        outputs=gives,
        attributes=dict(_attribute(each, scope) for each in parts.get(5, ())),
        metadata_props=dict(map(_entry, parts.get(9, ()))),
        graph=graph,
    )
    for value in gives:
        value.made_by = node
    for read in reads:
        if read is not None:
            read.readers.append(node)
    return node


def _attribute(message: Field, scope: Mapping[str, StoredValue]) -> tuple[str, StoredAttribute]:
    parts = _by_number(message)
    [kind] = parts.get(20, (0,))
    if not isinstance(kind, int) or kind not in set(AttributeType):
        raise ValueError(f"an attribute of kind {kind}")
    type_ = AttributeType(kind)
    value: Any
    if type_ is AttributeType.FLOAT:
        [value] = _floats(parts.get(2, (bytes(4),)))
    elif type_ is AttributeType.INT:
        [value] = _integers(parts.get(3, (0,)))
    elif type_ is AttributeType.STRING:
        value = _text(parts.get(4, (b"",))[0])
    elif type_ is AttributeType.TENSOR:
        value = _tensor(parts[5][0])
    elif type_ is AttributeType.GRAPH:
        value = _graph(parts[6][0], scope)
    elif type_ is AttributeType.FLOATS:
        value = tuple(_floats(parts.get(7, ())))
    elif type_ is AttributeType.INTS:
        value = tuple(_integers(parts.get(8, ())))
    else:
        value = tuple(map(_text, parts.get(9, ())))
    return _text(parts[1][0]), StoredAttribute(type_, value)


def _value(message: Field) -> StoredValue:
    parts = _by_number(message)
    value = StoredValue(_text(parts[1][0]))
    for about in parts.get(2, ()):
        for tensor in _by_number(about).get(1, ()):
            known = _by_number(tensor)
            value.dtype = _data_type(known.get(1, (0,))[0])
            for shape in known.get(2, ()):
                value.shape = tuple(map(_size, _by_number(shape).get(1, ())))
    return value


def _size(message: Field) -> int | str:
    parts = _by_number(message)
    if 1 in parts:
        [size] = _integers(parts[1])
        return size
    return _text(parts[2][0]) if 2 in parts else "None"


def _tensor(message: Field) -> StoredTensor:
    parts = _by_number(message)
    shape, dtype = tuple(_integers(parts.get(1, ()))), _data_type(parts.get(2, (0,))[0])
    place = dict(map(_entry, parts.get(13, ())))
    content = _bytes(parts.get(9, (b"",))[0])
    if 9 not in parts and not place:  # small constants may lie in lists of numbers
        numbers = (*_floats(parts.get(4, ())), *_integers(parts.get(5, ())), *_integers(parts.get(7, ())))
        content = np.array(numbers, _PRINTED.get(dtype, "u1")).tobytes() if dtype in _PRINTED else b""
    offset, nbytes = (int(place.get("offset", 0)), int(place.get("length", 0))) if place else (None, 0)
    return StoredTensor(_text(parts.get(8, (b"",))[0]), dtype, shape, offset, nbytes, content)


def _data_type(number: Field) -> DataType:
    if not isinstance(number, int) or number not in set(DataType):
        raise ValueError(f"numbers of kind {number}")
    return DataType(number)


def _by_number(message: Field) -> dict[int, list[Field]]:
    """The fields of a message by their numbers."""
    found: dict[int, list[Field]] = {}
    for number, content in all_fields(memoryview(_bytes(message))):
        found.setdefault(number, []).append(content)
    return found


def _entry(message: Field) -> tuple[str, str]:
    parts = _by_number(message)
    return _text(parts[1][0]), _text(parts.get(2, (b"",))[0])


def _bytes(content: Field | bytes) -> Any:
    if isinstance(content, int):
        raise ValueError(f"the number {content} where a message would be right")  # noqa: TRY004  (the file is wrong)
    return content


def _text(content: Field | bytes) -> str:
    return bytes(_bytes(content)).decode()


def _integers(parts: Any) -> Iterator[int]:
    """Whole numbers, signed, one in a field or many."""
    for part in parts:
        for number in (part,) if isinstance(part, int) else packed_numbers(part):
            yield number - (1 << 64) if number >> 63 else number


def _floats(parts: Any) -> Iterator[float]:
    """Numbers of four bytes, one in a field or many."""
    for part in parts:
        yield from (value for (value,) in struct.iter_unpack("<f", _bytes(part)))
