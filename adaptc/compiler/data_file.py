"""Files of tensors: each content once, in shards, hashed while they are written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import onnx_ir as ir

from adaptc.runtime.bundle.manifest import FileRecord

PAGE = 4096
"""ONNX Runtime maps a tensor from the file, rather than reading it, where it starts on a page."""

SHARD = 2 << 30
"""Bytes of a file, unless one tensor has more: file systems and uploads may end at 4 GiB, and files are hashed side by
side when a bundle is opened."""


class TensorPlace(NamedTuple):
    """Where a tensor lies: the file's name as graphs refer to it, and bytes in it."""

    file: str
    offset: int
    length: int


@dataclass(slots=True)
class _Shard:
    name: str
    stream: IO[bytes]
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def append(self, content: memoryview | bytes, align: int) -> TensorPlace:
        offset = self.size + -self.size % align
        for part in (bytes(offset - self.size), content):
            self.stream.write(part)
            self.digest.update(part)
        self.size = offset + len(content)
        return TensorPlace(self.name, offset, len(content))


@dataclass(slots=True)
class DataFile:
    """A file of tensors, each content held once; a large one is several files.

    Two graphs that use one weight, or an embedding and a head that are one matrix, point at the same bytes. So do the
    forms of a graph for what was trained for its gates, which nothing else shares.

    A tensor that is made when it is asked for is made once: another graph that has the same object gets its place.

    Attributes:
        folder: Where it is written.
        name: The first file's name as graphs refer to it; others have a number, `lm-2.data`.
        most: Bytes of a file, unless one tensor has more; None for one file.
    """

    folder: Path
    name: str
    most: int | None = SHARD
    _shards: list[_Shard] = field(default_factory=list)
    _places: dict[bytes, TensorPlace] = field(default_factory=dict)
    _added: dict[tuple[int, str], tuple[ir.TensorProtocol, TensorPlace]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._next()

    def add(self, tensor: ir.TensorProtocol, own: str = "") -> TensorPlace:
        """Write a tensor, unless its content is there, and return its place.

        Args:
            tensor: It is kept, without the numbers if it makes them when asked, until this file is dropped.
            own: Name of a tensor that shares a place with those of its name only, since its content may be replaced; ""
                shares with all.
        """
        known = self._added.get((id(tensor), own))
        if known is None:
            known = self._added[id(tensor), own] = tensor, self._add(_content(tensor), own)
        return known[1]

    def _add(self, content: memoryview | bytes, own: str) -> TensorPlace:
        digest = hashlib.blake2b(content, digest_size=20, key=hashlib.sha256(own.encode()).digest()).digest()
        if digest not in self._places:
            shard = self._shards[-1]
            if self.most is not None and shard.size and shard.size + PAGE + len(content) > self.most:
                shard = self._next()
            self._places[digest] = shard.append(content, 64 if own else PAGE)
        return self._places[digest]

    def _next(self) -> _Shard:
        path, number = Path(self.name), len(self._shards) + 1
        name = self.name if number == 1 else f"{path.stem}-{number}{path.suffix}"
        self._shards.append(_Shard(name, (self.folder / name).open("wb")))
        return self._shards[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its files so far, in order."""
        return tuple(shard.name for shard in self._shards)

    @property
    def records(self) -> dict[str, FileRecord]:
        """Hash and size of its files as they were written, by name."""
        return {shard.name: FileRecord(shard.digest.hexdigest(), shard.size) for shard in self._shards}

    def close(self) -> None:
        """Write what is left to the files."""
        for shard in self._shards:
            shard.stream.close()


def _content(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """A tensor's bytes, without a copy where its numbers lie in one piece."""
    if tensor.dtype.bitwidth < 8:
        return tensor.tobytes()  # two numbers share a byte
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data if array.dtype.isnative else tensor.tobytes()
