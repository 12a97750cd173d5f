"""A decoder graph together with its KV cache.

The graph takes any number of tokens for one sequence, or one token for each of many sequences. So prompts are
read one by one, in chunks, and answers are written together. The cache has `batch` rows; the sequences being
written are always its first rows, so a step for n of them binds the first n rows and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Engine, Step
from adaptc.runtime.backends.onnxruntime_cpu.memory import room
from adaptc.runtime.bundle.manifest import DecoderSpec, TensorSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import ANY, DENSE, Wish, batched_dense, threshold_of
from adaptc.runtime.model.inserts import Beside, Feeds, Inserts
from adaptc.runtime.model.one_way import OneWay

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
States = npt.NDArray[np.float32]
HIDDEN = "hidden"
"""What a graph reads in the place of token ids, or gives in the place of logits, if it is one part of a decoder."""


class Decoder(OneWay):
    """Sequences in rows, each a prefix of the positions of the KV cache.

    A graph that is the lower part of a decoder gives states (float32 [..., width]) where another gives logits, and one
    that is an upper part reads them where another reads token ids; `routed.RoutedDecoder` puts them together.

    Attributes:
        spec: What the graph expects.
        batch: Rows.
        gates: What decides which of its blocks run; None if it has no gates.
    """

    def __init__(
        self, engine: Engine, spec: DecoderSpec, batch: int, chunk: int, gates: SkipGates | None = None
    ) -> None:
        """Allocate the cache.

        Args:
            engine: A graph in the decoder form of docs/bundle.md.
            spec: What it expects.
            batch: Rows of the cache.
            chunk: Most tokens of a prompt that go through the graph at once.
            gates: What decides which of its blocks run, if the graph has any.

        Raises:
            RequestError: the cache does not fit in memory.
            EngineError: the graph is not of the decoder form.
        """
        self.spec = spec
        self.batch = batch
        self._engine = engine
        self._chunk = chunk
        self._cache = _cache(spec, batch)
        self._source, width = "input_ids", state_width(engine.inputs)
        self._ids: npt.NDArray[Any] = np.zeros((batch, 1), np.int64)
        if width is not None:
            self._source, self._ids = HIDDEN, np.zeros((batch, 1, width), np.float32)
        gives = state_width(engine.outputs)
        self._beside = Beside(engine.inputs, batch)
        self._result, self._gives = ("logits", spec.vocab_size) if gives is None else (HIDDEN, gives)
        self._last = np.zeros(batch, np.int32)  # position of each row's newest token
        self._total = np.zeros((), np.int32)
        self._logits = np.empty((batch, 1, self._gives), np.float32)
        self._read_total = np.zeros((), np.int32)
        self._read_from = np.zeros(1, np.int64)
        self.gates = gates
        self._levels = np.full(batch, DENSE, np.float32)  # each row's threshold
        self._warmup = 0 if gates is None else gates.warmup
        self._threshold = np.full((batch, 1), DENSE, np.float32)
        self._read_threshold = np.full((1, chunk), DENSE, np.float32)
        self._ran = np.ones(0 if gates is None else len(gates.layers), np.bool_)
        self._steps: dict[int, Step] = {}  # by number of rows
        self._readers: dict[int, Step] = {}  # by row
        self._step(1)  # tells now, not in the middle of a request, that the graph is of another form

    def start(self, row: int, ids: Ids, wish: Wish) -> Logits:
        """Start a row with a prompt, as a request wants it; see `prefill`."""
        return self.prefill(row, ids, self.threshold(wish), None if wish.inserts is None else wish.inserts())

    def threshold(self, wish: Wish) -> float:
        """What the gates are compared with under a budget."""
        return threshold_of(self.gates, wish.budget)

    def dense(self, wish: Wish) -> bool:
        """Whether every block runs."""
        return self.threshold(wish) == DENSE

    def prefill(self, row: int, ids: Ids | States, threshold: float = DENSE, inserts: Inserts | None = None) -> Logits:
        """Start a row with a prompt, which runs every block.

        Args:
            row: The row; what it held is lost.
            ids: int64 [tokens], 1 to `max_tokens`; or float32 [tokens, width].
            threshold: What the gates are compared with for the row's later tokens; -inf runs every block.
            inserts: What stands in the place of some tokens, if the graph takes images.

        Returns:
            float32 [vocab]: logits of the token that follows; the caller's to keep.
        """
        for start in range(0, len(ids), self._chunk):
            block = ids[start : start + self._chunk]
            kept = 1 if self._result == "logits" else len(block)
            logits = self._read(row, start, block, kept, inserts=inserts)
        self._levels[row] = threshold
        first: Logits = logits[0]
        return first

    def blank(self, tokens: int) -> Ids | States:
        """A prompt of nothing: zeros of the kind that the graph reads, for measuring."""
        return np.zeros((tokens, *self._ids.shape[2:]), self._ids.dtype)

    def states(self, row: int, ids: Ids, threshold: float, into: States) -> None:
        """Start a row with a prompt, in the lower part of a decoder.

        Args:
            row: The row; what it held is lost.
            ids: int64 [tokens], 1 to `max_tokens`.
            threshold: See `prefill`.
            into: float32 [tokens, width], receives the prompt's states.
        """
        for start in range(0, len(ids), self._chunk):
            block = slice(start, start + self._chunk)
            self._read(row, start, ids[block], kept=len(ids[block]), into=into[block])
        self._levels[row] = threshold

    def score(self, ids: Ids | States, most: int, wish: Wish = ANY) -> Iterator[Logits]:
        """Read `ids` in the first row and yield the logits at every position, some at a time.

        Args:
            ids: int64 [tokens], 1 to `max_tokens`; or float32 [tokens, width].
            most: Tokens whose logits are computed at once.
            wish: One under which every block runs.

        Yields:
            float32 [some, vocab]
        """
        size = min(most, self._chunk)
        for start in range(0, len(ids), size):
            block = ids[start : start + size]
            yield self._read(0, start, block, kept=len(block))

    def decode(self, tokens: Sequence[int] | Ids | States) -> Logits:
        """Add one token to each of the first rows.

        Args:
            tokens: One for each row, or float32 [rows, width]; none of the rows may be full.

        Returns:
            float32 [rows, vocab]: logits of the tokens that follow, or states; valid until the next call.
        """
        rows = len(tokens)
        last = self._last[:rows]
        last += 1
        self._ids[:rows, 0] = tokens
        self._total[...] = last.max() + 1
        if self.gates is not None:
            self._choose(rows)
        step = self._steps.get(rows) or self._step(rows)
        self._beside.advance(last)
        step()
        return self._logits[:rows, 0]

    def ran(self, row: int) -> bytes | None:
        """Which gated blocks the newest `decode` ran: a byte for each; None while the row warms up."""
        if self.gates is None or self._last[row] < self._warmup:
            return None
        return self._ran.tobytes()

    def move(self, row: int, to: int) -> None:
        """Put the sequence of one row in the place of another."""
        used = int(self._last[row]) + 1
        for cache in self._cache.values():
            cache[to, :, :used] = cache[row, :, :used]
        self._last[to] = self._last[row]
        self._levels[to] = self._levels[row]
        self._beside.move(row, to)

    def close(self) -> None:
        """Free the engine and the cache."""
        self._steps.clear()
        self._readers.clear()
        self._cache.clear()
        self._engine.close()

    def _choose(self, rows: int) -> None:
        """Set the threshold of each row for the next step."""
        threshold = self._threshold[:rows, 0]
        if batched_dense(self.gates, rows):
            threshold[:] = DENSE
        else:
            threshold[:] = self._levels[:rows]
            threshold[self._last[:rows] < self._warmup] = DENSE

    def _read(
        self,
        row: int,
        start: int,
        ids: Ids | States,
        kept: int,
        into: States | None = None,
        inserts: Inserts | None = None,
    ) -> Logits:
        """Add tokens to a row that holds `start` of them; logits of the last `kept`: [kept, vocab]."""
        self._last[row] = start + len(ids) - 1
        self._read_total[...] = start + len(ids)
        self._read_from[0] = len(ids) - kept
        logits = np.empty((1, kept, self._gives), np.float32) if into is None else into[None]
        step = self._readers.get(row)
        threshold = self._read_threshold[:, : len(ids)]
        beside = self._beside.read(row, start, len(ids), inserts)
        if step is None:
            rows = slice(row, row + 1)
            step = self._bind(rows, ids[None], self._read_total, self._read_from, logits, threshold, beside)
            self._readers[row] = step
        else:
            gated = {} if self.gates is None else {"threshold": threshold}
            step.rebind({self._source: ids[None], **gated, **beside}, {self._result: logits})
        step()
        return logits.reshape(kept, -1)

    def _step(self, rows: int) -> Step:
        """One token for each of the first `rows`; bound once, since only what the arrays hold changes."""
        every = slice(0, rows)
        first = np.zeros(1, np.int64)
        wanted = self._logits[every], self._threshold[every]
        step = self._bind(every, self._ids[every], self._total, first, *wanted, self._beside.step(rows))
        self._steps[rows] = step
        return step

    def _bind(
        self,
        rows: slice,
        ids: npt.NDArray[Any],
        total: npt.NDArray[np.int32],
        first: Ids,
        logits: Logits,
        threshold: Logits,
        beside: Feeds,
    ) -> Step:
        cache = {name: whole[rows] for name, whole in self._cache.items()}
        feeds: dict[str, npt.NDArray[Any]] = {
            self._source: ids,
            "seqlens_k": self._last[rows],
            "total_sequence_length": total,
            **({"logits_from": first} if self._result == "logits" else {}),
            **beside,
            **{f"past.{name}": part for name, part in cache.items()},
        }
        present = {f"present.{name}": part for name, part in cache.items()}
        outputs: dict[str, npt.NDArray[Any]] = {self._result: logits, **present}
        if self.gates is not None:
            feeds["threshold"] = threshold
            outputs["ran"] = self._ran
        return self._engine.bind(feeds, outputs)


def state_width(tensors: Sequence[TensorSpec]) -> int | None:
    """Width of the states among a graph's inputs or outputs, if it has any."""
    found = next((tensor.shape[-1] for tensor in tensors if tensor.name == HIDDEN), None)
    return found if isinstance(found, int) else None


def _cache(spec: DecoderSpec, batch: int) -> dict[str, npt.NDArray[np.float32]]:
    """Keys and values of all layers: float32 [batch, kv_heads, max_tokens, head_dim]."""
    size = 8 * batch * spec.max_tokens * sum(heads * width for heads, width in spec.kv)
    try:
        return {
            f"{layer}.{what}": room((batch, heads, spec.max_tokens, width))
            for layer, (heads, width) in enumerate(spec.kv)
            for what in ("key", "value")
        }
    except MemoryError as error:
        raise RequestError(
            f"batch: {batch} sequences of {spec.max_tokens} tokens need {size / 2**30:.1f} GiB of memory"
        ) from error
