"""A decoder with one way through: what it says of routes, and of the gates of its one graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import Skips, together
from adaptc.runtime.model.router import Choice


class OneWay:
    """The part of `rows.Rows` that is the same for every decoder without routes.

    Attributes:
        routes: Empty.
        gates: What decides which of its blocks run; None if it has no gates.
    """

    routes: tuple[str, ...] = ()
    gates: SkipGates | None

    def route(self, row: int) -> str | None:
        """None: there is one way through."""
        return None

    def reroute(self, row: int, route: str) -> None:
        """Never asked for."""
        raise RequestError(f"route: {route!r} for row {row}; this bundle has no routes")

    def explain(self, ids: npt.NDArray[np.int64], budget: float | None) -> Choice:
        """See `Rows.explain`: there are no routes."""
        raise RequestError("route: this bundle has no routes")

    def skips(self, steps: Sequence[bytes], route: str | None = None) -> Skips | None:
        """See `Rows.skips`."""
        return together(steps, () if self.gates is None else (self.gates,))
