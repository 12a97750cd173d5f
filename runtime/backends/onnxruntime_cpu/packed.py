"""Weights as ONNX Runtime's kernels want them, packed once on disk and mapped by every graph that reads them.

A kernel packs its weight anew for each graph, into memory of its own: two routes of a stitched bundle that end with the
same layers hold these twice. ONNX Runtime can write what was packed beside a graph's weights, and finds it there by a
hash of what it would have packed: it packs when it loads in any case, compares, and keeps the block on disk instead. So
one file serves all graphs of a bundle, a block of it the same memory for all that map it, and a machine that packs
otherwise finds nothing in it and goes on as without:

    graphs/onnxruntime.packed        blocks, each content once, each on a page
    graphs/onnxruntime.json          where they are: `PackedRecord`

The manifest does not list them: they belong to a machine, and a bundle without them is whole.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adaptc.runtime.bundle.folder import Bundle, read_through
from adaptc.runtime.bundle.replace import write_whole
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError, EngineError

PACKED, RECORD = "onnxruntime.packed", "onnxruntime.json"
OUTPUT = "adaptc.packed"
"""What graphs that read the file have as one more output: something must keep the tensor that names the blocks."""

PAGE = 4096


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """What the file of packed weights holds.

    Attributes:
        library: The ONNX Runtime that packed.
        sha256: Of the file.
        bytes: Its size.
        graphs: By sha256 of a graph's file, its blocks as ONNX Runtime writes them: "HASH|OFFSET;BYTES;0".
    """

    library: str
    sha256: str
    bytes: int
    graphs: dict[str, tuple[str, ...]]


def pack(bundle: Bundle, told: Callable[[str], None] = lambda _: None) -> PackedRecord:
    """Pack the weights of all graphs of a bundle, as this machine does.

    What was packed before is replaced; sessions that have it open keep it. Meanwhile the disk holds, beside the bundle,
    the weights of its largest graph twice more.

    Args:
        bundle: Compiled for ONNX Runtime.
        told: Told the name of each graph before it is packed.

    Raises:
        BundleError: the bundle is for another engine.
        EngineError: ONNX Runtime is not there or refuses a graph, or the disk is full.
    """
    from adaptc.runtime.backends.onnxruntime_cpu.engine import onnxruntime, save_packed

    if bundle.manifest.target.backend != "onnxruntime":
        raise BundleError(f"{bundle.path}: for {bundle.manifest.target.backend}; weights are packed for onnxruntime")
    folder = bundle.path / "graphs"
    partial = folder / f".{PACKED}.{secrets.token_hex(4)}.partial"
    graphs: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    try:
        with partial.open("x+b") as into, tempfile.TemporaryDirectory(dir=bundle.path, prefix=".pack.") as made:
            for name, graph in bundle.manifest.graphs.items():
                told(name)
                file, data = save_packed(bundle.path / graph.file, Path(made))
                keys = []
                for entry in _entries(file.read_bytes()):
                    keys.append(entry.partition("|")[0])
                    if keys[-1] not in places:
                        places[keys[-1]] = _copied(entry, data, into)
                graphs[bundle.manifest.files[graph.file].sha256] = tuple(places[key] for key in keys)
                data.unlink(missing_ok=True)  # graphs of small weights alone have none
            into.flush()
            os.fsync(into.fileno())
            into.seek(0)
            whole = read_through(into, None)
        # In this order: a record never names more than the file has.
        (folder / RECORD).unlink(missing_ok=True)
        partial.replace(folder / PACKED)
    except OSError as error:
        raise EngineError(f"{folder / PACKED}: cannot write: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    record = PackedRecord(onnxruntime().__version__, whole.sha256, whole.bytes, graphs)
    write_whole(folder / RECORD, dumps(record, indent=1).encode())
    return record


def packed_record(folder: Path) -> PackedRecord | None:
    """What was packed for the graphs in a folder; None if nothing was.

    Raises:
        BundleError: the record is damaged, or its file is.
    """
    file = folder / RECORD
    if not file.exists():
        return None
    try:
        record = loads(PackedRecord, file.read_bytes())
    except BundleError as error:
        raise BundleError(f"{file}: {error}; adaptc build packs again") from error
    with suppress(OSError):
        if (folder / PACKED).stat().st_size == record.bytes:
            return record
    raise BundleError(f"{folder / PACKED}: not the {record.bytes} bytes that were packed; adaptc build packs again")


def check_packed(folder: Path) -> None:
    """Compare packed weights with their hash, if there are any.

    Raises:
        BundleError: they are damaged.
    """
    record = packed_record(folder)
    if record is None:
        return
    with (folder / PACKED).open("rb") as stream:
        if read_through(stream, None).sha256 != record.sha256:
            raise BundleError(f"{folder / PACKED}: changed since it was written; adaptc build packs again")


def with_packed(file: Path) -> bytes | None:
    """A graph that finds its packed weights: its own content, and an output that names them.

    Args:
        file: The graph's file.

    Returns:
        None where nothing was packed for this graph.

    Raises:
        BundleError: as `packed_record`.
    """
    record = packed_record(file.parent)
    if record is None:
        return None
    content = file.read_bytes()
    entries = record.graphs.get(hashlib.sha256(content).hexdigest())
    if not entries:
        return None
    places = {"location": PACKED, "offset": "0", "length": "1"} | {f"prepacked_{i}": e for i, e in enumerate(entries)}
    data = b"".join(_field(13, _text(1, key) + _text(2, value)) for key, value in places.items())
    # onnx.proto: TensorProto uint8[1], whose data are external; ValueInfoProto; GraphProto; ModelProto.
    tensor = _number(1, 1) + _number(2, 2) + _text(8, OUTPUT) + data + _number(14, 1)
    output = _text(1, OUTPUT) + _field(2, _field(1, _number(1, 2) + _field(2, _field(1, _number(1, 1)))))
    # Two messages one after the other are one message with the fields of both.
    return content + _field(7, _field(5, tensor) + _field(12, output))


def _copied(entry: str, data: Path, into: IO[bytes]) -> str:
    """Copy an entry's blocks; the entry with their new places."""
    key, *blocks = entry.split("|")
    places = [key]
    with data.open("rb") as source:
        for block in blocks:
            offset, size, _ = map(int, block.split(";"))
            source.seek(offset)
            end = into.seek(0, os.SEEK_END)
            start = into.seek(end + -end % PAGE)
            into.write(source.read(size))
            places.append(f"{start};{size};0")
    return "|".join(places)


def _entries(model: bytes) -> Iterator[str]:
    """What was packed for the weights of a model that ONNX Runtime saved, those of branches too."""
    for number, graph in _fields(memoryview(model)):
        if number == 7:
            yield from _entries_of(graph)


def _entries_of(graph: memoryview) -> Iterator[str]:
    for number, content in _fields(graph):
        if number == 5:  # initializer
            for entry in (dict(_fields(c)) for n, c in _fields(content) if n == 13):
                if bytes(entry[1]).startswith(b"prepacked"):
                    yield bytes(entry[2]).decode()
        elif number == 1:  # node: attribute: graph
            for attribute in (c for n, c in _fields(content) if n == 5):
                for branch in (c for n, c in _fields(attribute) if n == 6):
                    yield from _entries_of(branch)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """A protobuf message's fields that have a length, by number."""
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
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _coded(value: int) -> bytes:
    head = b""
    while value > 0x7F:
        head, value = head + bytes([value & 0x7F | 0x80]), value >> 7
    return head + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _coded(field << 3) + _coded(value)


def _field(field: int, content: bytes) -> bytes:
    return _coded(field << 3 | 2) + _coded(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())
