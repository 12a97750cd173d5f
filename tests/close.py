"""The one closeness helper; `test_close.py` is its negative control."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating]

FLOAT32 = {"rtol": 1.3e-6, "atol": 1e-5}
"""torch.testing's tolerances for float32: same operations in the same order."""

ENGINE = {"rtol": 1e-4, "atol": 1e-4}
"""Other kernels, other order of sums: 3e-5 was the largest seen over all families and passes, logits of size 1."""

HALF = {"rtol": 0.0, "atol": 4e-3}
"""Products of matrices in float16, logits scaled to 1: 3.5e-3 was the largest seen over all families (gemma)."""


def assert_close(
    actual: Numbers, expected: Numbers, rtol: float = FLOAT32["rtol"], atol: float = FLOAT32["atol"]
) -> None:
    """Fail unless every element agrees within atol + rtol · |expected|, and both are finite and of one shape."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
