"""Weights in a narrower float type, or a refusal that names the weight which it cannot hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.passes.match import PARTS

_LOST = 0.01
"""Share of a weight's norm that may be lost; rounding to float16's 11 bits costs 0.0002, to bfloat16's 8 bits 0.002."""


def narrowed(weight: ir.Value, dtype: npt.DTypeLike, instead: str) -> npt.NDArray[np.generic]:
    """Return a weight's numbers in a narrower type.

    Args:
        weight: A constant of floats.
        dtype: `float16`, or `bfloat16` of ml_dtypes.
        instead: What would hold the weight, for the message.

    Raises:
        PassError: a number is beyond the type's range, or the weight is so small that the type rounds it away.
    """
    import ml_dtypes

    assert weight.const_value is not None
    values, kind = weight.const_value.numpy(), np.dtype(dtype)
    largest = float(np.abs(values).max(initial=0))
    end = float(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]
    if largest > end:
        raise PassError(f"{_name(weight)}: {largest:.4g} is beyond {kind}, which ends at {end:.4g}; {instead} is right")
    result = values.astype(kind)
    wide = values.astype(np.float64)
    norm, lost = (float(np.linalg.norm(each)) for each in (wide, wide - result.astype(np.float64)))
    if lost > _LOST * norm:
        raise PassError(
            f"{_name(weight)}: numbers of {largest:.1e} and less; {kind} rounds {lost / norm:.0%} of them away; "
            f"{instead} is right"
        )
    return result


def _name(weight: ir.Value) -> str:
    """The weight's name in the pretrained model, or those of the weights that it was joined from."""
    return weight.metadata_props.get(PARTS, weight.name or "a weight").replace(",", ", ")
