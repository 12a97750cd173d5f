"""What a method makes of a module's pieces, and how codes lie in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line
from adaptc.ir.source_grid import SourceGrid

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a file, not read yet.

    Attributes:
        dtype: As safetensors names it, `I32`.
        shape: Its shape.
        read: Reads it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    def floats(self) -> Floats:
        """Its numbers as float32, of whatever float type it is."""
        values: Floats = self.read().float().numpy()
        return values

    def integers(self) -> npt.NDArray[Any]:
        """Its whole numbers."""
        values: npt.NDArray[Any] = self.read().numpy()
        return values

    def bytes(self) -> Codes:
        """Its bytes, in one row."""
        import torch

        values: Codes = self.read().contiguous().reshape(-1).view(torch.uint8).numpy()
        return values


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """The matrix that a module's pieces stand for, not read yet.

    Attributes:
        shape: Rows and columns.
        dense: Reads it, as float32.
        grid: Reads its codes; None where they lie on no grid. The call may say None too.
    """

    shape: tuple[int, int]
    dense: Callable[[], Floats]
    grid: Callable[[], SourceGrid | None] | None = None


@dataclass(frozen=True, slots=True)
class Method(ABC):
    """How a folder's weights are quantized.

    Attributes:
        origin: The model's name in the spec, for errors.
        name: `quant_method` of its config.
    """

    origin: str
    name: str

    @property
    @abstractmethod
    def leaves(self) -> tuple[str, ...]:
        """Ends of names of the pieces that stand for a module's weight."""

    @abstractmethod
    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """Return what the pieces of a module stand for; None if it is not quantized.

        Args:
            module: Its name, for errors.
            pieces: By the ends of their names.

        Raises:
            LoadError: a piece is missing, or of another form than the config says.
        """

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is worth a warning."""
        return ()

    def fault(self, module: str, what: str) -> LoadError:
        """An error about a module."""
        return LoadError(f"{self.origin}: {module}: {what}")

    def need(self, module: str, pieces: Mapping[str, Piece], *names: str) -> list[Piece]:
        """Return pieces that must be there.

        Raises:
            LoadError: one is missing.
        """
        for name in names:
            if name not in pieces:
                raise self.fault(module, f"no {name}, which weights quantized by {self.name} have; fetch them again")
        return [pieces[name] for name in names]

    def check(self, module: str, name: str, piece: Piece, dtypes: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse a piece of another type or shape.

        Raises:
            LoadError: it is.
        """
        if piece.dtype not in dtypes:
            raise self.fault(module, f"{name} is {piece.dtype}; {' or '.join(dtypes)} is right")
        if piece.shape != tuple(shape):
            raise self.fault(module, f"{name} is {list(piece.shape)}; by its config it should be {list(shape)}")


FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of tensors that are read as they are."""


def whole(origin: str, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number of a quantization config.

    Raises:
        LoadError: it is something else, or missing without a default.
    """
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LoadError(f"{origin}: quantization_config: {key} is {one_line(value)[:40]}; a whole number is right")
    return value


def group_size(origin: str, values: Mapping[str, Any], key: str) -> int:
    """Return how many inputs share a scale, by a quantization config; -1 for all.

    Raises:
        LoadError: it is neither -1 nor a positive number.
    """
    size = whole(origin, values, key, 128)
    if size != -1 and size < 1:
        raise LoadError(f"{origin}: quantization_config: {key} is {size}; -1 or a positive number is right")
    return size


def groups_of(columns: int, size: int) -> tuple[int, int]:
    """Return how many groups a row of columns has, and their size; -1 is a row."""
    size = columns if size == -1 else size
    return -(-columns // size), size


def order_by_group(group_of: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64] | None:
    """Return the order of columns in which each group's stand side by side, `size` of them; None where sizes differ.

    Args:
        group_of: int64 [columns], the group of each.
        size: Columns of a group; the last may have fewer.
    """
    order = np.argsort(group_of, kind="stable")
    return order if np.array_equal(group_of[order], np.arange(len(order)) // size) else None


def unpacked(words: npt.NDArray[np.int32], bits: int) -> Codes:
    """Unpack codes along the last axis: int32 [..., words] -> uint8 [..., words · 32 / bits], lowest bits first."""
    packed = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    if bits == 8:
        return packed
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)
