"""What a request may ask of a bundle: routes that there are, and a budget where it changes something."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import LoadTargets
from adaptc.runtime.generation.request import Request
from adaptc.runtime.model.budget import budget_of_loss, check_budget, check_loss, loss_of, share_of
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.speculation.speculation import AUTO, OFF, Speculation
from adaptc.runtime.validation import shown

UNPAID = ("warn", "refuse", "allow")
"""What happens to a budget that skips too little to be worth its gates; the first is the default."""


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """What budgets have to keep.

    Attributes:
        max_loss: For requests that name neither it nor a budget: the most that skipping may be expected to cost, in
            nats a token; None takes the default budget.
        pays_from: Share of all blocks from which skipping is quicker than running without gates, as measured where the
            bundle was compiled; 0 if that is not known.
        unpaid: What happens to a budget that skips less: one of `UNPAID`; None warns once.
    """

    max_loss: float | None = None
    pays_from: float = 0.0
    unpaid: str | None = None


NO_RULES = BudgetRules()


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
        rules: BudgetRules = NO_RULES,
    ) -> None:
        """Check the default.

        Args:
            decoder: Says what there is.
            budget: See the attribute.
            targets: What load may do to budgets; None for nothing.
            speculation: What may draft; None if nothing does.
            speculate: What drafts for requests that say nothing of it; None for nothing.
            rules: What budgets have to keep.

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
        self._gates = None if decoder.routes else decoder.gates
        self._pays_from, self._unpaid, self._warned = rules.pays_from, rules.unpaid or UNPAID[0], False
        if self._unpaid not in UNPAID:
            raise RequestError(f"unpaid: {shown(rules.unpaid)}; there are: {', '.join(UNPAID)}")
        self.default: float | None = None
        self.default = self.budget(budget, rules.max_loss)

    def asked(self, request: Request) -> RequestOptions:
        """The options of a request of one prompt; raises as `options`."""
        adapter = cast("str | None", request.adapter)
        return self.options(request.budget, request.route, adapter, request.max_loss)

    def options(
        self, budget: float | None, route: str | None, adapter: str | None = None, max_loss: float | None = None
    ) -> RequestOptions:
        """The options of a request.

        Raises:
            RequestError: as `budget` and `route`; or there is no such adapter.
        """
        self.route(route)
        if adapter is not None and (not isinstance(adapter, str) or adapter not in self._adapters):
            there = f"there are: {', '.join(self._adapters)}" if self._adapters else "this bundle has none"
            raise RequestError(f"adapter: no adapter {shown(adapter)}; {there}")
        chosen = self.budget(budget, max_loss)
        self._check_pays(chosen)
        return RequestOptions(chosen, route, adapter=adapter)

    def budget(self, budget: float | None, max_loss: float | None = None) -> float | None:
        """The budget of a request, the default if it names none.

        Args:
            budget: The budget that it names.
            max_loss: Or the most that skipping may be expected to cost, nats a token; the cheapest budget that keeps
                it is taken.

        Raises:
            RequestError: it is out of range, or the bundle has neither gates nor a router, or it does not say what
                skipping costs.
        """
        if max_loss is not None:
            return self._budget_of_loss(budget, max_loss)
        if budget is None:
            return self.default
        value = check_budget(budget)
        if not self._takes_budget:
            raise RequestError("budget: this bundle has neither gates nor a router and always runs whole; leave it out")
        return value

    def expected_loss(self, budget: float | None) -> float | None:
        """What skipping is expected to cost with a budget, nats a token; None if the bundle does not say it."""
        if self._gates is None:
            return None
        return loss_of(self._gates, self._gates.budget if budget is None else budget)

    def _budget_of_loss(self, budget: float | None, max_loss: float) -> float:
        loss = check_loss(max_loss)
        if budget is not None:
            raise RequestError("max_loss: it picks the budget, and budget is given too; one of them is right")
        if self._gates is None:
            why = (
                "has routes, of which no loss is known; budget is right"
                if self._routes
                else "has no gates; leave it out"
            )
            raise RequestError(f"max_loss: this bundle {why}")
        if not self._gates.written_loss:
            raise RequestError(
                "max_loss: this bundle's gates do not say what skipping costs where the model writes; "
                "`adaptc train` with chats among calibration.text measures it, and budget is right for these"
            )
        return budget_of_loss(self._gates, loss)

    def _check_pays(self, budget: float | None) -> None:
        """Say once, or refuse, that a budget skips too little to be quicker than no gates at all."""
        gates = self._gates
        if gates is None or self._unpaid == "allow" or (self._warned and self._unpaid == "warn"):
            return
        share = share_of(gates, gates.budget if budget is None else budget)
        if not 0 < share < self._pays_from:
            return
        most = share_of(gates, 0.0)
        right = (
            f"a budget of at most {max(0.0, 1 - self._pays_from / most):.2f}, or 1, is right"
            if most > self._pays_from
            else "1 is right"
        )
        text = (
            f"budget: {1 - share / most:.2f} skips {share:.0%} of blocks, and gates pay from {self._pays_from:.0%} on, "
            f"as measured where this bundle was compiled; {right}"
        )
        if self._unpaid == "refuse":
            raise RequestError(text)
        self._warned = True
        warnings.warn(text, stacklevel=2)

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
