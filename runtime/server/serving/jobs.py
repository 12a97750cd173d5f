"""Jobs that clients come back for: each is kept until it is deleted, or old."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

from adaptc.runtime.multimodal.jobs import JobQueue, Ticket
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.serving.models import InputModel, Model


@dataclass(frozen=True, slots=True, eq=False)
class KeptJob:
    """One of them.

    Attributes:
        model: Answers it.
        ticket: Its result, once it has ended.
        made: `monotonic` when it came.
    """

    model: InputModel
    ticket: Ticket
    made: float


class Jobs:
    """The jobs of all models, kept until they are fetched, deleted or old."""

    MOST = 1024
    KEPT_SECONDS = 600.0

    def __init__(self) -> None:
        """Start without jobs."""
        self.queues: dict[str, JobQueue] = {}
        self.known: dict[str, KeptJob] = {}
        self._told: set[str] = set()
        self._opening = Lock()

    def open(self, models: Iterable[Model], policy: str = "auto") -> None:
        """Make the queues of models that take jobs, so that no client waits for that.

        Args:
            models: What is served; those without a profile take no jobs.
            policy: What jobs may choose from: "auto", "table" or "gate".

        Raises:
            AdaptcError: there is no such policy, or a graph fails.
        """
        for model in models:
            if isinstance(model, InputModel) and model.session.profile is not None:
                self._queue(model, policy)

    def submit(
        self, model: InputModel, inputs: Mapping[str, Any], asked: Mapping[str, Any], came: float | None = None
    ) -> tuple[str, Ticket]:
        """Queue a job; its id, and its ticket.

        Args:
            model: Answers it.
            inputs: Of all its requests.
            asked: Its `accuracy` and `deadline_ms`, if it has them.
            came: When its request came, by `monotonic`; deadlines count from then. None is now.

        Raises:
            ApiError: too many jobs are kept.
            AdaptcError: the job is wrong.
        """
        now = monotonic()
        old = [id_ for id_, job in self.known.items() if job.ticket.done and now - job.made > self.KEPT_SECONDS]
        for id_ in old:
            self.forget(id_)
        if len(self.known) >= self.MOST:
            raise ApiError(
                429,
                f"jobs: {self.MOST} are kept; fetch or delete some",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        ticket = self._queue(model).submit(inputs, came=came, **asked)
        id_ = f"job-{uuid.uuid4().hex}"
        if ticket.admission.accepted:
            self.known[id_] = KeptJob(model, ticket, now)
        return id_, ticket

    def forget(self, id_: str) -> None:
        """Keep a job no longer; what runs of it runs to its end."""
        self.known.pop(id_, None)
        self._told.discard(id_)

    def is_new(self, id_: str) -> bool:
        """Whether this is asked for the first time."""
        new = id_ not in self._told
        self._told.add(id_)
        return new

    def _queue(self, model: InputModel, policy: str = "auto") -> JobQueue:
        with self._opening:
            if model.name not in self.queues:
                self.queues[model.name] = model.session.jobs(policy, warm=True)
            return self.queues[model.name]

    def close(self) -> None:
        """Finish what is queued."""
        for queue in self.queues.values():
            queue.close()
