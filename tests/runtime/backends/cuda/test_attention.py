"""Attention of a step against NumPy, with a warp's own code, and the compiler's word that it is CUDA C."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime.backends.cuda.driver.nvrtc import cubin
from adaptc.runtime.backends.cuda.kernels.attention import (
    AttentionAddresses,
    Shape,
    attention_source,
    enqueue_attention,
    scratch_sizes,
    splits_of,
)
from adaptc.runtime.bundle.gpu_steps.device_step import AttentionLayer
from tests.fakes.cuda import FakeCuda
from tests.fakes.warp_cuda import WarpCuda

MAX = 160
PLAIN = AttentionLayer(0, 4, 2, 16, 0.25, 0.0, 0, "", "", 0, False)
UNITS = replace(FakeCuda().device, multiprocessors=64)


@dataclass(frozen=True, slots=True)
class Case:
    """A step's attention: `positions` of its rows; rows of one sequence if `tokens` is not 1."""

    layer: AttentionLayer
    positions: tuple[int, ...]
    tokens: int = 1
    written: int | None = None  # sequences that are; None for all


def layer_of(heads: int, kv_heads: int, width: int, **others: Any) -> AttentionLayer:
    return replace(PLAIN, heads=heads, kv_heads=kv_heads, width=width, scale=width**-0.5, pairs=width // 2, **others)


CASES = {
    "narrow": Case(layer_of(4, 2, 16), (0, 5, 70)),
    "wide": Case(layer_of(2, 1, 256), (40, 3)),
    "odd": Case(layer_of(2, 2, 40), (130,)),
    "many heads share a key": Case(layer_of(16, 1, 128), (33,)),
    "three share a key": Case(layer_of(9, 3, 64), (100, 7)),
    "window": Case(layer_of(4, 2, 64, window=9), (3, 8, 100)),
    "cap": Case(layer_of(2, 1, 64, softcap=2.0), (20,)),
    "half of a head is rotated": Case(replace(layer_of(2, 1, 64), pairs=16), (20, 21)),
    "nothing is rotated": Case(replace(layer_of(2, 1, 64), pairs=0), (20,)),
    "side by side": Case(layer_of(4, 2, 32, packed=True), (12, 50)),
    "a prompt": Case(layer_of(4, 2, 32), tuple(range(7)), tokens=7),
    "a prompt goes on": Case(layer_of(4, 2, 32, window=10), tuple(range(61, 70)), tokens=9),
    "rows that are not written": Case(layer_of(4, 2, 32), (12, 50, 9), written=2),
    "the last position": Case(layer_of(2, 1, 16), (MAX - 1,)),
}


class Given:
    """What a case reads, and where its result lies."""

    def __init__(self, case: Case) -> None:
        self.case, layer, count = case, case.layer, len(case.positions)
        random = np.random.default_rng(layer.width + count)
        self.slots = count // case.tokens
        shapes = [(count, heads, layer.width) for heads in (layer.heads, layer.kv_heads, layer.kv_heads)]
        self.fresh = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.packed = np.concatenate([each.reshape(count, -1) for each in self.fresh], axis=1)
        cache = (self.slots, layer.kv_heads, MAX, layer.width)
        self.keys, self.values = (random.standard_normal(cache).astype(np.float16) for _ in range(2))
        angles = np.arange(MAX)[:, None] / 10.0 ** (np.arange(layer.pairs) / max(layer.pairs, 1) * 3)
        self.cosine, self.sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.result = np.full((count, layer.heads, layer.width), np.nan, np.float16)

    def enqueue(self, cuda: FakeCuda) -> None:
        """What the step does."""
        layer, count = self.case.layer, len(self.case.positions)
        sizes = scratch_sizes(layer, count, cuda.device.multiprocessors)
        queries, parts = (np.full(size, 0xFF, np.uint8) for size in sizes[:2])
        arrived, positions = np.zeros(sizes[2], np.uint8), np.array(self.case.positions, np.int32)
        written = self.slots if self.case.written is None else self.case.written
        state = np.array([written, 0, 0, 0], np.int32)
        kv = layer.kv_heads * layer.width
        places: tuple[int, ...] = tuple(each.ctypes.data for each in self.fresh)
        rows = layer.heads * layer.width, kv, kv
        if layer.packed:
            start = self.packed.ctypes.data
            places, rows = (start, start + 4 * rows[0], start + 4 * (rows[0] + kv)), (self.packed.shape[1],) * 3
        at = AttentionAddresses(
            places,  # type: ignore[arg-type]
            rows,
            (self.cosine.ctypes.data, self.sine.ctypes.data),
            (self.keys.ctypes.data, self.values.ctypes.data),
            queries.ctypes.data,
            parts.ctypes.data,
            arrived.ctypes.data,
            self.result.ctypes.data,
            positions.ctypes.data,
            state.ctypes.data,
        )
        enqueue_attention(cuda, layer, at, count, self.case.tokens, MAX, cuda.stream())
        assert not arrived.any(), "the next attention finds zeros"

    def rotated(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Each pair of a head turned by its angle at the row's position."""
        pairs, positions = self.case.layer.pairs, list(self.case.positions)
        cosine, sine = (table[positions][:, None].astype(np.float64) for table in (self.cosine, self.sine))
        low, high, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return np.concatenate([low * cosine - high * sine, high * cosine + low * sine, rest], axis=-1)

    def written(self) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
        """The cache after the step."""
        keys, values, fresh = self.keys.copy(), self.values.copy(), self.rotated(self.fresh[1])
        for row, position in enumerate(self.case.positions):
            slot = row // self.case.tokens
            if self.case.written is None or slot < self.case.written:
                keys[slot, :, position] = fresh[row]
                values[slot, :, position] = self.fresh[2][row]
        return keys, values

    def expected(self) -> npt.NDArray[np.float64]:
        """Attention as it is defined; of a row that is not written, over its own entry too."""
        layer, queries = self.case.layer, self.rotated(self.fresh[0])
        keys, values = replace_written(self)
        result = np.zeros(queries.shape)
        for row, position in enumerate(self.case.positions):
            slot, first = row // self.case.tokens, max(0, position + 1 - layer.window) if layer.window else 0
            for head in range(layer.heads):
                kv = head // (layer.heads // layer.kv_heads)
                scores = keys[slot, kv, first : position + 1].astype(np.float64) @ queries[row, head] * layer.scale
                if layer.softcap:
                    scores = layer.softcap * np.tanh(scores / layer.softcap)
                weights = np.exp(scores - scores.max())
                result[row, head] = weights / weights.sum() @ values[slot, kv, first : position + 1].astype(np.float64)
        return result


def replace_written(given: Given) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """The cache as it would be were all rows written."""
    whole = Given(replace(given.case, written=None))
    return whole.written()


@pytest.mark.parametrize("kind", [WarpCuda, FakeCuda])
@pytest.mark.parametrize("name", CASES)
def test_it_is_attention(name: str, kind: type[FakeCuda]) -> None:
    given = Given(CASES[name])
    right, (keys, values) = given.expected(), given.written()
    given.enqueue(kind())
    np.testing.assert_allclose(given.result, right, atol=4e-3)
    np.testing.assert_allclose(given.keys.astype(np.float32), keys.astype(np.float32), atol=2e-3)
    np.testing.assert_array_equal(given.values, values)


@pytest.mark.parametrize("name", ["narrow", "wide", "odd", "window", "cap", "a prompt goes on"])
def test_blocks_that_share_positions_give_the_same(name: str) -> None:
    given = Given(CASES[name])
    layer, cuda = CASES[name].layer, WarpCuda(UNITS)
    blocks = Shape.of(layer).blocks(layer)
    assert splits_of(blocks, len(CASES[name].positions), 64) > 3
    right = given.expected()
    given.enqueue(cuda)
    np.testing.assert_allclose(given.result, right, atol=4e-3)


@pytest.mark.parametrize(("sm", "width"), [(80, 64), (90, 256), (120, 40)])
def test_nvrtc_compiles_it(sm: int, width: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(attention_source(Shape.of(layer_of(8, 2, width))), sm).startswith(b"\x7fELF")


@pytest.mark.parametrize("width", [8, 16, 24, 40, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("heads", [1, 3, 7, 8, 16])
def test_a_shape_covers_every_head_once(width: int, heads: int) -> None:
    layer = layer_of(heads * 2, 2, width)
    shape = Shape.of(layer)
    assert width % (8 * shape.share) == 0
    per_key = shape.blocks(layer) // 2
    assert (per_key - 1) * shape.group < heads <= per_key * shape.group
    assert shape.group * width // shape.share <= max(64, width // shape.share)


def test_scratch_is_enough_for_fewer_rows_too() -> None:
    layer = layer_of(8, 2, 64)
    most = scratch_sizes(layer, 64, 132)
    for rows in range(1, 65):
        assert all(one <= other for one, other in zip(scratch_sizes(layer, rows, 132), most, strict=True))
