"""Weights as ONNX Runtime's kernels want them, packed once on disk and mapped by every graph that reads them.

A kernel packs its weight anew for each graph, into private memory: two routes of a stitched bundle that end with the
same layers hold these twice. ONNX Runtime can write packed weights beside a graph, and finds them by a hash: on loading
it packs in any case, compares, and keeps the block on disk in place of its own. So one file serves all graphs of a
bundle, and all that map a block share its memory. A machine that packs in another way finds no block and goes on
without:

    graphs/onnxruntime.packed        blocks, each content once, each on a page
    graphs/onnxruntime.json          where they are: `PackedRecord`

The manifest does not list them: they belong to a machine, and a bundle without them is whole. `built.json` does
(bundle/built.py).

ONNX Runtime reads the places of blocks only from entries of the ONNX file, so `with_packed` appends such entries to the
file's bytes (bundle/onnx_file.py). `SessionOptions.add_external_initializers` and `add_initializer` cannot replace
that: they give a session unpacked weights, which its kernels pack into private memory again. Measured with onnxruntime
1.32 on 256 MiB of float32 weights in MatMul nodes: 267 MiB of private memory with either of them, 257 without, 1 with
the packed file; loading took 1.1, 0.8, 0.5 and 0.6 s.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adaptc.runtime.bundle.built import built_files, check_built
from adaptc.runtime.bundle.onnx_file import bytes_field, number_field, text_field
from adaptc.runtime.bundle.reading import read_checked
from adaptc.runtime.bundle.strict_json import loads
from adaptc.runtime.errors import BundleError

PACKED, RECORD = "onnxruntime.packed", "onnxruntime.json"
OUTPUT = "adaptc.packed"
"""One more output of graphs that read the file: a graph keeps a tensor only if something uses it."""


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """What the file of packed weights contains.

    Attributes:
        library: Version of the ONNX Runtime that packed.
        sha256: Hash of the file.
        bytes: Size of the file.
        graphs: Blocks of each graph by the sha256 of its ONNX file, as ONNX Runtime writes them: "HASH|OFFSET;BYTES;0".
    """

    library: str
    sha256: str
    bytes: int
    graphs: dict[str, tuple[str, ...]]


def packed_record(folder: Path) -> PackedRecord | None:
    """The record of what was packed for the graphs in a folder of a bundle; None if nothing was packed.

    Raises:
        BundleError: the record is damaged, or its file is.
    """
    bundle = folder.parent
    built = built_files(bundle)
    packed, about = built.get(f"{folder.name}/{PACKED}"), built.get(f"{folder.name}/{RECORD}")
    if packed is None or about is None:
        return None
    try:
        content = read_checked(bundle, f"{folder.name}/{RECORD}", about, verify=True)
    except BundleError as error:
        raise BundleError(f"{folder / RECORD}: changed since it was written; adaptc build packs again") from error
    try:
        record = loads(PackedRecord, content)
    except BundleError as error:
        raise BundleError(f"{folder / RECORD}: {error}; adaptc build packs again") from error
    with suppress(OSError):
        if (folder / PACKED).stat().st_size == record.bytes == packed.bytes:
            return record
    raise BundleError(f"{folder / PACKED}: not the {record.bytes} bytes that were packed; adaptc build packs again")


def check_packed(folder: Path) -> None:
    """Compare packed weights with their hash, if there are any.

    Raises:
        BundleError: they are damaged.
    """
    if packed_record(folder) is None:
        return
    try:
        check_built(folder.parent, f"{folder.name}/{PACKED}")
    except BundleError as error:
        raise BundleError(f"{folder / PACKED}: changed since it was written; adaptc build packs again") from error


def with_packed(file: Path) -> bytes | None:
    """The content of a graph that finds its packed weights, by a tensor that names them.

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
    data = b"".join(bytes_field(13, text_field(1, key) + text_field(2, value)) for key, value in places.items())
    # onnx.proto: TensorProto uint8[1] with external data; ValueInfoProto of the same type; GraphProto; ModelProto.
    tensor = number_field(1, 1) + number_field(2, 2) + text_field(8, OUTPUT) + data + number_field(14, 1)
    shape = bytes_field(2, bytes_field(1, number_field(1, 1)))
    output = text_field(1, OUTPUT) + bytes_field(2, bytes_field(1, number_field(1, 2) + shape))
    # Two messages one after the other are one message with the fields of both.
    return content + bytes_field(7, bytes_field(5, tensor) + bytes_field(12, output))
