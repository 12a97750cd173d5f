"""A queue of jobs on a session: one thread runs the batches, and each caller gets a ticket."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.multimodal.inputs import Inputs, ModalInputs, batch_size
from adaptc.runtime.multimodal.profile import ModalProfile
from adaptc.runtime.multimodal.scheduler import Admission, Batch, ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies
from adaptc.runtime.multimodal.subsets import BatchOutput
from adaptc.runtime.process import Home
from adaptc.runtime.validation import check_milliseconds, check_share

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_JOB = 256
"""The largest number of requests in a job: strategies of every size up to it are kept."""


class JobRunner(Protocol):
    """What a queue needs of a session."""

    @property
    def profile(self) -> ModalProfile | None:
        """What was measured; None if `adaptc profile` never ran on the bundle."""

    @property
    def options(self) -> tuple[ModalityOption, ...]:
        """What can be done with a request."""

    def read(self, inputs: Inputs) -> ModalInputs:
        """Check inputs and bring them into the graphs' form."""

    def execute(self, option: ModalityOption, inputs: ModalInputs) -> BatchOutput:
        """Run an option on a batch."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Attributes:
        outputs: The model's outputs by name, [requests, ...].
        modalities: The modalities that each request's outputs come from.
        accuracy: Expected share of correct outputs, 0 to 1.
        seconds: Time from `submit` to the job's last output.
        late: Whether the deadline had passed by then.
    """

    outputs: dict[str, Array]
    modalities: tuple[tuple[str, ...], ...]
    accuracy: float
    seconds: float
    late: bool


class Ticket:
    """A submitted job.

    Attributes:
        admission: Whether it was accepted, and when it will be done.
    """

    def __init__(self, admission: Admission, inputs: ModalInputs, deadline: float) -> None:
        """Created by `JobQueue.submit`."""
        self.admission = admission
        self.inputs = inputs
        self.deadline = deadline
        self.began = monotonic()
        self.correct = 0.0
        self.outputs: dict[int, tuple[dict[str, Array], tuple[str, ...]]] = {}
        self._done = threading.Event()
        self._home = Home()
        self._result: JobResult | AdaptcError | None = None

    def result(self, timeout: float | None = None) -> JobResult:
        """Wait for the job.

        Args:
            timeout: Most seconds to wait; None for ever.

        Raises:
            RequestError: the job was refused, or is not done in time.
            AdaptcError: the job failed.
        """
        if not self.admission.accepted:
            raise RequestError(f"job: refused: {self.admission.why}")
        self._home.check("job")
        if not self._done.wait(timeout):
            raise RequestError(f"job: not done within {timeout} s")
        if isinstance(self._result, AdaptcError):
            raise self._result
        assert self._result is not None
        return self._result

    @property
    def done(self) -> bool:
        """Whether the job has ended, so that `result` does not wait."""
        return self._done.is_set()

    def settle(self, result: JobResult | AdaptcError) -> None:
        """Set the result and wake all callers that wait for it."""
        self._result = result
        self._done.set()


