"""The wire format of protocol buffers, as far as packed weights need it: fields that have a length, and numbers.

ONNX Runtime finds packed weights only by entries in the ONNX file (packed.py), and the runtime may not depend on onnx.
Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have a length: (field number, content)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            _, at = _varint(message, at)
            continue
        if size is None:
            size, at = _varint(message, at)
            yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


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
