"""A model one can compute by hand: what follows is a checksum of all tokens, read back from the KV cache.

Any token bound, placed, chunked or moved wrongly changes the checksum, and with it all that follows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.bundle.manifest import DecoderSpec, TensorSpec

KV = ((2, 4), (1, 2))


def logits_after(history: Sequence[int], vocab: int) -> npt.NDArray[np.float32]:
    """float32 [vocab], highest at the checksum and falling away from it."""
    best = zlib.crc32(np.asarray(history, np.int64).tobytes()) % vocab
    distance = (np.arange(vocab) - best) % vocab
    return (distance / -2).astype(np.float32)


def greedy(prompt: Sequence[int], count: int, spec: DecoderSpec) -> list[int]:
    """What the model writes after `prompt`, up to an end token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        ids.append(int(logits_after(ids, spec.vocab_size).argmax()))
        if ids[-1] in spec.eos_token_ids:
            break
    return ids[len(prompt) :]


def decoder_spec(
    vocab: int = 50, max_tokens: int = 40, eos: tuple[int, ...] = (), bos: int | None = None
) -> DecoderSpec:
    return DecoderSpec(vocab, max_tokens, KV, bos, eos, None)


class HistoryLm:
    """The model as an engine.

    Attributes:
        engine: Computes it.
        calls: (batch, tokens) of each run.
        before: Called before each run.
    """

    def __init__(self, spec: DecoderSpec, before: Callable[[], None] = lambda: None) -> None:
        caches = [
            (f"{layer}.{what}", ("batch", heads, spec.max_tokens, width))
            for layer, (heads, width) in enumerate(spec.kv)
            for what in ("key", "value")
        ]
        inputs = (
            TensorSpec("input_ids", "int64", ("batch", "tokens")),
            TensorSpec("seqlens_k", "int32", ("batch",)),
            TensorSpec("total_sequence_length", "int32", ()),
            TensorSpec("logits_from", "int64", (1,)),
            *(TensorSpec(f"past.{name}", "float32", shape) for name, shape in caches),
        )
        outputs = (
            TensorSpec("logits", "float32", ("batch", "kept", spec.vocab_size)),
            *(TensorSpec(f"present.{name}", "float32", shape) for name, shape in caches),
        )
        self.spec = spec
        self.calls: list[tuple[int, int]] = []
        self.addresses: set[int] = set()
        self.before = before
        self._names = [name for name, _ in caches]
        self.engine = FakeEngine(inputs, outputs, self._run)

    def _run(self, feeds: Arrays, outputs: Arrays) -> None:
        self.before()
        ids, last = feeds["input_ids"], feeds["seqlens_k"]
        batch, tokens = ids.shape
        self.calls.append((batch, tokens))
        assert feeds["total_sequence_length"] == last.max() + 1
        assert tokens == 1 or batch == 1, "GroupQueryAttention reads chunks of one sequence only"
        assert last.max() < self.spec.max_tokens
        first = int(feeds["logits_from"][0])
        for name in self._names:
            past, present = feeds[f"past.{name}"], outputs[f"present.{name}"]
            assert past.ctypes.data == present.ctypes.data, "the cache is updated in place"
            self.addresses.add(past.ctypes.data)
            for row in range(batch):
                present[row, :, last[row] + 1 - tokens : last[row] + 1] = ids[row][:, None]
        for row in range(batch):
            for place in range(first, tokens):
                end = int(last[row]) + 2 - tokens + place
                cells = [feeds[f"past.{name}"][row, head, :end, w] for name, head, w in self._cells()]
                histories = {cell.astype(np.int64).tobytes() for cell in cells}
                assert len(histories) == 1, "all layers hold the same history"
                history = np.frombuffer(histories.pop(), np.int64)
                outputs["logits"][row, place - first] = logits_after(history.tolist(), self.spec.vocab_size)

    def _cells(self) -> list[tuple[str, int, int]]:
        return [
            (f"{layer}.{what}", head, column)
            for layer, (heads, width) in enumerate(self.spec.kv)
            for what in ("key", "value")
            for head in range(heads)
            for column in range(width)
        ]
