"""Attention of a step: what `attention.cu` is compiled with, and how it is started."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.bundle.gpu_steps.device_step import AttentionLayer

MOST_SPLITS = 32
"""Most blocks that share a row's positions."""

THREADS = 128
"""Threads of a block."""

_EIGHT = 8  # numbers of a head that are read together
_MOST_SHARE = 16
_MOST_NUMBERS = 64  # of a lane, of all heads of a block: it keeps them in registers
_NAMES = ("attend", "write_rotated")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


@dataclass(frozen=True, slots=True)
class Shape:
    """How the kernel is compiled for a layer.

    Attributes:
        width: Numbers of a head.
        share: Lanes that share them.
        group: Query heads of a block.
    """

    width: int
    share: int
    group: int

    @classmethod
    def of(cls, layer: AttentionLayer) -> Shape:
        """The form for a layer."""
        share = _MOST_SHARE
        while layer.width // _EIGHT % share:
            share //= 2
        shared = layer.heads // layer.kv_heads
        most = max(1, _MOST_NUMBERS * share // layer.width)
        groups = -(-shared // most)
        return cls(layer.width, share, -(-shared // groups))

    def blocks(self, layer: AttentionLayer) -> int:
        """Blocks of a row and split."""
        return layer.kv_heads * -(-(layer.heads // layer.kv_heads) // self.group)


@dataclass(frozen=True, slots=True)
class AttentionAddresses:
    """Where an attention reads and writes.

    Attributes:
        fresh: Of query, key and value, float32, the first numbers of each; and numbers from row to row of each.
        rows: As above.
        tables: Of cosine and sine; 0 without rotation.
        cache: Of keys and values, float16[slots, kv_heads, max_tokens, width].
        queries: Scratch for rotated queries, float16[rows, heads, width].
        parts: Scratch of the kernel, float32.
        arrived: Scratch of the kernel, int32, zeros.
        result: Of the result, float16[rows, heads, width].
        positions: int32[rows].
        state: Of the step's state.
    """

    fresh: tuple[int, int, int]
    rows: tuple[int, int, int]
    tables: tuple[int, int]
    cache: tuple[int, int]
    queries: int
    parts: int
    arrived: int
    result: int
    positions: int
    state: int


def attention_source(shape: Shape) -> KernelSource:
    """The source for heads of a width."""
    defines = f"WIDTH={shape.width}", f"SHARE={shape.share}", f"GROUP={shape.group}"
    return read_kernels(("common", "attention"), *defines)


def attention_kernels(cuda: Cuda, layer: AttentionLayer) -> dict[str, Any]:
    """The kernels for a layer, compiled when they are first asked for."""
    return cuda.kernels(attention_source(Shape.of(layer)), _NAMES)


def splits_of(blocks: int, rows: int, multiprocessors: int) -> int:
    """Blocks that share a row's positions."""
    return max(1, min(MOST_SPLITS, 2 * multiprocessors // (blocks * rows)))


def scratch_sizes(layer: AttentionLayer, rows: int, multiprocessors: int) -> tuple[int, int, int]:
    """Bytes of `queries`, `parts` and `arrived` for up to so many rows."""
    blocks = Shape.of(layer).blocks(layer)
    splits = max(splits_of(blocks, count, multiprocessors) * count for count in range(1, rows + 1))
    return 2 * rows * layer.heads * layer.width, 4 * splits * layer.heads * (layer.width + 2), 4 * rows * blocks


def enqueue_attention(
    cuda: Cuda, layer: AttentionLayer, at: AttentionAddresses, rows: int, tokens: int, max_tokens: int, stream: Any
) -> None:
    """Attend in the stream's order, and write the rows' keys and values into the cache.

    Args:
        cuda: The GPU.
        layer: Which attention.
        at: Addresses.
        rows: Tokens of all sequences.
        tokens: Tokens of each.
        max_tokens: Positions of a slot.
        stream: In whose order; it may be capturing.
    """
    shape, kernels = Shape.of(layer), attention_kernels(cuda, layer)
    fresh = [*_pointers(at.fresh), *_ints(at.rows), *_pointers(at.tables), (layer.pairs, _INT)]
    heads = _ints((layer.heads, layer.kv_heads, max_tokens))
    if tokens > 1:
        args = [
            *fresh,
            *_pointers((at.positions, at.state)),
            (tokens, _INT),
            *_pointers((at.queries, *at.cache)),
            *heads,
        ]
        grid: tuple[int, ...] = layer.heads + 2 * layer.kv_heads, rows
        cuda.launch(kernels["write_rotated"], grid, min(THREADS, -(-layer.width // 32) * 32), args, stream, early=True)
    blocks = shape.blocks(layer)
    places = _pointers((at.state, *at.cache, at.result, at.parts, at.arrived, at.positions))
    ends = [(tokens, _INT), *heads, (layer.window, _INT), (layer.scale, _FLOAT), (layer.softcap, _FLOAT)]
    args = [(at.queries if tokens > 1 else 0, _POINTER), *fresh, *places, *ends]
    grid = blocks, splits_of(blocks, rows, cuda.device.multiprocessors), rows
    cuda.launch(kernels["attend"], grid, THREADS, args, stream, early=True)


def _pointers(addresses: Sequence[int]) -> list[tuple[Any, Any]]:
    return [(address, _POINTER) for address in addresses]


def _ints(numbers: Sequence[int]) -> list[tuple[Any, Any]]:
    return [(number, _INT) for number in numbers]
