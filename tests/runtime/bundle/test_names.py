"""Names that say a place are made and read in one module."""

from __future__ import annotations

import pytest

from adaptc.runtime.bundle.names import CACHE_KINDS, CacheTensor, cache_tensor, is_rope_table, past, present, rope_table


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_a_cache_tensor_is_read_as_it_was_named(kind: str) -> None:
    assert cache_tensor(past(11, kind)) == CacheTensor("past", 11, kind)
    assert cache_tensor(present(0, kind)) == CacheTensor("present", 0, kind)


@pytest.mark.parametrize("name", [None, "", "past.1", "past.one.key", "past.1.keys", "a.past.1.key", "new.1.key"])
def test_other_tensors_are_none_of_the_cache(name: str | None) -> None:
    assert cache_tensor(name) is None


def test_rotary_tables_are_told_from_weights() -> None:
    assert is_rope_table(rope_table(0, "cos"))
    assert not is_rope_table("model.layers.0.rope.weight")
    assert not is_rope_table(None)
