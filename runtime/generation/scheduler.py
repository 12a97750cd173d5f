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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.generation.slots import PromptInSlot, SlotTable
from adaptc.runtime.generation.status import Status
from adaptc.runtime.generation.step_watch import StepWatch
from adaptc.runtime.generation.verified_step import VerifiedSteps
from adaptc.runtime.generation.work import ReadingJob, Work
from adaptc.runtime.model.decoder import BatchDecoder, TokenChooser
from adaptc.runtime.model.verifier import Verifier
from adaptc.runtime.speculation.speculation import Speculation


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


class Scheduler:
    """Runs sequences and jobs in a decoder. One thread at a time may call `step`; any may call `add` and `cancel`."""

    def __init__(
        self,
        decoder: BatchDecoder,
        limits: Limits | None = None,
        watch: StepWatch | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """Begin without work.

        Args:
            decoder: Its slots belong to the scheduler.
            limits: How they are shared.
            watch: Times steps, and says how far budgets count.
            speculation: Drafts tokens for sequences that ask for it, of a decoder that is a `Verifier`.
        """
        self._decoder = decoder
        self._limits = limits or Limits()
        self._watch = watch or StepWatch()
        self._clock = self._watch.clock
        self._speculation = speculation
        self._verified: VerifiedSteps | None = None
        if speculation is not None and isinstance(decoder, Verifier):
            self._verified = VerifiedSteps(decoder, decoder, speculation, self._clock)
        self._added: deque[Work] = deque()  # by any thread, for the next step
        self._waiting: list[Work] = []
        self._slots = SlotTable(decoder)
        self._arrivals = count()
        self._read_tokens = 0  # of all prompts
        self._hits = self._queries = self._preemptions = self._written = 0
        self._capacity = decoder.batch * decoder.spec.max_tokens
        if self._limits.kv_tokens is not None:
            self._capacity = min(self._capacity, self._limits.kv_tokens)

    def add(self, work: Iterable[Work]) -> None:
        """Let work wait for its slots."""
        now = self._clock()
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
            running=len(self._slots.running()),
            waiting=len(self._waiting) + len(self._added),
            kv_tokens=self._slots.tokens(),
            kv_capacity=self._capacity,
            prefix_hit_tokens=self._hits,
            prefix_query_tokens=self._queries,
            preemptions=self._preemptions,
            step_seconds=self._watch.step_seconds,
            budget_ceiling=self._watch.ceiling,
            pressure=self._watch.pressure,
            read_tokens=self._read_tokens,
            written_tokens=self._written,
        )

    def step(self, before: Callable[[], object] = lambda: None) -> None:
        """Read pieces of prompts, and add one token to each active sequence.

        Args:
            before: Called before each run of an engine; it may cancel work.

        What an engine raises ends the work that met it, see `Work.error`. Any other exception ends all that was in the
        decoder, whose state is not known then, and is raised.
        """
        self._watch.begin(lambda: (*self._slots.running(), *self._waiting, *self._added))
        try:
            before()
            self._drop_ended()
            self._admit()
            self._advance_job()
            self._read(before)
            before()
            self._drop_ended()
            wrote = self._decode()
        except BaseException as error:
            self._fail(error)
            raise
        self._watch.end(self._slots.running, self._wanted, wrote, bool(self._slots.active))

    def _drop_ended(self) -> None:
        while self._added:
            self._waiting.append(self._added.popleft())
        self._waiting = [work for work in self._waiting if not work.ended]
        self._slots.drop_ended()

    def _admit(self) -> None:
        """Give slots to those that wait, the first ones first, as long as there is room for the next one."""
        self._park()
        slots = self._slots
        while self._waiting and not (slots.job is not None and slots.job.alone):
            work = self._next()
            if self._must_wait(work):
                return
            slot = slots.free_for(work)
            if slot is None or not self._fits(work):
                if not self._preempt_below(work.priority):
                    return
                continue
            if isinstance(work, ReadingJob):
                slots.job = work
            elif isinstance(work, TokenSequence):
                work.limit_budget(self._decoder, self._watch.ceiling)
                slots.begin(work, slot, self._read_tokens + len(work.prompt))
            self._waiting.remove(work)

    def _next(self) -> Work:
        """The work that is first: by priority, then of the caller who has fewest in slots, then in order of arrival."""
        slots = Counter(id(each.owner) for each in self._slots.running())
        return min(
            self._waiting,
            key=lambda work: (self._idle(work), -work.priority, slots[id(work.owner)], work.arrival),
        )

    def _wanted(self) -> list[Work]:
        """What waits for a slot and has a reader."""
        return [each for each in (*self._waiting, *self._added) if not self._idle(each)]

    def _idle(self, work: Work) -> bool:
        return work.unread >= self._limits.unread

    def _must_wait(self, work: Work) -> bool:
        """Whether work is not begun beside other work: nobody reads it, or it is a job that wants the decoder alone."""
        wants_none_beside = self._idle(work) or (isinstance(work, ReadingJob) and work.alone)
        return wants_none_beside and bool(self._slots.running())

    def _fits(self, work: Work) -> bool:
        """Whether the cache takes a sequence in; one alone always may."""
        if not isinstance(work, TokenSequence):
            return True
        there = self._slots.tokens()
        return there == 0 or there + len(work.prompt) + len(work.ids) <= self._capacity

    def _park(self) -> None:
        """Preempt streams that nobody reads, if anybody else would use the time."""
        idle = [each for each in self._slots.sequences() if self._idle(each)]
        if idle and any(not self._idle(each) for each in (*self._slots.running(), *self._waiting)):
            for each in idle:
                self._preempt(each)

    def _preempt_below(self, priority: int) -> bool:
        """Preempt the sequence of the lowest priority, if it is below another one; whether there was one."""
        below = [each for each in self._slots.sequences() if each.priority < priority]
        if below:
            self._preempt(_last(below))
        return bool(below)

    def _preempt(self, sequence: TokenSequence) -> None:
        self._preemptions += 1
        self._slots.take_out(sequence)
        self._waiting.append(sequence)

    def _advance_job(self) -> None:
        job = self._slots.job
        if job is None:
            return
        try:
            job.advance(self._slots.job_slot)
        except AdaptcError as error:
            job.error = error
        if job.ended:
            self._slots.end_job()

    def _read(self, before: Callable[[], object]) -> None:
        """Read prompts, the one first that is done soonest; those that wait longer come forward."""
        slots = self._slots
        left = self._limits.piece if slots.active else self._limits.alone
        while left > 0 and slots.reading:
            reading = min(slots.reading, key=lambda each: (-each.sequence.priority, each.turn))
            left -= max(1, self._read_piece(reading, max(2, left)))
            if slots.reading:
                before()
                self._drop_ended()

    def _read_piece(self, reading: PromptInSlot, most: int) -> int:
        """Read the next piece of a prompt; how many tokens were read."""
        sequence, prefill = reading.sequence, reading.prefill
        started, tokens = self._clock(), prefill.done - prefill.cached
        try:
            logits = prefill.read(most)
            if prefill.complete:
                sequence.follow_route(self._decoder, prefill.slot)
            if logits is not None and not reading.resumed:
                sequence.take(logits)
        except AdaptcError as error:
            sequence.error = error
        now = self._clock()
        sequence.prefill_seconds += now - started
        read = max(prefill.done - prefill.cached - tokens, 0)  # less if a tail knew less than its trunk
        self._read_tokens += read
        if sequence.error is not None:
            self._slots.stop_reading(reading)
        elif prefill.complete:
            self._finish_prompt(reading, now)
        return read

    def _finish_prompt(self, reading: PromptInSlot, now: float) -> None:
        """Let a sequence whose prompt was read take part in steps, unless its first token was its last."""
        sequence = reading.sequence
        if not reading.resumed:
            sequence.cached_tokens = reading.prefill.cached
            sequence.time_to_first_token_seconds = now - sequence.began
            self._hits += reading.prefill.cached
            self._queries += len(sequence.prompt)
            self._written += 1
            sequence.complete_step()
        if sequence.ended:
            self._slots.stop_reading(reading)
        else:
            self._slots.join(reading)

    def _decode(self) -> bool:
        """Add one token to each active sequence; whether there was one."""
        slots = self._slots
        while len(slots.sequences()) > 1 and slots.tokens() + len(slots.active) > self._capacity:
            self._preempt(_last(slots.sequences()))
        if not slots.active:
            return False
        started, active = self._clock(), tuple(slots.active)
        if self._verified is not None:
            room = self._capacity - slots.tokens()
            if (proposals := self._verified.proposals(active, self._watch.ceiling, room)) is not None:
                self._written += self._verified.run(active, proposals)
                self._note_seconds(active, self._clock() - started)
                slots.drop_ended()
                return True
        began = self._clock()  # what drafting took is no part of a step's cost
        tokens = [sequence.feed() for sequence in active]
        writing = [sequence.fed_all for sequence in active]
        try:
            self._run_step(active, tokens, writing)
        except AdaptcError as error:
            for sequence in active:
                sequence.error = error
        now = self._clock()
        if self._speculation is not None:
            self._speculation.costs.note_plain(len(active), now - began)
        self._note_seconds(active, now - started)
        for slot, (sequence, writes) in enumerate(zip(active, writing, strict=True)):
            if writes and sequence.error is None:
                if (ran := self._decoder.ran(slot)) is not None:
                    sequence.ran.append(ran)
                self._written += 1
                sequence.complete_step()
        slots.drop_ended()
        return True

    def _note_seconds(self, active: Sequence[TokenSequence], seconds: float) -> None:
        """Add a step's time to all of its sequences: each waited for the others."""
        for sequence in active:
            sequence.decode_seconds += seconds

    def _run_step(self, active: Sequence[TokenSequence], tokens: Sequence[int], writing: Sequence[bool]) -> None:
        """Have the decoder read a token of each sequence, and those that write choose their next one."""
        decoder = self._decoder
        ceiling = self._watch.ceiling
        for slot, sequence in enumerate(active):
            sequence.follow_route(decoder, slot)
            sequence.limit_budget(decoder, ceiling, slot)
        if isinstance(decoder, TokenChooser) and all(writing) and all(each.sampler.free for each in active):
            for sequence, token in zip(active, decoder.choose(tokens, [each.sampler for each in active]), strict=True):
                sequence.accept(token)
            return
        for sequence, logits, writes in zip(active, decoder.decode(tokens), writing, strict=True):
            if writes:
                try:
                    sequence.take(logits)
                except AdaptcError as error:
                    sequence.error = error

    def _fail(self, error: BaseException) -> None:
        """End all that was in the decoder; if nothing was, what waits met it."""
        waiting = [*self._waiting, *self._added] if isinstance(error, Exception) else []
        for work in self._slots.running() or waiting:
            if isinstance(error, Exception):
                work.error = error
            else:  # the driver's thread met it, as Ctrl-C, and it is no fault of these
                work.error = RequestError(f"session: {type(error).__name__} interrupted the step; ask again")
                work.cancelled = True
        if self._speculation is not None:
            self._speculation.clear()
        self._slots.clear()


def _last(sequences: Iterable[TokenSequence]) -> TokenSequence:
    """The one that came last among those of the lowest priority."""
    return max(sequences, key=lambda each: (-each.priority, each.arrival))
