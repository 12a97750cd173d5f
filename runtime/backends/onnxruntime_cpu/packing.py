"""Pack the weights of a bundle for ONNX Runtime on this machine; packed.py says what for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from adaptc.runtime.backends.onnxruntime_cpu.engine import onnxruntime, save_packed
from adaptc.runtime.backends.onnxruntime_cpu.packed import PACKED, RECORD, PackedRecord
from adaptc.runtime.bundle.built import add_built
from adaptc.runtime.bundle.files.partials import partial_folder
from adaptc.runtime.bundle.files.replace import write_whole
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.onnx_file import fields
from adaptc.runtime.bundle.reading import read_through
from adaptc.runtime.bundle.strict_json import dumps
from adaptc.runtime.errors import BundleError, EngineError
from adaptc.runtime.progress import SILENT, Progress, counted

_PAGE = 4096  # blocks start on pages, so that each can be mapped


def pack(bundle: Bundle, progress: Progress = SILENT) -> PackedRecord:
    """Pack the weights of all graphs of a bundle, as this machine does.

    Weights that were packed before are replaced; open sessions keep the old ones. During packing the disk holds two
    more copies of the largest graph's weights.

    Args:
        bundle: Compiled for ONNX Runtime.
        progress: Told of each graph.

    Raises:
        BundleError: the bundle is for another engine.
        EngineError: ONNX Runtime is not there or refuses a graph, or the disk is full.
    """
    if bundle.manifest.target.backend != "onnxruntime":
        raise BundleError(f"{bundle.path}: for {bundle.manifest.target.backend}; weights are packed for onnxruntime")
    folder = bundle.path / "graphs"
    names = f"graphs/{PACKED}", f"graphs/{RECORD}"
    graphs: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    try:
        with partial_folder(folder / PACKED) as scratch, (scratch / PACKED).open("x+b") as into:
            progress.stage("pack weights")
            for graph in counted(list(bundle.manifest.graphs.values()), progress):
                file, data = save_packed(bundle.onnx(graph.file), scratch)
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
            add_built(bundle.path, (), without=names)  # until both are there
            (scratch / PACKED).replace(folder / PACKED)
        record = PackedRecord(onnxruntime().__version__, whole.sha256, whole.bytes, graphs)
        write_whole(folder / RECORD, dumps(record, indent=1).encode())
        add_built(bundle.path, names)
    except OSError as error:
        raise EngineError(f"{folder / PACKED}: cannot write: {error.strerror or error}") from error
    return record


def _copied(entry: str, data: Path, into: IO[bytes]) -> str:
    """Copy an entry's blocks to the end of a file; the entry with their new places."""
    key, *blocks = entry.split("|")
    places = [key]
    with data.open("rb") as source:
        for block in blocks:
            offset, size, _ = map(int, block.split(";"))
            source.seek(offset)
            end = into.seek(0, os.SEEK_END)
            start = into.seek(end + -end % _PAGE)
            into.write(source.read(size))
            places.append(f"{start};{size};0")
    return "|".join(places)


def _entries(model: bytes) -> Iterator[str]:
    """The entries of all packed weights in a model that ONNX Runtime saved, also those in branches."""
    for number, graph in fields(memoryview(model)):
        if number == 7:
            yield from _entries_of(graph)


def _entries_of(graph: memoryview) -> Iterator[str]:
    for number, content in fields(graph):
        if number == 5:  # initializer
            for entry in (dict(fields(c)) for n, c in fields(content) if n == 13):
                if bytes(entry[1]).startswith(b"prepacked"):
                    yield bytes(entry[2]).decode()
        elif number == 1:  # node: attribute: graph
            for attribute in (c for n, c in fields(content) if n == 5):
                for branch in (c for n, c in fields(attribute) if n == 6):
                    yield from _entries_of(branch)
