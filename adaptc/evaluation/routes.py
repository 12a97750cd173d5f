"""The routes of a stitched bundle, as what measures it needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptc.errors import RequestError
from adaptc.runtime.bundle.folder import Bundle


def route_bytes(bundle: Bundle) -> dict[str, int]:
    """Bytes of weights that a decoded token reads on each route; empty for a bundle without routes."""
    switch = bundle.manifest.switch
    return {} if switch is None else bundle.manifest.route_bytes[switch.gate]


def has_router(bundle: Bundle) -> bool:
    """Whether something picks a route where a request names none."""
    switch = bundle.manifest.switch
    return switch is not None and switch.router is not None


def routes_of(bundle: Bundle, named: Sequence[str] = ()) -> tuple[str, ...]:
    """The routes that are meant: those that are named, or all; none for a bundle without routes.

    Raises:
        RequestError: one is named that is not there.
    """
    available = route_bytes(bundle)
    for name in named:
        if name not in available:
            known = f"there are: {', '.join(available)}" if available else "this bundle has none"
            raise RequestError(f"route: no route {name!r}; {known}")
    return tuple(named or available)


def bytes_per_token(bundle: Bundle, shares: Mapping[str, float]) -> float:
    """Bytes of weights that a decoded token reads, on average.

    Args:
        bundle: An opened bundle.
        shares: By route, the share of tokens that go it; empty for a bundle without routes.

    """
    costs = route_bytes(bundle)
    return sum(costs[name] * share for name, share in shares.items()) or bundle.manifest.bytes_per_token
