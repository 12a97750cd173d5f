"""What endpoints have in common: the server's parts, and one request's way through them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from adaptc.runtime.server.observing.metrics import Metrics
from adaptc.runtime.server.observing.recent import Recent
from adaptc.runtime.server.protocol.checking import Schema, checked
from adaptc.runtime.server.protocol.responses import read_body
from adaptc.runtime.server.serving.entrance import Entrance
from adaptc.runtime.server.serving.jobs import Jobs
from adaptc.runtime.server.serving.models import Models
from adaptc.runtime.server.serving.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class ServerParts:
    """The parts of a server.

    Attributes:
        settings: Its limits.
        models: What it serves.
        entrance: Who is let in.
        metrics: What it counts.
        jobs: What its clients come back for.
        recent: What it answered lately.
    """

    settings: Settings
    models: Models
    entrance: Entrance
    metrics: Metrics = field(default_factory=Metrics)
    jobs: Jobs = field(default_factory=Jobs)
    recent: Recent = field(default_factory=Recent)


def parts_of(request: Request) -> ServerParts:
    """The parts of the server that a request came to."""
    found: ServerParts = request.scope["adaptc.parts"]
    return found


def note(request: Request, **facts: Any) -> None:
    """Add what is known of a request to its line in the log; no prompts, answers or keys."""
    request.scope.setdefault("adaptc.facts", {}).update(facts)


async def body_of(request: Request, schema: Schema) -> dict[str, Any]:
    """The body of a request, checked.

    Raises:
        ApiError: it is not of this form, or breaks a limit.
        DisconnectedError: the client went away.
    """
    settings = parts_of(request).settings
    return checked(await read_body(request, settings.max_body, settings.read_seconds), schema)


def stack_of(request: Request) -> AsyncExitStack:
    """What is closed when a request has ended, however it ends."""
    found: AsyncExitStack = request.scope["adaptc.stack"]
    return found
