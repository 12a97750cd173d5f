"""The application in front of replicas: the same paths, checks of keys, errors and log as a server of its own has."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from adaptc.runtime.server.app import routes_of
from adaptc.runtime.server.endpoints import about
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.front import Front
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.scaling.dispatch import Dispatcher
from adaptc.runtime.server.serving.entrance import Entrance
from adaptc.runtime.server.serving.models import Models
from adaptc.runtime.server.serving.settings import Settings


def entrance_application(settings: Settings, dispatcher: Dispatcher) -> ASGIApp:
    """The entrance as an ASGI application.

    Args:
        settings: Who may ask, and the limits of bodies and times.
        dispatcher: Hands over what the replicas answer.
    """
    settings = replace(settings, ui=False)  # the page shows one server
    parts = ServerParts(settings, Models(()), Entrance(settings.max_queue))
    parts.metrics.read(
        "adaptc:replica_requests_total",
        "Requests by pool and outcome; one that was asked again counts as retried, each time.",
        lambda: [(labels, float(count)) for labels, count in dispatcher.counts.items()],
        "counter",
        ("pool", "outcome"),
    )
    own = {
        "/health": about.health,
        "/openapi.json": about.openapi,
        "/ready": dispatcher.ready,
        "/metrics": dispatcher.metrics,
    }
    routes = []
    for route in routes_of(settings):
        endpoint = _no_jobs if route.path.startswith("/v1/jobs") else own.get(route.path, dispatcher.forward)
        methods = sorted((route.methods or set()) - {"HEAD"})
        routes.append(Route(route.path, partial(endpoint), methods=methods))  # of its own, so that logs can name it
    names = {route.endpoint: route.path for route in routes}
    return Front(Router(routes=list(routes), redirect_slashes=False), parts, names)


async def _no_jobs(_: Request) -> Response:
    """A job lives in the server that took it, and the next request may go to another replica."""
    raise ApiError(501, "server: jobs are kept by one server, not by replicas; /v1/infer answers here")
