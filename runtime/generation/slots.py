"""Who is in which slot: active sequences in the first ones, prompts that are being read, and a job behind them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.generation.work import ReadingJob, Work
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Prefill
from adaptc.runtime.model.options import NO_OPTIONS

_NOTHING: Ids = np.zeros(0, np.int64)


@dataclass(eq=False)
class PromptInSlot:
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


class SlotTable:
    """The slots of a decoder and who is in them.

    Attributes:
        active: Sequences that take part in steps, by slot.
        reading: Those whose prompts are being read.
        job: What reads a text beside them, or alone.
    """

    def __init__(self, decoder: BatchDecoder) -> None:
        """Begin empty.

        Args:
            decoder: Its slots belong to the table.
        """
        self.active: list[TokenSequence] = []
        self.reading: list[PromptInSlot] = []
        self.job: ReadingJob | None = None
        self._decoder = decoder

    def running(self) -> list[Work]:
        """All that has a slot."""
        return [*self.sequences(), *(() if self.job is None else (self.job,))]

    def sequences(self) -> list[TokenSequence]:
        """All sequences that have a slot."""
        return [*self.active, *(each.sequence for each in tuple(self.reading))]

    def tokens(self) -> int:
        """Tokens in the cache, those of prompts that are being read included."""
        return sum(len(each.prompt) + max(len(each.ids) - 1, 0) for each in self.sequences())

    def free_for(self, work: Work) -> int | None:
        """A slot for work that waits: the first one behind the active ones, for a job the last; None if it is taken."""
        if not isinstance(work, ReadingJob):
            return self._free()
        last = 0 if work.alone else self._decoder.batch - 1
        taken = {each.prefill.slot for each in self.reading}
        return last if self.job is None and last not in taken and last >= len(self.active) else None

    def begin(self, sequence: TokenSequence, slot: int, turn: int) -> None:
        """Begin to read a sequence's prompt, or to put one back that was preempted; its `error` says if that fails.

        Args:
            sequence: The sequence.
            slot: A free one.
            turn: See `PromptInSlot`.
        """
        options = sequence.options
        if sequence.ids and sequence.route is not None:
            options = replace(options, route=sequence.route)
        try:
            prefill = self._decoder.admit(slot, sequence.tokens(), options, len(sequence.prompt))
        except AdaptcError as error:
            sequence.error = error
            return
        self.reading.append(PromptInSlot(sequence, prefill, turn, bool(sequence.ids)))

    def join(self, reading: PromptInSlot) -> None:
        """Bring a sequence whose prompt was read into the slot behind the active ones."""
        self.reading.remove(reading)
        slot, vacated = len(self.active), reading.prefill.slot
        in_the_way = next((each for each in self.reading if each.prefill.slot == slot), None)
        begun_anew = in_the_way is not None and not self._make_way(in_the_way, vacated)
        if vacated != slot:
            self._decoder.move(vacated, slot)
        self.active.append(reading.sequence)
        reading.sequence.fed = reading.prefill.done - len(reading.sequence.prompt)
        if in_the_way is not None and begun_anew:
            self.begin(in_the_way.sequence, vacated, in_the_way.turn)

    def stop_reading(self, reading: PromptInSlot) -> None:
        """Take a sequence out whose prompt is being read."""
        self.reading.remove(reading)
        self._retire(reading.prefill.slot, reading.sequence)

    def leave(self, slot: int) -> None:
        """Take an active sequence out; the last active one moves there."""
        sequence, last = self.active[slot], self.active.pop()
        self._retire(slot, sequence)
        if last is not sequence:
            self._decoder.move(len(self.active), slot)
            self.active[slot] = last

    def take_out(self, sequence: TokenSequence) -> None:
        """Take a sequence out, wherever it is."""
        if sequence in self.active:
            self.leave(self.active.index(sequence))
        else:
            self.stop_reading(next(each for each in self.reading if each.sequence is sequence))

    @property
    def job_slot(self) -> int:
        """The slot of the job."""
        return 0 if self.job is None or self.job.alone else self._decoder.batch - 1

    def end_job(self) -> None:
        """Take the job out."""
        slot, self.job = self.job_slot, None
        self._decoder.retire(slot, _NOTHING, NO_OPTIONS, 0)

    def drop_ended(self) -> None:
        """Take out all that has ended."""
        for reading in [each for each in self.reading if each.sequence.ended]:
            self.stop_reading(reading)
        for slot in reversed([slot for slot, each in enumerate(self.active) if each.ended]):
            self.leave(slot)
        if self.job is not None and self.job.ended:
            self.end_job()

    def clear(self) -> None:
        """Empty all slots of a decoder whose state is not known."""
        self.active.clear()
        self.reading.clear()
        self.job = None
        with suppress(AdaptcError):
            for slot in range(self._decoder.batch):
                self._decoder.retire(slot, _NOTHING, NO_OPTIONS, 0)

    def _free(self, but: int | None = None) -> int | None:
        """The first slot behind the active ones in which nobody reads, and no job; None if there is none."""
        taken = {each.prefill.slot for each in self.reading} | {but}
        end = self._decoder.batch - (self.job is not None)
        return next((slot for slot in range(len(self.active), end) if slot not in taken), None)

    def _make_way(self, reading: PromptInSlot, taken: int) -> bool:
        """Move a prompt that is being read further back; without a free slot it is given up, to begin anew."""
        slot = self._free(but=taken)
        if slot is None:
            self.stop_reading(reading)
            return False
        self._decoder.move(reading.prefill.slot, slot)
        reading.prefill.slot = slot
        return True

    def _retire(self, slot: int, sequence: TokenSequence) -> None:
        """Empty a slot; what is known of its sequence may serve others, unless an engine failed."""
        ids = _NOTHING if sequence.error is not None else sequence.tokens()
        if not sequence.uniform:
            ids = ids[: len(sequence.prompt)]  # of what it wrote nobody else can tell how
        self._decoder.retire(slot, ids, sequence.options, len(sequence.prompt))
