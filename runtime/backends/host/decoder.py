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
from adaptc.runtime.backends.host.kv_slots import KvSlots
from adaptc.runtime.backends.host.prefill import HostPrefill
from adaptc.runtime.backends.host.prefix_cache import BLOCK, PrefixCache, block_keys
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import (
    HIDDEN,
    LOGITS,
    LOGITS_FROM,
    RAN,
    SEQLENS_K,
    THRESHOLD,
    TOKEN_POSITIONS,
    TOTAL_SEQUENCE_LENGTH,
    past,
    present,
)
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE, batched_dense, threshold_of
from adaptc.runtime.model.decoder import Ids, Logits, States, cache_dtype, feed_of, piece_size, read_whole, state_width
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
        kv: The cache.
        name: The graph's name.
    """

    def __init__(
        self,
        engine: Engine,
        spec: DecoderSpec,
        batch: int = 1,
        chunk: int = 512,
        gates: SkipGates | None = None,
        *,
        prefixes: PrefixCache | None = None,
        name: str = "",
        adapters: tuple[str, ...] = (),
    ) -> None:
        """Allocate the cache.

        Args:
            engine: A graph in the decoder form of docs/bundle.md; closed with the decoder.
            spec: What the graph expects.
            batch: Slots of the cache, from 1.
            chunk: The largest number of prompt tokens that go through the graph at once, from 1; fewer do where layers
                keep a window that has not so much room.
            gates: The graph's skip gates, if it has any.
            prefixes: Keeps what was read for prompts that begin alike; None keeps nothing.
            name: The graph's name, which tells its entries in `prefixes` from those of others.
            adapters: Names of the adapters that its input `adapter` counts.

        Raises:
            RequestError: a number is out of range, or the cache does not fit in memory.
            EngineError: the graph is not of the decoder form.
        """
        batch, chunk = check_count("batch", batch), check_count("chunk", chunk)
        self.spec, self.batch, self.gates, self.name, self.adapters = spec, batch, gates, name, adapters
        self._engine = engine
        turns = any(tensor.name == TOKEN_POSITIONS for tensor in engine.inputs)
        self.kv = KvSlots(spec, batch, cache_dtype(engine.inputs), turns=turns)
        self._chunk = chunk if self.kv.piece is None else min(chunk, self.kv.piece - 1)  # see `piece_size`
        self._prefixes = PrefixCache(0) if prefixes is None else prefixes
        self._extra = ExtraInputs(engine.inputs, batch)
        self._source, self._ids = feed_of(engine.inputs, batch)
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
        self._prompt_threshold = np.full((1, self._chunk + 1), DENSE, np.float32)
        self._apart = any(tensor.name == RAN and len(tensor.shape) == 2 for tensor in engine.outputs)
        self._ran = np.ones((batch if self._apart else 1, 0 if gates is None else len(gates.layers)), np.bool_)
        self._steps: dict[int, BoundRun] = {}  # by the number of sequences
        self._readers: dict[int, BoundRun] = {}  # by slot
        self._bind_step(1)  # a graph of another form is refused now, not in the middle of a request

    @property
    def chunk(self) -> int:
        """The largest number of prompt tokens that go through the graph at once."""
        return self._chunk

    def admit(self, slot: int, ids: Ids, options: RequestOptions, prompt: int | None = None) -> HostPrefill:
        """See `BatchDecoder.admit`."""
        inserts = None if options.inserts is None else options.inserts()
        prompt = len(ids) if prompt is None else prompt
        keys = self.keys(ids, prompt, options, self.dense(options))
        return self.open(slot, ids, prompt, keys, self.threshold(options), inserts, adapter=self.adapter_index(options))

    def open(
        self,
        slot: int,
        source: Ids | States,
        prompt: int,
        keys: list[bytes],
        threshold: float = DENSE,
        inserts: Inserts | None = None,
        into: States | None = None,
        adapter: int = 0,
    ) -> HostPrefill:
        """Begin to read a prompt into a slot; every block runs.

        Args:
            slot: Its old sequence is lost.
            source: int64 [tokens], 1 to `max_tokens`; or float32 [tokens, width] for a tail.
            prompt: The number of them that belong to the prompt.
            keys: Of their blocks; none if their entries are not to be shared.
            threshold: What the gates are compared with for the sequence's later tokens; -inf runs every block.
            inserts: Features that stand in the place of some tokens, if the graph takes images.
            into: float32 [batch, max_tokens, width], receives the prompt's states, for a trunk.
            adapter: Index of the sequence's adapter from 1; 0 for none.
        """
        self.set_length(slot, 0)
        self._levels[slot] = threshold
        self._extra.clear(slot, adapter)
        return HostPrefill(self, slot, source, prompt, keys, self._prefixes, inserts, into)

    def keys(self, ids: Ids, prompt: int, options: RequestOptions, dense: bool) -> list[bytes]:
        """The keys of a sequence's blocks, see `block_keys`; none if they are not kept, or if it has images.

        What was written with a budget is of use with it only.

        Args:
            ids: int64 [tokens].
            prompt: As many of them are the prompt.
            options: As the sequence runs.
            dense: Whether every block of the model runs.
        """
        if not self._prefixes.limit or options.inserts is not None:
            return []
        salt = b"" if dense else repr((options.budget, options.ceiling, options.scored)).encode()
        return block_keys(ids, prompt, salt, options.adapter or "")

    def start(self, slot: int, ids: Ids, options: RequestOptions) -> Logits:
        """See `BatchDecoder.start`."""
        return read_whole(self.admit(slot, ids, options), self._chunk)

    def retire(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> None:
        """See `BatchDecoder.retire`."""
        self.keep(slot, self.keys(ids[: self.length(slot)], prompt, options, self.dense(options)))

    def keep(self, slot: int, keys: list[bytes], states: States | None = None) -> None:
        """Keep the blocks of a sequence that are not kept yet.

        Args:
            slot: Of the sequence.
            keys: Those of its blocks.
            states: float32 [max_tokens, width], a trunk's.
        """
        for index, key in enumerate(keys):
            self.keep_block(slot, index, key, states)
        self._prefixes.touch(self.name, keys)

    def keep_block(self, slot: int, index: int, key: bytes, states: States | None = None) -> None:
        """Keep one block of the sequence in a slot, unless it is there."""
        if self._prefixes.lacks(self.name, key):
            entry = self.kv.block(slot, index * BLOCK)
            if states is not None:
                entry.append(states[index * BLOCK : (index + 1) * BLOCK].copy())
            self._prefixes.put(self.name, key, entry)

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        return int(self._last[slot]) + 1

    def set_length(self, slot: int, tokens: int) -> None:
        """Say how many tokens a slot has after blocks were written to its cache."""
        self._last[slot] = tokens - 1
        self.kv.set_length(slot, tokens)

    def threshold(self, options: RequestOptions) -> float:
        """What the gates are compared with under these options."""
        return threshold_of(self.gates, options.budget, options.ceiling, scored=options.scored)

    def dense(self, options: RequestOptions) -> bool:
        """See `BatchDecoder.dense`."""
        return self.threshold(options) == DENSE

    def prefill(self, slot: int, ids: Ids | States, threshold: float = DENSE, inserts: Inserts | None = None) -> Logits:
        """Read a prompt into a slot in one go, and share nothing; see `open`.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep.
        """
        return read_whole(self.open(slot, ids, len(ids), [], threshold, inserts), self._chunk)

    def blank(self, tokens: int) -> Ids | States:
        """A prompt of zeros of the kind that the graph reads, for timing."""
        return np.zeros((tokens, *self._ids.shape[2:]), self._ids.dtype)

    def score(
        self, ids: Ids | States, most: int, options: RequestOptions = NO_OPTIONS, slot: int = 0
    ) -> Iterator[Logits]:
        """See `BatchDecoder.score`; a tail reads float32 [tokens, width] in the place of ids."""
        start, self._levels[slot] = 0, DENSE
        self._extra.clear(slot, self.adapter_index(options))
        while start < len(ids):
            block = ids[start : start + piece_size(len(ids) - start, min(most, self._chunk))]
            yield self._read(slot, start, block, kept=len(block))
            start += len(block)

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
        self.kv.step(last)
        self._extra.advance(last)
        step()
        return self._logits[:count, 0]

    def extend(self, slot: int, tokens: Ids | States, options: RequestOptions | None = None) -> Logits:
        """Add tokens to the sequence in a slot, several at once.

        Args:
            slot: Of a sequence that has room for them.
            tokens: int64 [tokens], or float32 [tokens, width] for a tail; at least one.
            options: With another budget, for a token alone; several, and those of the warm-up, run every block.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep and to change.
        """
        level, logits = DENSE, None
        if len(tokens) == 1 and self.length(slot) >= self._warmup:
            level = float(self._levels[slot]) if options is None else self.threshold(options)
        for first in range(0, len(tokens), self._chunk):
            logits = self._read(slot, self.length(slot), tokens[first : first + self._chunk], kept=1, level=level)
        assert logits is not None, "at least one token"
        row: Logits = logits[0]
        return row

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """See `BatchDecoder.set_budget`."""
        self._levels[slot] = self.threshold(options)

    def ran(self, slot: int) -> bytes | None:
        """See `BatchDecoder.ran`."""
        if self.gates is None or self._last[slot] < self._warmup:
            return None
        ran: bytes = self._ran[slot if self._apart else 0].tobytes()
        return ran

    def move(self, slot: int, to: int) -> None:
        """See `BatchDecoder.move`."""
        self.kv.move(slot, to, self.length(slot))
        self._last[to] = self._last[slot]
        self._levels[to] = self._levels[slot]
        self._extra.move(slot, to)

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        self._steps.clear()
        self._readers.clear()
        self.kv.clear()
        self._prefixes.clear()
        self._engine.close()

    def _set_thresholds(self, count: int) -> None:
        """Set the threshold of each sequence for the next step."""
        threshold = self._threshold[:count, 0]
        if batched_dense(self.gates, count):
            threshold[:] = DENSE
        else:
            threshold[:] = self._levels[:count]
            threshold[self._last[:count] < self._warmup] = DENSE

    def read_piece(
        self, slot: int, start: int, piece: Ids | States, into: States | None, inserts: Inserts | None
    ) -> Logits:
        """Add tokens of a prompt to a slot that holds `start` of them.

        Args:
            slot: Of the sequence.
            start: As many tokens as it has.
            piece: int64 [tokens] or float32 [tokens, width], those that follow.
            into: float32 [tokens, width], receives a trunk's states.
            inserts: See `open`; those of the whole prompt.

        Returns:
            float32 [1, vocab]: logits after the last token; a trunk's states, [tokens, width].
        """
        kept = 1 if self._result == LOGITS else len(piece)
        return self._read(slot, start, piece, kept, into, inserts)

    def _read(
        self,
        slot: int,
        start: int,
        ids: Ids | States,
        kept: int,
        into: States | None = None,
        inserts: Inserts | None = None,
        level: float = DENSE,
    ) -> Logits:
        """Add tokens to a slot that holds `start` of them; logits of the last `kept`: [kept, vocab]."""
        self._last[slot] = start + len(ids) - 1
        self._prompt_total[...] = start + len(ids)
        self._prompt_from[0] = len(ids) - kept
        logits = np.empty((1, kept, self._width), np.float32) if into is None else into[None]
        reader = self._readers.get(slot)
        if len(ids) > self._prompt_threshold.shape[1]:  # an image that is read whole
            self._prompt_threshold = np.full((1, len(ids)), DENSE, np.float32)
        threshold = self._prompt_threshold[:, : len(ids)]
        threshold[...] = level
        extra = {**self._extra.read(slot, start, len(ids), inserts), **self.kv.read(slot, start, len(ids))}
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
        extra = {**self._extra.step(count), **self.kv.step_feeds(count)}
        arrays = self._logits[slots], self._threshold[slots], extra
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
        cache = {where: whole[slots] for where, whole in self.kv.arrays.items()}
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
            outputs[RAN] = self._ran[slots] if self._apart else self._ran[0]
        return self._engine.bind(feeds, outputs)
