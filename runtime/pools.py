"""Which of several pools of replicas answers a request: each has the whole of the bundles, or some routes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptc.runtime.errors import RequestError


def check_pools(pools: Mapping[str, Sequence[str]]) -> None:
    """Refuse pools that leave requests without anybody to answer them.

    Args:
        pools: The routes of each, by its name; none for all.

    Raises:
        RequestError: no pool has all routes, or a name cannot be one.
    """
    if not any(not routes for routes in pools.values()):
        raise RequestError("pools: none has all routes; one without a list of routes answers requests that name none")
    for name in pools:
        if not name.isascii() or not name.replace("_", "a").replace("-", "a").isalnum():
            raise RequestError(f"pools: {name!r}; a name of letters, digits, - and _ is needed")


def pool_for(pools: Mapping[str, Sequence[str]], body: Mapping[str, Any]) -> str:
    """The pool that answers a request: one made for its route, else one that has all routes.

    Args:
        pools: As for `check_pools`, which they have passed.
        body: Of the request, as it came; what is wrong with it is for the replica to say.
    """
    route = route_of(body)
    own = next((name for name, routes in pools.items() if route in routes), None) if route else None
    return own or next(name for name, routes in pools.items() if not routes)


def route_of(body: Mapping[str, Any]) -> str | None:
    """The route that a request names, or a policy in its place; None if it names none."""
    controls = body.get("adaptc")
    route = controls.get("route") if isinstance(controls, dict) else None
    if isinstance(route, str):
        return route
    model = body.get("model")
    return (model.partition("@")[2] or None) if isinstance(model, str) else None
