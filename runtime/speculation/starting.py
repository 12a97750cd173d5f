"""From a decoder to what drafts and verifies for it, if this machine can."""

from __future__ import annotations

from collections.abc import Callable

from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import DraftDecoder, Verifier
from adaptc.runtime.speculation.budget_drafter import BudgetDrafter
from adaptc.runtime.speculation.guesses import Experience
from adaptc.runtime.speculation.lookup import Lookup, lookup_acceptance
from adaptc.runtime.speculation.model_drafter import DraftSlots, ModelDrafter
from adaptc.runtime.speculation.route_drafter import RouteDrafter, RouteGuesser
from adaptc.runtime.speculation.self_check import self_check
from adaptc.runtime.speculation.speculation import AUTO, OFF, MakeDrafter, Speculation
from adaptc.runtime.speculation.step_costs import StepCosts
from adaptc.runtime.validation import shown

LOOKUP, MODEL, ROUTE, BUDGET = "lookup", "model", "route", "budget"


def speculation_of(
    decoder: BatchDecoder,
    wanted: str | None,
    draft: Callable[[], DraftDecoder | None] = lambda: None,
    cheapest: str | None = None,
) -> Speculation | None:
    """What drafts for a decoder's sequences.

    Args:
        decoder: Just loaded, without sequences.
        wanted: "auto" for what there is, or the name of a drafter; "off" and None for nothing.
        draft: Loads the bundle's smaller model, if it has one; closed with what is returned.
        cheapest: The route of a stitched bundle whose steps cost least.

    Returns:
        None for "off", and for "auto" where nothing can be drafted without changing answers.

    Raises:
        RequestError: a drafter is named, and there is no such one here, or answers would change.
        EngineError: the engine failed.
    """
    if wanted is None or wanted == OFF:
        return None
    if not isinstance(decoder, Verifier) or not decoder.verifiable(RequestOptions(budget=1.0)):
        _refuse(wanted, "this bundle has no graphs that verify drafts; compile it again, for a CPU")
        return None
    found = self_check(decoder, decoder)
    if not found.exact:
        _refuse(
            wanted,
            "this processor rounds steps of several tokens otherwise than those of one, so answers would change; "
            f"{OFF!r} is right",
        )
        return None
    model = draft() if wanted in (AUTO, MODEL) else None
    drafters = _drafters(decoder, decoder, model, cheapest)
    if wanted not in (AUTO, *drafters):
        raise RequestError(f"speculate: {shown(wanted)}; there are: {', '.join((OFF, AUTO, *drafters))}")
    return Speculation(decoder, StepCosts(found.seconds), drafters, found.close, model)


def _drafters(
    decoder: BatchDecoder, verifier: Verifier, model: DraftDecoder | None, cheapest: str | None
) -> dict[str, MakeDrafter]:
    """What there is, the cheapest first."""
    repeated, guessed, routed, skipped = lookup_acceptance(), *(Experience() for _ in range(3))
    drafters: dict[str, MakeDrafter] = {LOOKUP: lambda sequence: Lookup(repeated)}
    if model is not None:
        slots = DraftSlots(range(model.batch))
        drafters[MODEL] = lambda sequence: ModelDrafter(model, slots, guessed)
    if isinstance(verifier, RouteGuesser) and cheapest in decoder.routes and len(decoder.routes) > 1:
        spare = DraftSlots(range(decoder.batch, 2 * decoder.batch))
        drafters[ROUTE] = lambda sequence: RouteDrafter(verifier, sequence, cheapest, spare, routed)
    if decoder.gates is not None:
        drafters[BUDGET] = lambda sequence: BudgetDrafter(verifier, sequence, skipped)
    return drafters


def _refuse(wanted: str, why: str) -> None:
    """Say why nothing is drafted, unless that was left open."""
    if wanted != AUTO:
        raise RequestError(f"speculate: {wanted!r}; {why}")
