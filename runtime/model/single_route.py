"""The part of the decoder interface that is the same for every model without routes."""

from __future__ import annotations

from collections.abc import Sequence

from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import Skips, collect_skips
from adaptc.runtime.model.decoder import Ids
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import Choice


class SingleRoute:
    """Base class of decoders of one graph.

    Attributes:
        routes: Empty.
        adapters: Names of the adapters that sequences choose among; empty for most models.
        gates: The graph's skip gates; None if it has none.
    """

    routes: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    gates: SkipGates | None

    @property
    def takes_budget(self) -> bool:
        """See `BatchDecoder.takes_budget`."""
        return self.gates is not None

    def adapter_index(self, options: RequestOptions) -> int:
        """Which of the adapters a request chose, from 1; 0 for none. Sessions check the name before it comes here."""
        return 0 if options.adapter is None else self.adapters.index(options.adapter) + 1

    def route(self, slot: int) -> str | None:
        """See `BatchDecoder.route`."""
        return None

    def reroute(self, slot: int, route: str) -> None:
        """See `BatchDecoder.reroute`; sessions check the route before they come here."""
        raise RequestError(f"route: {route!r} for slot {slot}; this bundle has no routes")

    def explain(self, ids: Ids, budget: float | None, slot: int = 0) -> Choice:
        """See `BatchDecoder.explain`."""
        raise RequestError("route: this bundle has no routes")

    def skips(self, steps: Sequence[bytes], route: str | None = None) -> Skips | None:
        """See `BatchDecoder.skips`."""
        return collect_skips(steps, () if self.gates is None else (self.gates,))
