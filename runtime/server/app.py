"""The application: paths and what answers them."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from adaptc.runtime.generation.status import Status
from adaptc.runtime.server.endpoints import about, embeddings, inputs, tokens, watching
from adaptc.runtime.server.endpoints.chat import chat
from adaptc.runtime.server.endpoints.completions import complete
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.front import Front
from adaptc.runtime.server.observing.metrics import Read
from adaptc.runtime.server.serving.models import TextModel
from adaptc.runtime.server.serving.settings import Settings

ROUTES = (
    Route("/v1/models", about.models, methods=["GET"]),
    Route("/v1/models/{name:path}", about.model, methods=["GET"]),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", complete, methods=["POST"]),
    Route("/v1/embeddings", embeddings.embed, methods=["POST"]),
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
    Route("/ui", watching.page, methods=["GET"]),
    Route("/ui/state", watching.state, methods=["GET"]),
    Route("/ui/{file}", watching.file, methods=["GET"]),
)


def routes_of(settings: Settings) -> list[Route]:
    """The paths of a server with these settings."""
    return [route for route in ROUTES if settings.ui or not route.path.startswith("/ui")]


def application(parts: ServerParts) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        parts: Its parts. Its models stay open; whoever made them closes them.
    """
    _add_gauges(parts)
    routes = routes_of(parts.settings)
    names = {route.endpoint: route.path for route in routes}
    return Front(Router(routes=routes, redirect_slashes=False), parts, names)


def _add_gauges(parts: ServerParts) -> None:
    """Metrics that are read from the models when they are asked for."""
    entrance, models = parts.entrance, parts.models.by_name
    metrics = parts.metrics

    def of_status(read: Callable[[Status], float]) -> Read:
        sessions = {name: each.session for name, each in models.items() if isinstance(each, TextModel)}
        return lambda: [((name,), read(session.status())) for name, session in sessions.items()]

    def inside() -> list[tuple[tuple[str, ...], float]]:
        return [((name,), entrance.inside(name)) for name in models]

    metrics.read("adaptc:num_requests_running", "Sequences that have a slot.", of_status(lambda now: now.running))
    metrics.read("adaptc:num_requests_waiting", "Sequences that wait for one.", of_status(lambda now: now.waiting))
    metrics.read("adaptc:num_requests_inside", "Requests that were let in and have not ended.", inside)
    metrics.read(
        "adaptc:kv_cache_usage",
        "Share of the KV cache that is used.",
        of_status(lambda now: now.kv_tokens / now.kv_capacity),
    )
    metrics.read(
        "adaptc:prefix_cache_queries_total",
        "Tokens of prompts.",
        of_status(lambda now: now.prefix_query_tokens),
        "counter",
    )
    metrics.read(
        "adaptc:prefix_cache_hits_total",
        "Tokens of prompts that were known from earlier ones.",
        of_status(lambda now: now.prefix_hit_tokens),
        "counter",
    )
    metrics.read("adaptc:step_seconds", "Mean time of a step lately.", of_status(lambda now: now.step_seconds))
    metrics.read(
        "adaptc:load_budget_ceiling",
        "The most that any budget counts for, 0 to 1: below 1 while targets are missed.",
        of_status(lambda now: now.budget_ceiling),
    )
    metrics.read(
        "adaptc:load_pressure",
        "How near times are to their targets, the worse of the two: budgets go down above 1.",
        of_status(lambda now: now.pressure),
    )
    metrics.read(
        "adaptc:num_preemptions_total",
        "How often a sequence gave up its slot for others.",
        of_status(lambda now: now.preemptions),
        "counter",
    )
    metrics.read(
        "adaptc:request_rejected_total",
        "Requests that were not let in, by the limit.",
        lambda: [((reason,), count) for reason, count in entrance.refused.items()],
        "counter",
        ("reason",),
    )
