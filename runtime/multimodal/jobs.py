"""A queue of jobs on a session: one thread runs the batches, and each caller gets a ticket."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.multimodal.admission import Admission
from adaptc.runtime.multimodal.inputs import Inputs, ModalInputs, batch_size, gather
from adaptc.runtime.multimodal.policy import JobPolicy
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.profile import ModalProfile
from adaptc.runtime.multimodal.scheduler import Batch, ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption
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

    @property
    def prices(self) -> Prices:
        """What plans cost here and now."""

    def blank(self, subset: Sequence[str]) -> ModalInputs:
        """One row of zeros for some modalities."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job.

    Attributes:
        outputs: The model's outputs by name, [requests, ...].
        modalities: The modalities that each request's outputs come from.
        accuracy: Expected share of correct outputs, 0 to 1.
        seconds: Time from the job's coming to its last output.
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
        admission: Whether it was accepted, and when it will be done; on the clock of `time.monotonic`.
        began: When the job came, on that clock.
    """

    def __init__(self, admission: Admission, inputs: ModalInputs, deadline: float, began: float) -> None:
        """Created by `JobQueue.submit`."""
        self.admission = admission
        self.inputs = inputs
        self.deadline = deadline
        self.began = began
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
    """Runs jobs; a job that fails reports its error by its ticket, and all others go on.

    Attributes:
        times: What was measured, by this queue and its session.
    """

    def __init__(self, session: JobRunner, policy: str = "auto", *, warm: bool = False) -> None:
        """Start the thread.

        Args:
            session: Runs the batches; it must stay open until the queue is closed.
            policy: What jobs may choose from: "table", "gate", or "auto" for whichever is worth it.
            warm: Run the quickest option once, so that what a first use costs is known before the first job.

        Raises:
            RequestError: the session's bundle was never profiled, or there is no such policy.
        """
        if session.profile is None:
            raise RequestError("jobs: this bundle was never profiled; adaptc profile BUNDLE does")
        self._session = session
        self._policy = policy
        self.times = session.prices.times
        self._prices = session.prices
        self._scheduler = ModalityScheduler(session.profile.batches[-1], self._prices)
        self._policies: dict[frozenset[str], JobPolicy] = {}
        self._solving = threading.Lock()
        self._tickets: dict[int, Ticket] = {}
        self._next = 0
        self._changed = threading.Condition()
        self._closed = False
        self._home = Home()
        self._policy_of(frozenset(name for option in session.options for name in option.subset))
        if warm:
            self._warm()
        self._thread = threading.Thread(target=self._work, name="adaptc jobs", daemon=True)
        self._thread.start()

    def submit(
        self, inputs: Inputs, *, accuracy: float = 0.0, deadline_ms: float = math.inf, came: float | None = None
    ) -> Ticket:
        """Queue a job.

        Args:
            inputs: Inputs of all its requests, as `ModalSession.infer` takes them.
            accuracy: The lowest acceptable average of expected accuracy, 0 to 1.
            deadline_ms: Milliseconds from when it came, above 0.
            came: When that was, by `time.monotonic`; None is now.

        Returns:
            A ticket; its `admission` says whether the deadline can be kept, and those of all accepted jobs with it. If
            not, the job is not queued.

        Raises:
            RequestError: the inputs are wrong, there are too many or no requests, or the accuracy cannot be reached.
        """
        began = monotonic() if came is None else came
        self._home.check("jobs")
        accuracy = check_share("accuracy", accuracy)
        deadline_ms = check_milliseconds("deadline_ms", deadline_ms)
        arrays = self._session.read(inputs)
        size = batch_size(arrays)
        if size > LARGEST_JOB:
            raise RequestError(f"job: {size} requests; 1 to {LARGEST_JOB} are right")
        policy = self._policy_of(frozenset(arrays), size)
        with self._changed:
            if self._closed:
                raise RequestError("jobs: the queue is closed")
            name, now = self._next, monotonic()
            self._next += 1
            deadline = began + deadline_ms / 1e3
            strategies = policy.strategies(size, accuracy)
            admission = self._scheduler.submit(name, size, accuracy, deadline, strategies, now, began)
            ticket = Ticket(admission, arrays, deadline, began)
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

    def _policy_of(self, modalities: frozenset[str], size: int = 1) -> JobPolicy:
        """The policy over the options that need no other modalities, with the plans of a size solved for.

        Solving takes up to seconds, so nobody else waits for it.
        """
        with self._solving:
            if modalities not in self._policies:
                fitting = [each for each in self._session.options if set(each.subset) <= modalities]
                if not fitting:
                    raise RequestError(f"inputs: {'+'.join(sorted(modalities))} alone was not compiled")
                gated = any(each.level is not None for each in fitting)
                name = self._policy if gated or self._policies == {} else "table"
                self._policies[modalities] = JobPolicy(fitting, name, LARGEST_JOB, self._prices)
            policy = self._policies[modalities]
            policy.solve(size)
        return policy

    def _warm(self) -> None:
        """Run the quickest option once, and learn what a first use costs."""
        option = min(self._session.options, key=lambda each: each.seconds[0])
        first = self._prices.unused(option)
        if first:
            began = monotonic()
            self._session.execute(option, self._session.blank(option.subset))
            self.times.record(option, 1, monotonic() - began, 0.0, first)

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._scheduler.next(monotonic())
                while batch is None and not self._closed:
                    self._changed.wait()
                    batch = self._scheduler.next(monotonic())
                if batch is None:
                    return
                jobs = {name: self._tickets[name].inputs for name, _ in batch.rows}
            inputs = gather(batch.option.subset, jobs, batch.rows)
            began = monotonic()
            try:
                output: BatchOutput | AdaptcError = self._session.execute(batch.option, inputs)
            except AdaptcError as error:
                output = error
            seconds = monotonic() - began
            with self._changed:
                self._record(batch, output, seconds)

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
