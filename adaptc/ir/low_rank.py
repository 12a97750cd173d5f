"""Adapters that a bundle keeps beside its weights: what each adds to which product, and where these products are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a product x · Wᵀ: (x · Aᵀ) · Bᵀ.

    Attributes:
        module: Name of the layer that it was trained for; parts of a joined layer share one A.
        rank: Rows of A.
        inputs: Its columns.
        outputs: Rows of the B of the layer.
        a: Reads A, float32 [rank, inputs].
        b: Reads B times its scale, float32 [outputs, rank]; of a part of a joined layer, its rows.
    """

    module: str
    rank: int
    inputs: int
    outputs: int
    a: Callable[[], Array]
    b: Callable[[], Array]


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """An adapter that is chosen by request.

    Attributes:
        name: What requests call it.
        origin: Where it came from, as the spec says it.
        changes: By the name of a weight in the graph, what is added to its product.
    """

    name: str
    origin: str
    changes: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        """Its largest rank."""
        return max((change.rank for change in self.changes.values()), default=0)

    @property
    def bytes(self) -> int:
        """Of its matrices in float32; parts of a joined layer share theirs."""
        layers = {change.module: change for change in self.changes.values()}
        return 4 * sum(each.rank * (each.inputs + each.outputs) for each in layers.values())


@dataclass(frozen=True, slots=True)
class AdaptedProduct:
    """A product that adapters add to.

    Attributes:
        x: Name of what is multiplied, float32 [batch, tokens, inputs].
        result: Name of the product with its bias, float32 [batch, tokens, outputs].
        parts: Names of the weights that give its outputs, one after another, and how many each gives.
        inputs: Width of `x`.
    """

    x: str
    result: str
    parts: tuple[tuple[str, int], ...]
    inputs: int
