"""A decoder graph together with its KV cache in the host's memory, over any engine that runs graphs on arrays.

The graph takes any number of tokens of one sequence, or one token of each of many sequences. So prompts are read one by
one, in chunks, and later tokens are computed together. Active sequences occupy the first slots of the cache, so a step
for n of them binds the first n slots and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import BoundRun, Engine
from adaptc.runtime.backends.host.memory import lazy_zeros
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import (
    CACHE_KINDS,
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    RAN,
    SEQLENS_K,
    THRESHOLD,
    TOTAL_SEQUENCE_LENGTH,
    past,
    present,
)
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import DENSE, batched_dense, threshold_of
from adaptc.runtime.model.decoder import Ids, Logits, States, state_width
from adaptc.runtime.model.inserts import ExtraInputs, Feeds, Inserts
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.model.single_route import SingleRoute
from adaptc.runtime.validation import check_count


class HostDecoder(SingleRoute):
    """A `BatchDecoder` of one graph; each sequence is a prefix of the positions of its cache slot.

    A trunk gives states (float32 [..., width]) where another graph gives logits, and a tail reads them where another
    reads token ids; `routed.HostRoutedDecoder` puts them together.

    Attributes:
        spec: What the graph expects.
        batch: The number of slots.
        gates: The graph's skip gates; None if it has none.
    """

    def __init__(
        self, engine: Engine, spec: DecoderSpec, batch: int = 1, chunk: int = 512, gates: SkipGates | None = None
    ) -> None:
        """Allocate the cache.

        Args:
            engine: A graph in the decoder form of docs/bundle.md; closed with the decoder.
            spec: What the graph expects.
            batch: Slots of the cache, from 1.
            chunk: The largest number of prompt tokens that go through the graph at once, from 1.
            gates: The graph's skip gates, if it has any.

        Raises:
            RequestError: a number is out of range, or the cache does not fit in memory.
            EngineError: the graph is not of the decoder form.
        """
        batch, chunk = check_count("batch", batch), check_count("chunk", chunk)
        self.spec = spec
        self.batch = batch
        self.gates = gates
        self._engine = engine
        self._chunk = chunk
        self._cache = _cache(spec, batch)
        self._extra = ExtraInputs(engine.inputs, batch)
        self._source, self._ids = _source(engine, batch)
        result_width = state_width(engine.outputs)
        self._result, self._width = (LOGITS, spec.vocab_size) if result_width is None else (HIDDEN, result_width)
        self._logits = np.empty((batch, 1, self._width), np.float32)
        self._last = np.zeros(batch, np.int32)  # position of each slot's newest token
        self._total = np.zeros((), np.int32)
        self._prompt_total = np.zeros((), np.int32)
        self._prompt_from = np.zeros(1, np.int64)
        self._levels = np.full(batch, DENSE, np.float32)  # each slot's threshold
        self._warmup = 0 if gates is None else gates.warmup
        self._threshold = np.full((batch, 1), DENSE, np.float32)
        self._prompt_threshold = np.full((1, chunk), DENSE, np.float32)
        self._ran = np.ones(0 if gates is None else len(gates.layers), np.bool_)
        self._steps: dict[int, BoundRun] = {}  # by the number of sequences
        self._readers: dict[int, BoundRun] = {}  # by slot
        self._bind_step(1)  # a graph of another form is refused now, not in the middle of a request

    def start(self, slot: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`."""
        inserts = None if options.inserts is None else options.inserts()
        return self.prefill(slot, ids, self.threshold(options), inserts)

    def threshold(self, options: RequestOptions) -> float:
        """What the gates are compared with under these options."""
        return threshold_of(self.gates, options.budget)

    def dense(self, options: RequestOptions) -> bool:
        """See `BatchDecoder.dense`."""
        return self.threshold(options) == DENSE

    def prefill(self, slot: int, ids: Ids | States, threshold: float = DENSE, inserts: Inserts | None = None) -> Logits:
        """Read a prompt into a slot; every block runs.

        Args:
            slot: Its old sequence is lost.
            ids: int64 [tokens], 1 to `max_tokens`; or float32 [tokens, width] for a tail.
            threshold: What the gates are compared with for the sequence's later tokens; -inf runs every block.
            inserts: Features that stand in the place of some tokens, if the graph takes images.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep.
        """
        for start in range(0, len(ids), self._chunk):
            block = ids[start : start + self._chunk]
            kept = 1 if self._result == LOGITS else len(block)
            logits = self._read(slot, start, block, kept, inserts=inserts)
        self._levels[slot] = threshold
        first: Logits = logits[0]
        return first

    def blank(self, tokens: int) -> Ids | States:
        """A prompt of zeros of the kind that the graph reads, for timing."""
        return np.zeros((tokens, *self._ids.shape[2:]), self._ids.dtype)

    def states(self, slot: int, ids: Ids, threshold: float, into: States) -> None:
        """Read a prompt into a slot of a trunk.

        Args:
            slot: Its old sequence is lost.
            ids: int64 [tokens], 1 to `max_tokens`.
            threshold: See `prefill`.
            into: float32 [tokens, width], receives the prompt's states.
        """
        for start in range(0, len(ids), self._chunk):
            block = slice(start, start + self._chunk)
            self._read(slot, start, ids[block], kept=len(ids[block]), into=into[block])
        self._levels[slot] = threshold

    def score(self, ids: Ids | States, most: int, options: RequestOptions = NO_OPTIONS) -> Iterator[Logits]:
        """See `BatchDecoder.score`; a tail reads float32 [tokens, width] in the place of ids."""
        size = min(most, self._chunk)
        for start in range(0, len(ids), size):
            block = ids[start : start + size]
            yield self._read(0, start, block, kept=len(block))

    def decode(self, tokens: Sequence[int] | Ids | States) -> Logits:
        """See `BatchDecoder.decode`.

        Args:
            tokens: One for each of the first slots; float32 [sequences, width] for a tail.

        Returns:
            float32 [sequences, vocab], or states for a trunk; valid until the next call.
        """
        count = len(tokens)
        last = self._last[:count]
        last += 1
        self._ids[:count, 0] = tokens
        self._total[...] = last.max() + 1
        if self.gates is not None:
            self._set_thresholds(count)
        step = self._steps.get(count) or self._bind_step(count)
        self._extra.advance(last)
        step()
        return self._logits[:count, 0]

    def ran(self, slot: int) -> bytes | None:
        """See `BatchDecoder.ran`."""
        if self.gates is None or self._last[slot] < self._warmup:
            return None
        return self._ran.tobytes()

    def move(self, slot: int, to: int) -> None:
        """See `BatchDecoder.move`."""
        end = int(self._last[slot]) + 1
        for cache in self._cache.values():
            cache[to, :, :end] = cache[slot, :, :end]
        self._last[to] = self._last[slot]
        self._levels[to] = self._levels[slot]
        self._extra.move(slot, to)

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        self._steps.clear()
        self._readers.clear()
        self._cache.clear()
        self._engine.close()

    def _set_thresholds(self, count: int) -> None:
        """Set the threshold of each sequence for the next step."""
        threshold = self._threshold[:count, 0]
        if batched_dense(self.gates, count):
            threshold[:] = DENSE
        else:
            threshold[:] = self._levels[:count]
            threshold[self._last[:count] < self._warmup] = DENSE

    def _read(
        self,
        slot: int,
        start: int,
        ids: Ids | States,
        kept: int,
        into: States | None = None,
        inserts: Inserts | None = None,
    ) -> Logits:
        """Add tokens to a slot that holds `start` of them; logits of the last `kept`: [kept, vocab]."""
        self._last[slot] = start + len(ids) - 1
        self._prompt_total[...] = start + len(ids)
        self._prompt_from[0] = len(ids) - kept
        logits = np.empty((1, kept, self._width), np.float32) if into is None else into[None]
        reader = self._readers.get(slot)
        threshold = self._prompt_threshold[:, : len(ids)]
        extra = self._extra.read(slot, start, len(ids), inserts)
        if reader is None:
            slots = slice(slot, slot + 1)
            reader = self._bind(slots, ids[None], self._prompt_total, self._prompt_from, logits, threshold, extra)
            self._readers[slot] = reader
        else:
            gated = {} if self.gates is None else {THRESHOLD: threshold}
            reader.rebind({self._source: ids[None], **gated, **extra}, {self._result: logits})
        reader()
        return logits.reshape(kept, -1)

    def _bind_step(self, count: int) -> BoundRun:
        """One token for each of the first slots; bound once, since only the arrays' contents change."""
        slots = slice(0, count)
        first = np.zeros(1, np.int64)
        arrays = self._logits[slots], self._threshold[slots], self._extra.step(count)
        step = self._bind(slots, self._ids[slots], self._total, first, *arrays)
        self._steps[count] = step
        return step

    def _bind(
        self,
        slots: slice,
        ids: npt.NDArray[Any],
        total: npt.NDArray[np.int32],
        first: Ids,
        logits: Logits,
        threshold: Logits,
        extra: Feeds,
    ) -> BoundRun:
        cache = {where: whole[slots] for where, whole in self._cache.items()}
        feeds: dict[str, npt.NDArray[Any]] = {
            self._source: ids,
            SEQLENS_K: self._last[slots],
            TOTAL_SEQUENCE_LENGTH: total,
            **({LOGITS_FROM: first} if self._result == LOGITS else {}),
            **extra,
            **{past(*where): part for where, part in cache.items()},
        }
        updated = {present(*where): part for where, part in cache.items()}
        outputs: dict[str, npt.NDArray[Any]] = {self._result: logits, **updated}
        if self.gates is not None:
            feeds[THRESHOLD] = threshold
            outputs[RAN] = self._ran
        return self._engine.bind(feeds, outputs)


def _source(engine: Engine, batch: int) -> tuple[str, npt.NDArray[Any]]:
    """The input that a step writes tokens or states to, and its array: [batch, 1] or [batch, 1, width]."""
    width = state_width(engine.inputs)
    if width is None:
        return INPUT_IDS, np.zeros((batch, 1), np.int64)
    return HIDDEN, np.zeros((batch, 1, width), np.float32)


def _cache(spec: DecoderSpec, batch: int) -> dict[tuple[int, str], npt.NDArray[np.float32]]:
    """Keys and values by layer and kind: float32 [batch, kv_heads, max_tokens, head_dim]."""
    size = 8 * batch * spec.max_tokens * sum(heads * width for heads, width in spec.kv)
    try:
        return {
            (layer, kind): lazy_zeros((batch, heads, spec.max_tokens, width))
            for layer, (heads, width) in enumerate(spec.kv)
            for kind in CACHE_KINDS
        }
    except MemoryError as error:
        raise RequestError(
            f"batch: {batch} sequences of {spec.max_tokens} tokens need {size / 2**30:.1f} GiB of memory"
        ) from error
