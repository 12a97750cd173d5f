"""What a request may ask of a bundle: routes that there are, and a budget where it changes something."""

from __future__ import annotations

from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import LoadTargets
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.speculation.speculation import AUTO, OFF, Speculation
from adaptc.runtime.validation import shown


class OptionChecks:
    """Checks budgets and routes against a decoder.

    Attributes:
        default: The budget of requests that name none; None for the bundle's own.
    """

    def __init__(
        self,
        decoder: BatchDecoder,
        budget: float | None,
        targets: LoadTargets | None = None,
        speculation: Speculation | None = None,
        speculate: str | None = None,
    ) -> None:
        """Check the default.

        Args:
            decoder: Says what there is.
            budget: See the attribute.
            targets: What load may do to budgets; None for nothing.
            speculation: What may draft; None if nothing does.
            speculate: What drafts for requests that say nothing of it; None for nothing.

        Raises:
            RequestError: as `budget`; or there are targets, and the bundle has neither gates nor a router.
        """
        if targets is not None and not decoder.takes_budget:
            raise RequestError(
                "load_targets: this bundle has neither gates nor a router and always runs whole; leave them out"
            )
        self._targets = targets
        self._drafters = None if speculation is None else speculation.drafters
        self._speculate = OFF if speculate is None or speculation is None else speculate
        self._routes, self._takes_budget = decoder.routes, decoder.takes_budget
        self._adapters = decoder.adapters
        self.default: float | None = None
        self.default = self.budget(budget)

    def options(self, budget: float | None, route: str | None, adapter: str | None = None) -> RequestOptions:
        """The options of a request.

        Raises:
            RequestError: as `budget` and `route`; or there is no such adapter.
        """
        self.route(route)
        if adapter is not None and (not isinstance(adapter, str) or adapter not in self._adapters):
            there = f"there are: {', '.join(self._adapters)}" if self._adapters else "this bundle has none"
            raise RequestError(f"adapter: no adapter {shown(adapter)}; {there}")
        return RequestOptions(self.budget(budget), route, adapter=adapter)

    def budget(self, budget: float | None) -> float | None:
        """The budget of a request, the default if it names none.

        Raises:
            RequestError: it is out of range, or the bundle has neither gates nor a router.
        """
        if budget is None:
            return self.default
        value = check_budget(budget)
        if not self._takes_budget:
            raise RequestError("budget: this bundle has neither gates nor a router and always runs whole; leave it out")
        return value

    def floor(self, budget: float | None, least: float | None) -> float:
        """The budget below which load does not lower a request's, 0 to 1.

        Args:
            budget: Its own; None if it names none.
            least: Its `min_budget`; None if it names none.
        """
        if self._targets is None:
            return 1.0
        if least is not None:
            return least
        return self._targets.min_budget if budget is None else 1.0

    def speculate(self, name: str | None) -> str:
        """What drafts for a request, the default if it names nothing.

        Raises:
            RequestError: there is no such drafter.
        """
        if name is None or (name == AUTO and self._drafters is None):
            return self._speculate
        if isinstance(name, str) and name in (OFF, AUTO, *(self._drafters or ())):
            return name
        there = (OFF, AUTO, *(self._drafters or ()))
        hint = "" if self._drafters is not None else "; a session loaded with speculate='auto' has what its bundle has"
        raise RequestError(f"speculate: {shown(name)}; there are: {', '.join(there)}{hint}")

    def route(self, route: str | None) -> None:
        """Check a request's route.

        Raises:
            RequestError: there is no such route.
        """
        if route is not None and (not isinstance(route, str) or route not in self._routes):
            there = f"there are: {', '.join(self._routes)}" if self._routes else "this bundle has none"
            raise RequestError(f"route: no route {shown(route)}; {there}")
