from __future__ import annotations

import numpy as np
import pytest

from tests.close import ENGINE, assert_close

REFERENCE = np.linspace(-3, 3, 64, dtype=np.float32).reshape(4, 16)


def test_accepts_itself() -> None:
    assert_close(REFERENCE.copy(), REFERENCE)


@pytest.mark.parametrize("factor", [1.01, 0.99, 0.5, 2.0, -1.0, 0.0])
def test_rejects_outputs_that_are_off(factor: float) -> None:
    with pytest.raises(AssertionError):
        assert_close(REFERENCE * factor, REFERENCE, **ENGINE)


def test_rejects_one_wrong_element_another_shape_and_nan() -> None:
    wrong = REFERENCE.copy()
    wrong[2, 3] += 1e-3
    with pytest.raises(AssertionError):
        assert_close(wrong, REFERENCE, **ENGINE)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(REFERENCE[:2], REFERENCE)
    with pytest.raises(AssertionError):
        assert_close(REFERENCE, np.full_like(REFERENCE, np.nan))
