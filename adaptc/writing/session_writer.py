"""Chats written by a session of adaptc's runtime: what a CPU does."""

from __future__ import annotations

import asyncio
import contextlib

from adaptc.runtime.generation.session import Session
from adaptc.runtime.text.sampling import Sampling
from adaptc.writing.jobs import WritingJob, WritingJobs, WrittenText

TOP = 64
"""How many of the likeliest tokens are drawn from."""

_WAIT = 0.05
"""Seconds after which it is looked for more work, and whether to stop."""


class SessionWriter:
    """Writes as many texts at a time as a session has batch slots."""

    def __init__(self, session: Session, ends: frozenset[int], *, batch: int) -> None:
        """Write by a session.

        Args:
            session: Of the model without gates.
            ends: Tokens that end a text.
            batch: Its batch slots.
        """
        self._session, self._ends, self._batch, self._seed = session, ends, batch, 0
        self._running = 0

    @property
    def slots(self) -> int:
        """How many texts it writes at the same time."""
        return self._batch

    def run(self, jobs: WritingJobs, seed: int) -> None:
        """See `ChatWriter`.

        Raises:
            EngineError: the engine failed.
        """
        self._seed = seed % (1 << 31)
        asyncio.run(self._all(jobs))

    async def _all(self, jobs: WritingJobs) -> None:
        """Write several texts at a time, until all is done or it is time to stop."""
        writing = asyncio.gather(*(self._one(jobs) for _ in range(self._batch)))
        while not (await asyncio.wait([writing], timeout=_WAIT))[0]:
            if jobs.over():
                writing.cancel()
                break
        with contextlib.suppress(asyncio.CancelledError):
            await writing

    async def _one(self, jobs: WritingJobs) -> None:
        """Write one text after the other."""
        while True:
            taken = jobs.take(1)
            if taken:
                self._running += 1
                written = await self._write(taken[0])
                self._running -= 1
                jobs.give([written])
            elif self._running:  # what another one writes may bring more work
                await asyncio.sleep(_WAIT)
            else:
                return

    async def _write(self, job: WritingJob) -> WrittenText:
        self._seed += 1
        result = await self._session.generate_async(
            list(job.prompt),
            max_new_tokens=job.most,
            sampling=Sampling(temperature=job.temperature, top_k=TOP, top_p=job.top_p)
            if job.temperature
            else Sampling(),
            stop_token_ids=sorted(self._ends),
            seed=self._seed,
        )
        ended = bool(result.ids) and result.ids[-1] in self._ends
        return WrittenText(job, result.ids[:-1] if ended else result.ids, result.ids[-1] if ended else None)
