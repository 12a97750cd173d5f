"""Read a GGUF file: metadata at once, tensors on request, every fault as one line.

The `gguf` package's own reader builds a numpy array for each string, which costs five seconds for
a 50,000-token vocabulary; this one reads the same header in a tenth of a second and checks every
length against the size of the file. The weights themselves are dequantized by `gguf`.
"""

from __future__ import annotations

import functools
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MAGIC = b"GGUF"
_ROW = 4096  # weights, see `_long_row`
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # where the file states none
# Value types of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4
_MAX_BYTES = 1 << 28  # of one value of the header
_MAX_ITEMS = 1 << 24  # of an array; the largest so far is a vocabulary of 262,144


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's place in the file.

    Attributes:
        name: Name as the file spells it, e.g. `blk.0.attn_q.weight`.
        shape: Shape in torch's order, slowest dimension first.
        kind: Number of the ggml type (0 is float32, 3 is Q4_1, …).
        start: First byte, from the start of the file.
        bytes: How many bytes it takes; 0 for a tensor that the file leaves out, whose values are zero.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)  # `read_gguf` gives one for a file, by which others keep what they made
class GgufFile:
    """A GGUF file's metadata and table of tensors; no weight is read yet."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a metadata value of type `kind`, or `default` if the file has none.

        Raises:
            LoadError: the value is there but of another type.
        """
        value = self.metadata.get(key, default)
        # A bool is an int to Python, but never what a width or a token id should be.
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise LoadError(f"{self.path}: {key}: expected {kind.__name__}, got {_short(value)}; the file is damaged")
        return value

    def need(self, key: str, kind: type) -> Any:
        """Return a metadata value that must be there.

        Raises:
            LoadError: it is missing or of another type.
        """
        if key not in self.metadata:
            raise LoadError(f"{self.path}: no {key} in the metadata; a GGUF language model has it")
        return self.get(key, kind)

    def read(self, tensor: GgufTensor) -> npt.NDArray[np.float32]:
        """Read one tensor, dequantized.

        Returns:
            float32 array of `tensor.shape`; for float32 tensors a read-only view of the file.

        Raises:
            LoadError: the file cannot be read, or its type cannot be dequantized here.
        """
        import gguf
        import numpy as np

        if not tensor.bytes:
            return np.zeros(tensor.shape, np.float32)
        try:
            raw = np.memmap(self.path, np.uint8, "r", tensor.start, (tensor.bytes,))
            rows = raw.reshape(-1, _long_row(tensor))
            with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for NaN
                values = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.kind))
        except (OSError, ValueError, NotImplementedError) as error:
            raise LoadError(f"{self.path}: tensor {tensor.name} cannot be read: {error}") from error
        floats: npt.NDArray[np.float32] = values.astype(np.float32, copy=False)
        return floats.reshape(tensor.shape)


