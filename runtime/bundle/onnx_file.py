"""ONNX files as bytes: the wire format of protocol buffers, as far as it is needed without the onnx library.

ONNX Runtime finds packed weights only by entries in the file (backends/onnxruntime_cpu/packed.py), and what else a file
has an engine read must be known before an engine sees it; the runtime may not depend on onnx.
Format: https://protobuf.dev/programming-guides/encoding/; numbers of fields: onnx.proto.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "place"},
}
"""Which parts of a message may hold a tensor, by the number of the field."""


def external_files(content: bytes) -> set[str]:
    """Locations of the external data of all tensors in an ONNX file, relative to its folder.

    Raises:
        ValueError: it is not an ONNX file.
    """
    keys = [match.start() for match in re.finditer(b"location", content)]  # parts without the word are passed over
    found: set[str] = set()
    waiting = [("model", 0, len(content))]
    while waiting:
        kind, start, end = waiting.pop()
        spans = [*_spans(content, start, end)]
        if kind == "place":
            texts = [(number, content[first:last]) for number, first, last in spans]
            if (1, b"location") in texts:
                found.update(text.decode() for number, text in texts if number == 2)
            continue
        parts = _PARTS[kind]
        for number, first, last in spans:
            if number in parts and bisect_left(keys, first) < bisect_left(keys, last):
                waiting.append((parts[number], first, last))
    return found


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have a length: (field number, content).

    Raises:
        ValueError: it is cut short.
    """
    for number, start, end in _spans(message, 0, len(message)):
        yield number, message[start:end]


def all_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Every field of a message: (field number, its content or, of a number, the number from 0 as it is stored).

    Raises:
        ValueError: it is cut short.
    """
    for number, kind, start, end in _stored(message, 0, len(message)):
        yield number, _varint(message, start, end)[0] if kind == _NUMBER else message[start:end]


def packed_numbers(message: memoryview) -> Iterator[int]:
    """The numbers of a list that is stored as one field.

    Raises:
        ValueError: it is cut short.
    """
    at = 0
    while at < len(message):
        value, at = _varint(message, at, len(message))
        yield value


def _spans(data: bytes | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message in `data[at:end]` that have a length: (field number, start, end)."""
    for number, kind, first, last in _stored(data, at, end):
        if kind == _LENGTH:
            yield number, first, last


_NUMBER, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
"""Kinds of fields."""


def _stored(data: bytes | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in `data[at:end]`: (field number, kind, start, end)."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _NUMBER:
            last = _varint(data, at, end)[1]
        elif kind == _LENGTH:
            size, at = _varint(data, at, end)
            last = at + size
        elif kind in (_EIGHT, _FOUR):
            last = at + (8 if kind == _EIGHT else 4)
        else:
            raise ValueError(f"a field of kind {kind}")
        if last > end:
            raise ValueError("cut short")
        yield tag >> 3, kind, at, last
        at = last


def _varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("cut short")


def _coded(value: int) -> bytes:
    """A number from 0, seven bits a byte."""
    head = b""
    while value > 0x7F:
        head, value = head + bytes([value & 0x7F | 0x80]), value >> 7
    return head + bytes([value])


def number_field(field: int, value: int) -> bytes:
    """A field with a number from 0."""
    return _coded(field << 3) + _coded(value)


def bytes_field(field: int, content: bytes) -> bytes:
    """A field with bytes, or with a message."""
    return _coded(field << 3 | 2) + _coded(len(content)) + content


def text_field(field: int, value: str) -> bytes:
    """A field with a text."""
    return bytes_field(field, value.encode())
