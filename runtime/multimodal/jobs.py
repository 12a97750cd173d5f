"""A queue of jobs on a session: one thread runs batches, and whoever submits gets a ticket."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.multimodal.inputs import Inputs, Rows
from adaptc.runtime.multimodal.scheduler import Admission, Batch, Schedule
from adaptc.runtime.multimodal.session import Executed, ModalSession, check_share
from adaptc.runtime.multimodal.strategy import Strategies

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_JOB = 256
"""Requests of a job, at most: strategies of every size up to it are kept."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job that is done.

    Attributes:
        outputs: The model's outputs by name, [requests, ...].
        modalities: For each request, the modalities it was answered from.
        accuracy: Expected share of right answers.
        seconds: From submitting to the last answer.
        late: Whether the deadline had passed by then.
    """

    outputs: dict[str, Array]
    modalities: tuple[tuple[str, ...], ...]
    accuracy: float
    seconds: float
    late: bool


class Ticket:
    """A job that was submitted.

    Attributes:
        admission: Whether it was taken, and when it will be done.
    """

    def __init__(self, admission: Admission, rows: Rows, deadline: float) -> None:
        """Made by `JobQueue.submit`."""
        self.admission = admission
        self.rows = rows
        self.deadline = deadline
        self.began = monotonic()
        self.right = 0.0
        self.answers: dict[int, tuple[dict[str, Array], tuple[str, ...]]] = {}
        self._done = threading.Event()
        self._result: JobResult | AdaptcError | None = None

    def result(self, timeout: float | None = None) -> JobResult:
        """Wait for the job.

        Args:
            timeout: Most seconds to wait; None for ever.

        Raises:
            RequestError: it was refused, or is not done in time.
            AdaptcError: it failed.
        """
        if not self.admission.accepted:
            raise RequestError(f"job: refused: {self.admission.why}")
        if not self._done.wait(timeout):
            raise RequestError(f"job: not done within {timeout} s")
        if isinstance(self._result, AdaptcError):
            raise self._result
        assert self._result is not None
        return self._result

    def settle(self, result: JobResult | AdaptcError) -> None:
        """Give the waiting their answer."""
        self._result = result
        self._done.set()


class JobQueue:
    """Runs jobs; what is wrong with one of them is said on its ticket, and the others go on."""

    def __init__(self, session: ModalSession) -> None:
        """Start the thread.

        Raises:
            RequestError: the session's bundle was never profiled.
        """
        if session.profile is None:
            raise RequestError("jobs: this bundle was never profiled; adaptc profile BUNDLE does")
        self._session = session
        self._schedule = Schedule(session.profile.batches[-1])
        self._strategies: dict[frozenset[str], Strategies] = {}
        self._tickets: dict[int, Ticket] = {}
        self._next = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="adaptc jobs", daemon=True)
        self._thread.start()

    def submit(self, inputs: Inputs, *, accuracy: float = 0.0, deadline_ms: float = math.inf) -> Ticket:
        """Queue a job.

        Args:
            inputs: Of all its requests, as `ModalSession.infer` takes them.
            accuracy: Least average of expected right answers, 0 to 1.
            deadline_ms: From now.

        Returns:
            A ticket; it says at once if the deadline cannot be kept, and then the job is not queued.

        Raises:
            RequestError: the inputs are wrong, there are too many or no requests, or the accuracy cannot be reached.
        """
        check_share("accuracy", accuracy)
        if not deadline_ms > 0:
            raise RequestError(f"deadline_ms: {deadline_ms!r}; more than 0 is needed")
        rows = self._session.read(inputs)
        size = len(next(iter(next(iter(rows.values())).values())))
        if size > LARGEST_JOB:
            raise RequestError(f"job: {size} requests; 1 to {LARGEST_JOB} are right")
        with self._changed:
            if self._closed:
                raise RequestError("jobs: the queue is closed")
            name, now = self._next, monotonic()
            self._next += 1
            deadline = now + deadline_ms / 1e3
            strategies = self._ways(frozenset(rows))
            admission = self._schedule.submit(name, size, accuracy, deadline, strategies, now)
            ticket = Ticket(admission, rows, deadline)
            if admission.accepted:
                self._tickets[name] = ticket
                self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Finish what is queued, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ways(self, brought: frozenset[str]) -> Strategies:
        """Strategies over what can be done with these modalities."""
        if brought not in self._strategies:
            fitting = [each for each in self._session.options if set(each.subset) <= brought]
            if not fitting:
                raise RequestError(f"inputs: {'+'.join(sorted(brought))} alone was not compiled")
            self._strategies[brought] = Strategies(fitting, LARGEST_JOB)
        return self._strategies[brought]

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._schedule.next(monotonic())
                while batch is None and not self._closed:
                    self._changed.wait()
                    batch = self._schedule.next(monotonic())
                if batch is None:
                    return
                rows = gather(batch.option.subset, {n: self._tickets[n].rows for n, _ in batch.rows}, batch.rows)
            began = monotonic()
            try:
                done: Executed | AdaptcError = self._session.execute(batch.option, rows)
            except AdaptcError as error:
                done = error
            with self._changed:
                self._note(batch, done, monotonic() - began)

    def _note(self, batch: Batch, done: Executed | AdaptcError, seconds: float) -> None:
        now = monotonic()
        if isinstance(done, AdaptcError):
            failed = dict.fromkeys(name for name, _ in batch.rows)
            self._schedule.drop(failed, now)
            for name in failed:
                self._tickets.pop(name).settle(done)
            return
        for place, (name, row) in enumerate(batch.rows):
            if name in self._tickets:
                ticket = self._tickets[name]
                ticket.answers[row] = ({k: a[place] for k, a in done.outputs.items()}, done.modalities[place])
                ticket.right += batch.option.accuracy
        for name in self._schedule.done(batch, now, seconds):
            ticket = self._tickets.pop(name)
            answers = [ticket.answers[row] for row in range(len(ticket.answers))]
            outputs = {k: np.stack([answer[0][k] for answer in answers]) for k in answers[0][0]}
            share = ticket.right / len(answers)
            ticket.settle(
                JobResult(outputs, tuple(a[1] for a in answers), share, now - ticket.began, now > ticket.deadline)
            )


def gather(subset: Sequence[str], jobs: Mapping[int, Rows], rows: Sequence[tuple[int, int]]) -> Rows:
    """The inputs of some requests of several jobs, as one batch."""
    found: dict[str, dict[str, Any]] = {}
    for name in subset:
        inputs = jobs[rows[0][0]][name]
        found[name] = {each: np.stack([jobs[job][name][each][row] for job, row in rows]) for each in inputs}
    return found
