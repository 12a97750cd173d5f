"""Which routes are worth having: those that no cheaper one outdoes."""

from __future__ import annotations

from collections.abc import Mapping


def withheld(costs: Mapping[str, float], kl: Mapping[str, float]) -> dict[str, str]:
    """Return the routes that a cheaper one is at least as good as, each with the reason.

    Args:
        costs: By route; any unit.
        kl: KL(teacher || route) on held-out text, nats a token, of the routes where it was measured.
    """
    reasons: dict[str, str] = {}
    dearest = max(costs, key=lambda route: costs[route])
    for route in kl:
        better = [other for other in kl if costs[other] < costs[route] and kl[other] <= kl[route]]
        if better and route != dearest:
            best = min(better, key=lambda other: kl[other])
            reasons[route] = f"'{best}' is cheaper and nearer to the teacher: KL {kl[best]:.3f} against {kl[route]:.3f}"
    return reasons
