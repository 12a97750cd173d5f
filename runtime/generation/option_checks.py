"""What a request may ask of a bundle: routes that there are, and a budget where it changes something."""

from __future__ import annotations

from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.validation import shown


class OptionChecks:
    """Checks budgets and routes against a decoder.

    Attributes:
        default: The budget of requests that name none; None for the bundle's own.
    """

    def __init__(self, decoder: BatchDecoder, budget: float | None) -> None:
        """Check the default.

        Args:
            decoder: Says what there is.
            budget: See the attribute.

        Raises:
            RequestError: as `budget`.
        """
        self._routes, self._takes_budget = decoder.routes, decoder.takes_budget
        self.default: float | None = None
        self.default = self.budget(budget)

    def options(self, budget: float | None, route: str | None) -> RequestOptions:
        """The options of a request.

        Raises:
            RequestError: as `budget` and `route`.
        """
        self.route(route)
        return RequestOptions(self.budget(budget), route)

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

    def route(self, route: str | None) -> None:
        """Check a request's route.

        Raises:
            RequestError: there is no such route.
        """
        if route is not None and (not isinstance(route, str) or route not in self._routes):
            there = f"there are: {', '.join(self._routes)}" if self._routes else "this bundle has none"
            raise RequestError(f"route: no route {shown(route)}; {there}")
