"""Safetensors files are read as the library reads them, and refused where it refuses them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.safetensors_file import read_safetensors


def written(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_file_of_the_library_is_read() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(0)
    kinds = ("float32", "float16", "float64", "int8", "uint8", "int64", "bool")
    given = {f"t.{kind}": (random.standard_normal((3, 5)) * 9).astype(kind) for kind in kinds}
    given |= {
        "one": np.array([7], np.float32),
        "none": np.zeros((0, 4), np.float32),
        "single": np.array(3.5, np.float32),
    }
    metadata, found = read_safetensors(safetensors.save(given, metadata={"a": "b"}))
    assert metadata == {"a": "b"}
    assert set(found) == set(given)
    for name, array in given.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert (found[name] == array).all()


def test_bfloat16_becomes_float32() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    _, found = read_safetensors(written(header, bits.tobytes()))
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [1.0, -2.0, float("inf")]


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x00" * 4, b"\xff" * 30, written(b"{"), written([]), written(b"[" * 100000)),
        *(written({"__metadata__": [1]}), written({"__metadata__": {"a": 1}}), written({"x": 3})),
        written({"x": GOOD}, bytes(7)),
        written({"x": GOOD}, bytes(9)),
        written({"x": GOOD | {"dtype": "F128"}}, bytes(8)),
        written({"x": GOOD | {"dtype": ["F32"]}}, bytes(8)),
        written({"x": GOOD | {"shape": [3]}}, bytes(8)),
        written({"x": GOOD | {"shape": [-1, -2]}}, bytes(8)),
        written({"x": GOOD | {"shape": [True, 2]}}, bytes(8)),
        written({"x": GOOD | {"shape": None}}, bytes(8)),
        written({"x": GOOD | {"data_offsets": [8, 0]}}, bytes(8)),
        written({"x": GOOD | {"data_offsets": [0, 8, 9]}}, bytes(8)),
        written({"x": GOOD, "y": GOOD}, bytes(8)),
        written({"x": GOOD | {"data_offsets": [4, 12]}}, bytes(12)),
    ],
)
def test_damage_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_safetensors(content)
