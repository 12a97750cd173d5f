"""A run against one server: callers come when they are due, whatever became of those before."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from time import perf_counter, process_time

from adaptc.bench.load.callers import Caller, Message
from adaptc.bench.load.client import LoadClient, connected
from adaptc.bench.load.exchange import Exchange
from adaptc.bench.load.reply import Reply, read_reply
from adaptc.bench.load.schedule import Schedule
from adaptc.bench.load.target import LoadTarget
from adaptc.errors import EngineError
from adaptc.runtime.progress import SILENT, Progress

_BEAT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How far a run goes.

    Attributes:
        concurrency: Most requests under way at a time; in a closed run, the number of callers at a time. None for any.
        timeout: Seconds that a request may take.
    """

    concurrency: int | None = None
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What was measured in a run.

    Attributes:
        exchanges: All requests, in the order in which they ended.
        seconds: How long the run counts: until callers stopped coming, or until the last answer if only their number
            ended it.
        stalls: By how many seconds each of the generator's own timers was late: what it saw was late by as much.
        cpu: Seconds of processor time that the generator took.
        wall: Seconds that it ran.
    """

    exchanges: tuple[Exchange, ...]
    seconds: float
    stalls: tuple[float, ...]
    cpu: float
    wall: float


def run_load(
    target: LoadTarget, schedule: Schedule, turn: int, limits: RunLimits, progress: Progress = SILENT
) -> LoadRun:
    """Put a load on a server.

    Args:
        target: The server; its model is known.
        schedule: Who comes.
        turn: Which of the schedule's turns.
        limits: How far it goes.
        progress: Told of requests that ended.
    """
    return asyncio.run(_run(target, schedule, turn, limits, progress))


def warm_up(target: LoadTarget, schedule: Schedule, count: int, limits: RunLimits) -> None:
    """Ask some requests, one after another, that do not count.

    Raises:
        EngineError: the server does not answer one as it should.
    """

    async def ask() -> None:
        async with connected(target, limits.timeout) as client:
            for place in range(count):
                [request] = schedule.warmup(place).requests
                reply = read_reply(await client.ask(target.request(request.messages, request.max_tokens)))
                if reply.error is not None:
                    raise EngineError(f"{target.name}: {target.path}: {reply.error}: {reply.detail}")

    asyncio.run(ask())


async def _run(target: LoadTarget, schedule: Schedule, turn: int, limits: RunLimits, progress: Progress) -> LoadRun:
    # Drawn before the clock runs; only time may end a closed run, and then it is drawn while it goes on.
    callers = schedule.callers(turn) if schedule.closed else iter(list(schedule.callers(turn)))
    async with connected(target, limits.timeout) as client:
        run = _Run(client, target, schedule.expected, progress)
        cpu, began = process_time(), run.began
        async with _heartbeat() as stalls:
            if schedule.closed:
                end = math.inf if schedule.seconds is None else schedule.seconds
                await run.closed(enumerate(callers), limits.concurrency or 1, end)
            else:
                await run.open(enumerate(callers), limits.concurrency)
        spent, wall = process_time() - cpu, perf_counter() - began
    last = max((each.ended for each in run.exchanges), default=0.0)
    counted = schedule.seconds if schedule.seconds is not None and schedule.requests is None else last
    return LoadRun(tuple(run.exchanges), max(counted, 1e-9), tuple(stalls), spent, wall)


class _Run:
    """A run while it goes on."""

    def __init__(self, client: LoadClient, target: LoadTarget, expected: int | None, progress: Progress) -> None:
        self.began = perf_counter()
        self.exchanges: list[Exchange] = []
        self._client = client
        self._target = target
        self._expected = expected
        self._progress = progress
        self._told = 0.0

    @property
    def now(self) -> float:
        """Seconds from the start."""
        return perf_counter() - self.began

    async def open(self, callers: Iterator[tuple[int, Caller]], most: int | None) -> None:
        """Let each caller ask when it is due; a limit of requests at a time is a queue before the server."""
        gate = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
        asking: set[asyncio.Task[None]] = set()
        for place, caller in callers:
            await asyncio.sleep(caller.time - self.now)
            task = asyncio.create_task(self._converse(place, caller, gate))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    async def closed(self, callers: Iterator[tuple[int, Caller]], number: int, end: float) -> None:
        """Keep as many callers as said at it: when one has ended, the next one comes, until the end."""

        async def come() -> None:
            while self.now < end and (drawn := next(callers, None)) is not None:
                place, caller = drawn
                now = self.now
                first, *others = caller.requests
                first = dataclasses.replace(first, time=now)
                await self._converse(place, Caller((first, *others)), contextlib.nullcontext(), end)

        await asyncio.gather(*(come() for _ in range(number)))

    async def _converse(
        self,
        place: int,
        caller: Caller,
        gate: asyncio.Semaphore | contextlib.nullcontext[None],
        end: float = math.inf,
    ) -> None:
        """Ask a caller's requests, each after the answer to the one before; an error ends the conversation."""
        said: list[Message] = []
        ready = 0.0
        for turn, request in enumerate(caller.requests):
            due = max(request.time, ready + request.pause)
            await asyncio.sleep(due - self.now)
            if turn and self.now >= end:
                return
            said += request.messages
            body = self._target.request(said, request.max_tokens)
            came = self.now
            async with gate:
                sent = self.now
                received = await self._client.ask(body)
                ready = self.now
            reply = self._from_start(read_reply(received))
            self.exchanges.append(Exchange(place, turn, due, came, sent, ready, reply))
            self._tell()
            if reply.error is not None:
                return
            said.append({"role": "assistant", "content": reply.text})

    def _from_start(self, reply: Reply) -> Reply:
        """A reply with times from the start of the run."""
        return dataclasses.replace(reply, times=tuple(time - self.began for time in reply.times))

    def _tell(self) -> None:
        """Tell of progress, not too often: it would disturb what is timed."""
        now = self.now
        if now - self._told > 0.5:
            self._told = now
            done = len(self.exchanges)
            self._progress.step(done, max(done, self._expected or done + 1))


@contextlib.asynccontextmanager
async def _heartbeat() -> AsyncIterator[list[float]]:
    """By how much timers are late while something goes on, in seconds."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            due = perf_counter() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            late.append(max(0.0, perf_counter() - due))

    task = asyncio.create_task(beat())
    try:
        yield late
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
