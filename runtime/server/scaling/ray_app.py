"""The application of Ray Serve: an entrance, and pools of replicas that each run the server's own application.

Ray starts replicas, replaces lost ones and changes their number with the requests that run or wait. It asks again by
itself while a request has not reached a replica; from then on the entrance does (`dispatch.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message

from adaptc.runtime.server.app import application
from adaptc.runtime.server.observing.logs import write_log
from adaptc.runtime.server.running import keep_memory_together
from adaptc.runtime.server.scaling.calls import ReplicaCall, answers
from adaptc.runtime.server.scaling.dispatch import Dispatcher
from adaptc.runtime.server.scaling.entry import entrance_application
from adaptc.runtime.server.scaling.pools import FullError, LostError
from adaptc.runtime.server.scaling.scaling_options import ScalingOptions

ROUTER = "adaptc.runtime.server.scaling.ray_router.PrefixRouter"
METRICS_SECONDS = 5.0


def application_from(args: Mapping[str, Any], base: Path) -> serve.Application:
    """The application that `serve run` and `serve deploy` start.

    Args:
        args: See `ScalingOptions`.
        base: The folder that paths in `args` start from.

    Raises:
        RequestError: an option is wrong.
    """
    options = ScalingOptions.read(args, base)
    pools = {
        name: serve.deployment(Replica, name=name, request_router_config={"request_router_class": ROUTER}).bind(
            options, name
        )
        for name in options.pools
    }
    entrance = serve.ingress()(RayEntrance)
    return serve.deployment(entrance, name="entrance", max_ongoing_requests=10_000).bind(options, pools)


class Replica:
    """A server without a socket."""

    def __init__(self, options: ScalingOptions, pool: str) -> None:
        """Load the bundles and answer a request of its own.

        Args:
            options: Of the application.
            pool: Of which this is one.
        """
        write_log(options.settings().log_json)
        keep_memory_together()
        self._parts = options.replica(pool)
        self._app = application(self._parts)

    async def answer(self, call: ReplicaCall) -> AsyncGenerator[list[Message], None]:
        """The messages of an answer."""
        messages = answers(self._app, call)
        try:
            async for together in messages:
                yield together
        finally:
            await messages.aclose()

    async def metrics(self) -> tuple[str, str]:
        """This replica's name, and what it counted."""
        return serve.get_replica_context().replica_id.unique_id, self._parts.metrics.text()

    async def __del__(self) -> None:
        """Ray has waited for what runs; whatever is left is ended."""
        await self._parts.entrance.drain(1.0)
        await asyncio.to_thread(self._parts.models.close)


class RayEntrance:
    """What the proxies of Ray ask."""

    def __init__(self, options: ScalingOptions, pools: Mapping[str, DeploymentHandle]) -> None:
        """Ask nobody yet.

        Args:
            options: Of the application.
            pools: Handles by name.
        """
        settings = options.settings(keys=True)
        write_log(settings.log_json)
        known = {name: RayPool(handle) for name, handle in pools.items()}
        self._app = entrance_application(settings, Dispatcher(known, options.pools))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What `serve.ingress` asks for."""
        return self._app


class RayPool:
    """A pool of Ray Serve's replicas."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """Take a handle."""
        self._handle = handle
        self._answer = handle.options(method_name="answer", stream=True)

    async def ask(self, call: ReplicaCall) -> AsyncGenerator[Message, None]:
        """See `Pool`."""
        response = self._answer.remote(call)
        ended = False
        try:
            async for together in response:
                for message in together:
                    yield message
            ended = True
        except (RayActorError, DeploymentUnavailableError) as error:
            ended = True
            raise LostError from error
        except BackPressureError as error:
            ended = True
            raise FullError from error
        except RayTaskError as error:
            ended = True
            if isinstance(error.cause, RayActorError):
                raise LostError from error
            raise
        finally:
            if not ended:
                response.cancel()

    async def metrics(self) -> Mapping[str, str]:
        """See `Pool`."""
        response = self._handle.broadcast("metrics")
        try:
            return dict(await asyncio.wait_for(response.results_async(), METRICS_SECONDS))
        except (RayActorError, RayTaskError, asyncio.TimeoutError):
            return {}  # a replica went away meanwhile; the next time it is not asked