class JobQueue:
    """Runs jobs; a job that fails reports its error by its ticket, and all others go on."""

    def __init__(self, session: JobRunner) -> None:
        """Start the thread.

        Args:
            session: Runs the batches; it must stay open until the queue is closed.

        Raises:
            RequestError: the session's bundle was never profiled.
        """
        if session.profile is None:
            raise RequestError("jobs: this bundle was never profiled; adaptc profile BUNDLE does")
        self._session = session
        self._scheduler = ModalityScheduler(session.profile.batches[-1])
        self._strategies: dict[frozenset[str], Strategies] = {}
        self._tickets: dict[int, Ticket] = {}
        self._next = 0
        self._changed = threading.Condition()
        self._closed = False
        self._home = Home()
        self._thread = threading.Thread(target=self._work, name="adaptc jobs", daemon=True)
        self._thread.start()

    def submit(self, inputs: Inputs, *, accuracy: float = 0.0, deadline_ms: float = math.inf) -> Ticket:
        """Queue a job.

        Args:
            inputs: Inputs of all its requests, as `ModalSession.infer` takes them.
            accuracy: The lowest acceptable average of expected accuracy, 0 to 1.
            deadline_ms: Milliseconds from now, above 0.

        Returns:
            A ticket; its `admission` says whether the deadline can be kept. If not, the job is not queued.

        Raises:
            RequestError: the inputs are wrong, there are too many or no requests, or the accuracy cannot be reached.
        """
        self._home.check("jobs")
        accuracy = check_share("accuracy", accuracy)
        deadline_ms = check_milliseconds("deadline_ms", deadline_ms)
        arrays = self._session.read(inputs)
        size = batch_size(arrays)
        if size > LARGEST_JOB:
            raise RequestError(f"job: {size} requests; 1 to {LARGEST_JOB} are right")
        with self._changed:
            if self._closed:
                raise RequestError("jobs: the queue is closed")
            name, now = self._next, monotonic()
            self._next += 1
            deadline = now + deadline_ms / 1e3
            strategies = self._strategies_of(frozenset(arrays))
            admission = self._scheduler.submit(name, size, accuracy, deadline, strategies, now)
            ticket = Ticket(admission, arrays, deadline)
            if admission.accepted:
                self._tickets[name] = ticket
                self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Finish what is queued, and stop; a fork has nothing to stop."""
        if self._home.left:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _strategies_of(self, modalities: frozenset[str]) -> Strategies:
        """Strategies over the options that need no other modalities."""
        if modalities not in self._strategies:
            fitting = [each for each in self._session.options if set(each.subset) <= modalities]
            if not fitting:
                raise RequestError(f"inputs: {'+'.join(sorted(modalities))} alone was not compiled")
            self._strategies[modalities] = Strategies(fitting, LARGEST_JOB)
        return self._strategies[modalities]

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._scheduler.next(monotonic())
                while batch is None and not self._closed:
                    self._changed.wait()
                    batch = self._scheduler.next(monotonic())
                if batch is None:
                    return
                inputs = gather(batch.option.subset, {n: self._tickets[n].inputs for n, _ in batch.rows}, batch.rows)
            began = monotonic()
            try:
                output: BatchOutput | AdaptcError = self._session.execute(batch.option, inputs)
            except AdaptcError as error:
                output = error
            with self._changed:
                self._record(batch, output, monotonic() - began)

    def _record(self, batch: Batch, output: BatchOutput | AdaptcError, seconds: float) -> None:
        """Hand a batch's outputs, or its error, to the tickets of its jobs."""
        now = monotonic()
        if isinstance(output, AdaptcError):
            failed = dict.fromkeys(name for name, _ in batch.rows)
            self._scheduler.drop(failed, now)
            for name in failed:
                self._tickets.pop(name).settle(output)
            return
        for place, (name, row) in enumerate(batch.rows):
            if name in self._tickets:
                ticket = self._tickets[name]
                ticket.outputs[row] = ({k: a[place] for k, a in output.outputs.items()}, output.modalities[place])
                ticket.correct += batch.option.accuracy
        for name in self._scheduler.done(batch, now, seconds):
            ticket = self._tickets.pop(name)
            requests = [ticket.outputs[row] for row in range(len(ticket.outputs))]
            outputs = {name: np.stack([arrays[name] for arrays, _ in requests]) for name in requests[0][0]}
            modalities = tuple(used for _, used in requests)
            accuracy = ticket.correct / len(requests)
            ticket.settle(JobResult(outputs, modalities, accuracy, now - ticket.began, now > ticket.deadline))


def gather(subset: Sequence[str], jobs: Mapping[int, ModalInputs], rows: Sequence[tuple[int, int]]) -> ModalInputs:
    """The inputs of some requests of several jobs, as one batch.

    Args:
        subset: The modalities to gather.
        jobs: Inputs of each job, by its number.
        rows: (job, index of the request within it), in the order of the batch.
    """
    gathered: dict[str, dict[str, Any]] = {}
    for name in subset:
        inputs = jobs[rows[0][0]][name]
        gathered[name] = {each: np.stack([jobs[job][name][each][row] for job, row in rows]) for each in inputs}
    return gathered
