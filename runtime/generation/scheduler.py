"""The scheduler: which sequences read and write in the next step.

    waiting ──admit──> reading ──prompt read──> active ──end──> gone
       ^                  │                        │
       └────────────── preempted ──────────────────┘

A step reads a piece of one or more prompts and adds one token to every active sequence. Sequences join and leave
between any two steps, so no request waits for another to end while there is a slot, and no prompt, however long, keeps
others waiting for longer than one piece takes. Slots of active sequences are the first ones, see `BatchDecoder`.

A preempted sequence is begun again later: its prompt is read anew, or found among the kept blocks, and what it had
written is put back token by token in the way it was written. So it goes on as if nothing had happened.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from time import perf_counter

import numpy as np

from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.generation.status import Status
from adaptc.runtime.generation.work import Job, Work
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Prefill, TokenChooser
from adaptc.runtime.model.options import NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Limits:
    """How a scheduler shares the decoder.

    Attributes:
        piece: The largest number of prompt tokens that are read in a step beside active sequences, from 2. Fewer keep
            the time between tokens even, more read prompts sooner.
        alone: The same for a step without active sequences.
        kv_tokens: The largest number of tokens in the KV cache, of all sequences together; None for all that the slots
            hold. Where it is reached, the sequence that came last among those of the lowest priority is preempted.
        unread: A stream that is this many pieces ahead of its reader is preempted while there is other work.
    """

    piece: int = 64
    alone: int = 512
    kv_tokens: int | None = None
    unread: int = 64


@dataclass(eq=False)
class _Reading:
    """A sequence whose prompt is being read.

    Attributes:
        sequence: The sequence.
        prefill: Reads it.
        turn: When it is its turn: the work that is left, after that which others had done before it came.
        resumed: Whether it was preempted after it had begun to write.
    """

    sequence: TokenSequence
    prefill: Prefill
    turn: int
    resumed: bool


class Scheduler:
    """Runs sequences and jobs in a decoder. One thread at a time may call `step`; any may call `add` and `cancel`."""

    def __init__(self, decoder: BatchDecoder, limits: Limits | None = None) -> None:
        """Begin without work.

        Args:
            decoder: Its slots belong to the scheduler.
            limits: How they are shared.
        """
        self._decoder = decoder
        self._limits = limits or Limits()
        self._added: deque[Work] = deque()  # by any thread, for the next step
        self._waiting: list[Work] = []
        self._reading: list[_Reading] = []
        self._active: list[TokenSequence] = []  # by slot
        self._job: Job | None = None
        self._replayed: dict[TokenSequence, int] = {}  # tokens put back so far, of those that were preempted
        self._arrivals = count()
        self._read_tokens = 0  # of all prompts
        self._hits = self._queries = self._preemptions = 0
        self._capacity = decoder.batch * decoder.spec.max_tokens
        if self._limits.kv_tokens is not None:
            self._capacity = min(self._capacity, self._limits.kv_tokens)

    def add(self, work: Iterable[Work]) -> None:
        """Let work wait for its slots."""
        now = perf_counter()
        for each in work:
            each.arrival, each.began = next(self._arrivals), now
            self._added.append(each)

    def cancel(self, work: Work) -> None:
        """End work before the next step; what was written stays."""
        work.cancelled = True

    @property
    def status(self) -> Status:
        """What runs and what waits now."""
        return Status(
            running=len(self._running()),
            waiting=len(self._waiting) + len(self._added),
            kv_tokens=self._tokens(),
            kv_capacity=self._capacity,
            prefix_hit_tokens=self._hits,
            prefix_query_tokens=self._queries,
            preemptions=self._preemptions,
        )

    def step(self, before: Callable[[], object] = lambda: None) -> None:
        """Read pieces of prompts, and add one token to each active sequence.

        Args:
            before: Called before each run of an engine; it may cancel work.

        What an engine raises ends the work that met it, see `Work.error`. Any other exception ends all that was in the
        decoder, whose state is not known then, and is raised.
        """
        try:
            before()
            self._drop_ended()
            self._admit()
            self._advance_job()
            self._read(before)
            before()
            self._drop_ended()
            self._decode()
        except BaseException as error:
            self._fail(error)
            raise

    def _drop_ended(self) -> None:
        while self._added:
            self._waiting.append(self._added.popleft())
        self._waiting = [work for work in self._waiting if not work.ended]
        for reading in [each for each in self._reading if each.sequence.ended]:
            self._stop_reading(reading)
        for slot in reversed([slot for slot, each in enumerate(self._active) if each.ended]):
            self._leave(slot)
        if self._job is not None and self._job.ended:
            self._end_job()

    def _running(self) -> list[Work]:
        return [*self._sequences(), *(() if self._job is None else (self._job,))]

    def _sequences(self) -> list[TokenSequence]:
        return [*self._active, *(each.sequence for each in tuple(self._reading))]

    # Admission

    def _admit(self) -> None:
        """Give slots to those that wait, the first ones first, as long as there is room for the next one."""
        self._park()
        while self._waiting and not (self._job is not None and self._job.alone):
            work = self._next()
            if self._must_wait(work):
                return
            slot = self._slot_for(work)
            if slot is None or not self._fits(work):
                if not self._preempt_below(work.priority):
                    return
                continue
            self._waiting.remove(work)
            if isinstance(work, Job):
                self._job = work
            elif isinstance(work, TokenSequence):
                self._begin(work, slot)

    def _next(self) -> Work:
        """The work that is first: by priority, then of the caller who has fewest in slots, then in order of arrival."""
        slots = Counter(id(each.owner) for each in self._running())
        return min(
            self._waiting,
            key=lambda work: (self._idle(work), -work.priority, slots[id(work.owner)], work.arrival),
        )

    def _idle(self, work: Work) -> bool:
        return work.unread >= self._limits.unread

    def _must_wait(self, work: Work) -> bool:
        """Whether work is not begun beside other work: nobody reads it, or it is a job that wants the decoder alone."""
        return bool(self._running()) and (self._idle(work) or (isinstance(work, Job) and work.alone))

    def _slot_for(self, work: Work) -> int | None:
        """The first slot behind the active ones in which nobody reads; for a job the last one; None if it is taken."""
        taken = {each.prefill.slot for each in self._reading}
        if isinstance(work, Job):
            last = 0 if work.alone else self._decoder.batch - 1
            return last if self._job is None and last not in taken and last >= len(self._active) else None
        end = self._decoder.batch - (self._job is not None)
        return next((slot for slot in range(len(self._active), end) if slot not in taken), None)

    def _fits(self, work: Work) -> bool:
        """Whether the cache takes a sequence in; one alone always may."""
        if not isinstance(work, TokenSequence):
            return True
        there = self._tokens()
        return there == 0 or there + len(work.prompt) + len(work.ids) <= self._capacity

    def _tokens(self) -> int:
        """Tokens in the cache, those of prompts that are being read included."""
        return sum(len(each.prompt) + max(len(each.ids) - 1, 0) for each in self._sequences())

    def _begin(self, sequence: TokenSequence, slot: int) -> None:
        """Begin to read a sequence's prompt, or to put back a sequence that was preempted."""
        options = sequence.options
        if sequence.ids and sequence.route is not None:
            options = replace(options, route=sequence.route)
        try:
            prefill = self._decoder.admit(slot, sequence.tokens(), options, len(sequence.prompt))
        except AdaptcError as error:
            sequence.error = error
            return
        turn = self._read_tokens + len(sequence.prompt)
        self._reading.append(_Reading(sequence, prefill, turn, bool(sequence.ids)))

    # Preemption

    def _park(self) -> None:
        """Preempt streams that nobody reads, if anybody else would use the time."""
        idle = [each for each in self._sequences() if self._idle(each)]
        if idle and any(not self._idle(each) for each in (*self._running(), *self._waiting)):
            for each in idle:
                self._preempt(each)

    def _preempt_below(self, priority: int) -> bool:
        """Preempt the sequence of the lowest priority, if it is below another one; whether there was one."""
        below = [each for each in self._sequences() if each.priority < priority]
        if below:
            self._preempt(_last(below))
        return bool(below)

    def _preempt(self, sequence: TokenSequence) -> None:
        self._preemptions += 1
        if sequence in self._active:
            self._leave(self._active.index(sequence))
        else:
            self._stop_reading(next(each for each in self._reading if each.sequence is sequence))
        self._waiting.append(sequence)

    # Jobs and prompts

    def _advance_job(self) -> None:
        if self._job is None:
            return
        try:
            self._job.advance(self._job_slot())
        except AdaptcError as error:
            self._job.error = error
        if self._job.ended:
            self._end_job()

    def _job_slot(self) -> int:
        return 0 if self._job is None or self._job.alone else self._decoder.batch - 1

    def _end_job(self) -> None:
        slot, self._job = self._job_slot(), None
        self._decoder.retire(slot, _NOTHING, NO_OPTIONS, 0)

    def _read(self, before: Callable[[], object]) -> None:
        """Read prompts, the one first that is done soonest; those that wait longer come forward."""
        left = self._limits.piece if self._active else self._limits.alone
        while left > 0 and self._reading:
            reading = min(self._reading, key=lambda each: (-each.sequence.priority, each.turn))
            left -= max(1, self._read_piece(reading, max(2, left)))
            if self._reading:
                before()
                self._drop_ended()

    def _read_piece(self, reading: _Reading, most: int) -> int:
        """Read the next piece of a prompt; how many tokens were read."""
        sequence, prefill = reading.sequence, reading.prefill
        started, before = perf_counter(), prefill.done - prefill.cached
        try:
            logits = prefill.read(most)
            if prefill.complete:
                sequence.follow_route(self._decoder, prefill.slot)
            if logits is not None and not reading.resumed:
                sequence.take(logits)
        except AdaptcError as error:
            sequence.error = error
        now = perf_counter()
        sequence.prefill_seconds += now - started
        read = prefill.done - prefill.cached - before
        self._read_tokens += max(read, 0)
        if sequence.error is not None:
            self._stop_reading(reading)
        elif prefill.complete:
            self._finish_prompt(reading, now)
        return read

    def _finish_prompt(self, reading: _Reading, now: float) -> None:
        """Let a sequence whose prompt was read take part in steps, unless its first token was its last."""
        sequence = reading.sequence
        if not reading.resumed:
            sequence.cached_tokens = reading.prefill.cached
            sequence.time_to_first_token_seconds = now - sequence.began
            self._hits += reading.prefill.cached
            self._queries += len(sequence.prompt)
            sequence.complete_step()
        if sequence.ended:
            self._stop_reading(reading)
            return
        self._reading.remove(reading)
        self._join(sequence, reading.prefill)

    def _join(self, sequence: TokenSequence, prefill: Prefill) -> None:
        """Bring a sequence into the slot behind the active ones."""
        slot, vacated = len(self._active), prefill.slot
        in_the_way = next((each for each in self._reading if each.prefill.slot == slot), None)
        begun_anew = in_the_way is not None and not self._make_way(in_the_way, vacated)
        if vacated != slot:
            self._decoder.move(vacated, slot)
        self._active.append(sequence)
        put_back = prefill.done - len(sequence.prompt)
        if put_back < len(sequence.ids) - 1:
            self._replayed[sequence] = put_back
        if in_the_way is not None and begun_anew:
            self._begin(in_the_way.sequence, vacated)

    def _make_way(self, reading: _Reading, taken: int) -> bool:
        """Move a prompt that is being read further back; without a free slot it is given up, and begins anew."""
        there = {each.prefill.slot for each in self._reading} | {taken}
        end = self._decoder.batch - (self._job is not None)
        slot = next((slot for slot in range(len(self._active), end) if slot not in there), None)
        if slot is None:
            self._stop_reading(reading)
            return False
        self._decoder.move(reading.prefill.slot, slot)
        reading.prefill.slot = slot
        return True

    def _stop_reading(self, reading: _Reading) -> None:
        self._reading.remove(reading)
        self._retire(reading.prefill.slot, reading.sequence)

    # Steps

    def _decode(self) -> None:
        """Add one token to each active sequence."""
        while len(self._sequences()) > 1 and self._tokens() + len(self._active) > self._capacity:
            self._preempt(_last(self._sequences()))
        if not self._active:
            return
        started, active = perf_counter(), tuple(self._active)
        try:
            self._step(active)
        except AdaptcError as error:
            for sequence in active:
                sequence.error = error
        seconds = perf_counter() - started
        for slot, sequence in enumerate(active):
            if sequence.error is None:
                self._note(slot, sequence, seconds)
        for slot in reversed(range(len(active))):
            if active[slot].ended:
                self._leave(slot)

    def _step(self, active: tuple[TokenSequence, ...]) -> None:
        decoder = self._decoder
        for slot, sequence in enumerate(active):
            sequence.follow_route(decoder, slot)
        newest = [sequence.ids[self._replayed.get(sequence, -1)] for sequence in active]
        if not self._replayed and isinstance(decoder, TokenChooser) and all(each.sampler.free for each in active):
            for sequence, token in zip(active, decoder.choose(newest, [each.sampler for each in active]), strict=True):
                sequence.accept(token)
            return
        for sequence, logits in zip(active, decoder.decode(newest), strict=True):
            if sequence not in self._replayed:
                try:
                    sequence.take(logits)
                except AdaptcError as error:
                    sequence.error = error

    def _note(self, slot: int, sequence: TokenSequence, seconds: float) -> None:
        """Note what a step brought a sequence."""
        sequence.decode_seconds += seconds
        if sequence in self._replayed:
            self._replayed[sequence] += 1
            if self._replayed[sequence] == len(sequence.ids) - 1:
                del self._replayed[sequence]
            return
        if (ran := self._decoder.ran(slot)) is not None:
            sequence.ran.append(ran)
        sequence.complete_step()

    def _leave(self, slot: int) -> None:
        """Take a sequence out of its slot; the last active one moves there."""
        sequence, last = self._active[slot], self._active.pop()
        self._replayed.pop(sequence, None)
        self._retire(slot, sequence)
        if last is not sequence:
            self._decoder.move(len(self._active), slot)
            self._active[slot] = last

    def _retire(self, slot: int, sequence: TokenSequence) -> None:
        """Empty a slot; what is known of its sequence may serve others, unless an engine failed."""
        ids = _NOTHING if sequence.error is not None else sequence.tokens()
        if len(sequence.routes) > 1:
            ids = ids[: len(sequence.prompt)]  # what it wrote by one route, another read
        self._decoder.retire(slot, ids, sequence.options, len(sequence.prompt))

    def _fail(self, error: BaseException) -> None:
        """End all that was in the decoder."""
        for work in self._running():
            if isinstance(error, Exception):
                work.error = error
            else:  # the driver's thread met it, as Ctrl-C, and it is no fault of these
                work.error = RequestError(f"session: {type(error).__name__} interrupted the step; ask again")
                work.cancelled = True
        self._active.clear()
        self._reading.clear()
        self._replayed.clear()
        self._job = None
        with suppress(AdaptcError):
            for slot in range(self._decoder.batch):
                self._decoder.retire(slot, _NOTHING, NO_OPTIONS, 0)


def _last(sequences: Iterable[TokenSequence]) -> TokenSequence:
    """The one that came last among those of the lowest priority."""
    return max(sequences, key=lambda each: (-each.priority, each.arrival))


_NOTHING: Ids = np.zeros(0, np.int64)
