"""Weights in a narrower float type, or a refusal that names the weight which it cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.unread.rows import Rows
from adaptc.passes.match import PARTS, rows

_LOST = 0.01
"""Share of a weight's norm that may be lost; rounding to float16's 11 bits costs 0.0002, to bfloat16's 8 bits 0.002."""

_NUMBERS = 1 << 20
"""Numbers that are worked on at a time."""


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

    whole, kind = rows(weight), np.dtype(dtype)
    values: Rows = whole if whole.shape else np.atleast_1d(np.asarray(whole))
    end = float(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]
    largest = max((float(np.abs(part).max(initial=0)) for _, part in _parts(values)), default=0.0)
    if largest > end:
        raise PassError(f"{_name(weight)}: {largest:.4g} is beyond {kind}, which ends at {end:.4g}; {instead} is right")
    result = np.empty(values.shape, kind)
    norm = lost = 0.0
    for span, part in _parts(values):
        result[span] = part.astype(kind)
        wide = part.astype(np.float64)
        norm += float(np.square(wide).sum())
        lost += float(np.square(wide - result[span].astype(np.float64)).sum())
    if lost > _LOST**2 * norm:
        raise PassError(
            f"{_name(weight)}: numbers of {largest:.1e} and less; {kind} rounds {(lost / norm) ** 0.5:.0%} of them "
            f"away; {instead} is right"
        )
    return result.reshape(whole.shape)


def _parts(values: Rows) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Some rows at a time: what is worked on stays small beside a large weight."""
    step = max(1, _NUMBERS // max(1, math.prod(values.shape[1:])))
    for first in range(0, values.shape[0], step):
        span = slice(first, first + step)
        yield span, values[span]


def _name(weight: ir.Value) -> str:
    """The weight's name in the pretrained model, or those of the weights that it was joined from."""
    return weight.metadata_props.get(PARTS, weight.name or "a weight").replace(",", ", ")
