"""What the two levels of a program have in common: FX graphs (meaning, training) and ONNX graphs (target, speed).

Both answer the same four questions, so that one pipeline, one kind of golden test and one oracle serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    Array = npt.NDArray[np.generic]


class Graph(Protocol):
    """What every graph can do."""

    def fork(self) -> Self:
        """An editable copy that shares the weights."""

    def verify(self) -> None:
        """Raise PassError unless the graph is well formed."""

    def text(self) -> str:
        """One operation a line; the same graph always gives the same text."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run plainly and slowly: the oracle that faster forms are held against."""
