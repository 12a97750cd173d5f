from __future__ import annotations

import numpy as np
import pytest

from adaptc.verification.stored_weights import BundleWeights, Floats, Stored

MATRIX = np.arange(24, dtype=np.float32).reshape(8, 3)


def stored(bits: int = 4, values: Floats = MATRIX) -> Stored:
    return Stored(values.shape, bits, lambda: values)


HELD = BundleWeights(
    {
        "a.self_attn.qkv_proj.bias": stored(32, MATRIX[:, 0]),
        "a.mlp.gate_up_proj.weight": stored(),
        "a.skip.cheap.gate_up_proj.weight": stored(),
        "table.0": stored(8, MATRIX[:2]),
        "table.1": stored(4, MATRIX[2:]),
        "table.rows": stored(8),
    }
)
ROWS = {
    "a.self_attn.q_proj.bias": 4,
    "a.self_attn.k_proj.bias": 2,
    "a.self_attn.v_proj.bias": 2,
    "a.mlp.gate_proj.weight": 3,
    "a.mlp.up_proj.weight": 5,
    "a.skip.cheap.gate": 4,
    "a.skip.cheap.up": 4,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.self_attn.q_proj.bias", MATRIX[:4, 0]),
        ("a.self_attn.k_proj.bias", MATRIX[4:6, 0]),
        ("a.self_attn.v_proj.bias", MATRIX[6:, 0]),
        ("a.mlp.gate_proj.weight", MATRIX[:3]),
        ("a.mlp.up_proj.weight", MATRIX[3:]),
        ("a.skip.cheap.gate", MATRIX[:4]),
        ("a.skip.cheap.up", MATRIX[4:]),
        ("table", MATRIX),
    ],
)
def test_joined_and_divided_matrices_are_found_by_their_first_names(name: str, expected: Floats) -> None:
    found = HELD.find(name, ROWS)
    assert found is not None
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.read(), expected)


def test_a_head_and_an_embedding_of_one_name_are_told_apart() -> None:
    [multiplied, looked_up] = (HELD.find("table", {}, looked_up=each) for each in (False, True))
    assert multiplied is not None
    assert looked_up is not None
    assert (multiplied.bits, looked_up.bits) == (4, 8), "a matrix in two pieces is as good as its worse one"


def test_what_is_not_there_is_not_found() -> None:
    assert HELD.find("b.mlp.gate_proj.weight", ROWS) is None
    assert HELD.find("a.mlp.gate_proj.weight", ROWS | {"a.mlp.up_proj.weight": 6}) is None, "the rows do not add up"
