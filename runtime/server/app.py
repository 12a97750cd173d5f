"""The application: paths and what answers them."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from adaptc.runtime.server.endpoints import about, inputs, tokens
from adaptc.runtime.server.endpoints.chat import chat
from adaptc.runtime.server.endpoints.completions import complete
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.front import Front

ROUTES = (
    Route("/v1/models", about.models, methods=["GET"]),
    Route("/v1/models/{name:path}", about.model, methods=["GET"]),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", complete, methods=["POST"]),
    Route("/v1/route", tokens.route, methods=["POST"]),
    Route("/v1/infer", inputs.infer, methods=["POST"]),
    Route("/v1/jobs", inputs.submit, methods=["POST"]),
    Route("/v1/jobs/{id}", inputs.job, methods=["GET"]),
    Route("/v1/jobs/{id}", inputs.forget, methods=["DELETE"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/health", about.health, methods=["GET"]),
    Route("/ready", about.ready, methods=["GET"]),
    Route("/metrics", about.metrics, methods=["GET"]),
    Route("/openapi.json", about.openapi, methods=["GET"]),
)


def application(parts: ServerParts) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        parts: Its parts. Its models stay open; whoever made them closes them.
    """
    _add_gauges(parts)
    return Front(Router(routes=list(ROUTES), redirect_slashes=False), parts)


def _add_gauges(parts: ServerParts) -> None:
    """Metrics that are read from the models when they are asked for."""
    entrance, models = parts.entrance, parts.models.by_name
    metrics = parts.metrics

    def running() -> list[tuple[tuple[str, ...], float]]:
        return [((name,), min(entrance.inside(name), getattr(each, "batch", 1))) for name, each in models.items()]

    def waiting() -> list[tuple[tuple[str, ...], float]]:
        return [((name,), max(0, entrance.inside(name) - getattr(each, "batch", 1))) for name, each in models.items()]

    metrics.gauge("adaptc:num_requests_running", "Requests that are being answered.", running)
    metrics.gauge("adaptc:num_requests_waiting", "Requests that wait for their turn.", waiting)
    metrics.gauge(
        "adaptc:requests_refused",
        "Requests that were refused, by the limit, since the start.",
        lambda: [((reason,), count) for reason, count in entrance.refused.items()],
        ("reason",),
    )