def _long_row(tensor: GgufTensor) -> int:
    """Bytes of a row as long as is quick: the library takes 16 rows at a time, and where rows end decides nothing."""
    import gguf

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    blocks = tensor.bytes // size
    count = next(count for count in range(max(1, _ROW // weights), 0, -1) if blocks % count == 0)
    return int(size * count)


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Args:
        path: A little-endian GGUF file of version 2 or 3, in one piece.

    Returns:
        Metadata and the table of tensors, checked against the size of the file.

    Raises:
        LoadError: not a GGUF file, damaged, cut short, one part of several, or of another version.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # a header of 50,000 tokens takes 0.2 s, and a compile asks for it several times
def _read(path: Path, size: int, changed: int) -> GgufFile:
    import mmap

    try:
        with path.open("rb") as file:
            if size < 24:
                raise LoadError(f"{path}: only {size} bytes long; a GGUF file starts with a header of 24")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(path, data, size).read()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}") from error


class _Header:
    """A cursor over the header; every step checks what it reads."""

    __slots__ = ("at", "data", "path", "size")

    def __init__(self, path: Path, data: Any, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def read(self) -> GgufFile:
        if self.take(4) != _MAGIC:
            raise LoadError(f"{self.path}: not a GGUF file: it does not start with the bytes 'GGUF'")
        (version,) = self.unpack("I")
        if version not in _VERSIONS:
            raise LoadError(f"{self.path}: GGUF version {version}; adaptc reads versions 2 and 3, little-endian")
        tensor_count, key_count = self.unpack("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string()
            if key in metadata:
                raise LoadError(f"{self.path}: the key {key[:100]!r} stands twice in the header; the file is damaged")
            metadata[key] = self.value(*self.unpack("I"))
        if metadata.get("split.count", 1) not in (0, 1):
            raise LoadError(f"{self.path}: one part of several; join them first with llama-gguf-split --merge")
        table = [self.entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise LoadError(f"{self.path}: general.alignment is {_short(alignment)}; the file is damaged")
        data_start = -(-self.at // alignment) * alignment
        placed = [self.place(*entry, data_start) for entry in table]
        places = {tensor.name: tensor for tensor in placed}
        if len(places) < len(table):
            twice = next(name for name, count in Counter(name for name, *_ in table).items() if count > 1)
            raise LoadError(f"{self.path}: two tensors are named {twice[:100]!r}; the file is damaged")
        self.check_order(placed, data_start, alignment)
        return GgufFile(self.path, metadata, places)

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count > _MAX_BYTES and end <= self.size:
            raise LoadError(f"{self.path}: a value of {count:,} bytes in the header; the file is damaged")
        if end > self.size:
            raise LoadError(
                f"{self.path}: cut short or damaged: its header asks for byte {end:,} of {self.size:,}; "
                "fetch the file again"
            )
        piece: bytes = self.data[self.at : end]
        self.at = end
        return piece

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def string(self) -> str:
        (count,) = self.unpack("Q")
        try:
            return self.take(count).decode()
        except UnicodeDecodeError as error:
            raise LoadError(f"{self.path}: a name or value in the header is not UTF-8; the file is damaged") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise LoadError(f"{self.path}: a value of unknown type {kind} in the header; the file is damaged")
        item, count = self.unpack("IQ")
        if count > _MAX_ITEMS:
            raise LoadError(f"{self.path}: an array of {count:,} values in the header; the file is damaged")
        if item in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[item])
            return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.take(count * width)))
        if item != _STRING:
            raise LoadError(f"{self.path}: an array of unknown type {item} in the header; the file is damaged")
        return [self.string() for _ in range(count)]

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (dimensions,) = self.unpack("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise LoadError(f"{self.path}: tensor {name} has {dimensions} dimensions; the file is damaged")
        shape = self.unpack(f"{dimensions}Q")
        if not all(shape):
            raise LoadError(f"{self.path}: tensor {name} {list(shape)} is empty; the file is damaged")
        kind, offset = self.unpack("IQ")
        return name, tuple(reversed(shape)), kind, offset

    def place(self, name: str, shape: tuple[int, ...], kind: int, offset: int, data_start: int) -> GgufTensor:
        import gguf

        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise LoadError(
                f"{self.path}: tensor {name} is of ggml type {kind}, which the installed gguf does not know"
            ) from error
        if shape[-1] % block:
            raise LoadError(f"{self.path}: tensor {name} {list(shape)} is not whole blocks of {block}; damaged")
        count = prod(shape) // block * block_bytes
        end = data_start + offset + count
        if end > self.size:
            raise LoadError(
                f"{self.path}: cut short: tensor {name} ends at byte {end:,}, the file has {self.size:,}; "
                "fetch the file again"
            )
        return GgufTensor(name, shape, kind, data_start + offset, count)

    def check_order(self, placed: Sequence[GgufTensor], data_start: int, alignment: int) -> None:
        """Refuse what llama.cpp refuses: a tensor that does not start where the one before it, padded, ends."""
        expected = data_start
        for tensor in placed:
            if tensor.start != expected:
                raise LoadError(
                    f"{self.path}: tensor {tensor.name} starts at byte {tensor.start:,}; {expected:,}, where the one "
                    "before it ends, is right; the file is damaged"
                )
            expected += -(-tensor.bytes // alignment) * alignment


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
