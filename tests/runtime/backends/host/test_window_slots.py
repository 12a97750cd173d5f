"""Caches of layers that attend over a window: whatever happens to a slot, what its next token attends to is there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime.backends.host.kv_slots import KvSlots
from adaptc.runtime.backends.host.prefix_cache import BLOCK, Entry
from adaptc.runtime.bundle.cache_window import LEAST_SLACK, ROLLBACK, CacheWindow
from adaptc.runtime.bundle.manifest import DecoderSpec

MAX_TOKENS = 900
WINDOWS = (CacheWindow((0,), 5, 5 + ROLLBACK + LEAST_SLACK), CacheWindow((2, 3), 40, 40 + ROLLBACK + 128))
SPEC = DecoderSpec(10, MAX_TOKENS, ((1, 2),) * 4, None, (), None, WINDOWS)
BATCH = 3


@dataclass
class Texts:
    """What the runtime does to a cache, with what a cache of all positions would hold beside it."""

    kv: KvSlots = field(default_factory=lambda: KvSlots(SPEC, BATCH, turns=True))
    texts: list[list[float]] = field(default_factory=lambda: [[] for _ in range(BATCH)])
    kept: dict[tuple[float, ...], Entry] = field(default_factory=dict)
    next: float = 0.0

    def new(self, count: int) -> list[float]:
        self.next += count
        return [self.next - index for index in range(count)]

    def write(self, slot: int, values: list[float]) -> None:
        """As a kernel does: values are put behind what a slot holds."""
        start = len(self.texts[slot])
        self.texts[slot] += values
        for (layer, _), array in self.kv.arrays.items():
            window = next((each for each in self.kv.windows if layer in each.window.layers), None)
            stop = start + len(values) if window is None else int(window.lengths[slot]) + 1
            array[slot, :, stop - len(values) : stop] = np.array(values)[None, :, None]

    def read(self, slot: int, count: int) -> None:
        start = len(self.texts[slot])
        count = min(count, MAX_TOKENS - start, self.kv.piece or count)
        if count > 0:
            feeds = self.kv.read(slot, start, count)
            assert feeds["token_positions"].tolist() == [[*range(start, start + count)]]
            self.write(slot, self.new(count))
            for block in range(start // BLOCK, len(self.texts[slot]) // BLOCK):
                self.keep(slot, block)

    def keep(self, slot: int, block: int) -> None:
        key = tuple(self.texts[slot][: (block + 1) * BLOCK])
        entry = self.kv.block(slot, block * BLOCK)
        if key not in self.kept or all(part is not None for part in entry):
            self.kept[key] = entry

    def step(self) -> None:
        count = next((index for index, text in enumerate(self.texts) if not 0 < len(text) < MAX_TOKENS), BATCH)
        if count:
            self.kv.step(np.array([len(text) for text in self.texts[:count]], np.int32))
            for slot in range(count):
                self.write(slot, self.new(1))

    def rewind(self, slot: int, count: int) -> None:
        left = len(self.texts[slot]) - count
        if left > 0:
            self.texts[slot] = self.texts[slot][:left]
            self.kv.set_length(slot, left)

    def move(self, slot: int, to: int) -> None:
        if slot != to and self.texts[slot]:
            self.kv.move(slot, to, len(self.texts[slot]))
            self.texts[to] = [*self.texts[slot]]

    def restart(self, slot: int, of: int) -> None:
        """Begin with what is known of another text."""
        text = [*self.texts[of]]
        for block in range(len(text) // BLOCK):
            self.keep(of, block)
        entries = []
        for end in range(BLOCK, len(text) + 1, BLOCK):
            if (entry := self.kept.get(tuple(text[:end]))) is None:
                break
            entries.append(entry)
        self.texts[slot] = []
        self.kv.set_length(slot, 0)
        count = self.kv.restorable(0, entries)
        if count:
            self.kv.restore(slot, 0, entries[:count])
            self.kv.set_length(slot, count * BLOCK)
            self.texts[slot] = text[: count * BLOCK]

    def check(self) -> None:
        for slot, text in enumerate(self.texts):
            for (layer, kind), array in self.kv.arrays.items():
                window = next((each for each in self.kv.windows if layer in each.window.layers), None)
                first = 0 if window is None else max(0, len(text) - window.window.window)
                base = 0 if window is None else window.base(slot)
                held = array[slot, 0, first - base : len(text) - base, 0]
                assert held.tolist() == text[first:], f"layer {layer}, {kind}, slot {slot}"
            assert all(len(text) - window.base(slot) <= window.window.positions for window in self.kv.windows)
        for key, entry in self.kept.items():
            for part in entry:
                assert part is None or part[0, :, 0].tolist() == [*key[-BLOCK:]]


SLOTS = st.integers(0, BATCH - 1)
OPERATIONS = st.one_of(
    st.tuples(st.just("read"), SLOTS, st.integers(1, 70)),
    st.tuples(st.just("steps"), st.integers(1, 60)),
    st.tuples(st.just("rewind"), SLOTS, st.integers(1, 8)),
    st.tuples(st.just("move"), SLOTS, SLOTS),
    st.tuples(st.just("restart"), SLOTS, SLOTS),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATIONS, min_size=10, max_size=60))
def test_what_is_attended_to_is_there(operations: list[tuple[str, int, int]]) -> None:
    texts = Texts()
    grown = 0
    for name, *values in operations:
        if name == "steps":
            for _ in range(values[0]):
                texts.step()
            grown = 8
        elif name == "rewind":  # no more than was drafted since
            texts.rewind(values[0], min(values[1], grown))
            grown = 0
        else:
            getattr(texts, name)(*values)
            grown = 0
        texts.check()


def test_a_set_back_that_is_too_far() -> None:
    kv = KvSlots(SPEC, 1)
    for start in range(0, 640, 16):
        kv.read(0, start, 16)
    kv.set_length(0, 640 - ROLLBACK + 16)
    with pytest.raises(AssertionError, match="1 tokens are left, and the cache begins at"):
        kv.set_length(0, 1)


def test_sizes() -> None:
    window = CacheWindow((0,), 1024, 1024 + ROLLBACK + 1024)
    assert (window.shift, window.piece) == (512, 513)
    assert [window.gone(tokens) for tokens in (0, 1024, 1599, 1600, 5000)] == [0, 0, 0, 512, 3584]
    assert SPEC.positions == (101, MAX_TOKENS, 232, 232)
    assert SPEC.cache_entries() == 4 * (101 + MAX_TOKENS + 232 + 232)
    assert SPEC.cache_entries(150) == 4 * (101 + 3 * 150)
