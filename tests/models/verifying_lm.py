"""`HistoryLm` with graphs that verify drafts, drafters as right as a test wants them, and costs that always pay.

The graphs read the cache as the ones that `verify_drafts` makes do: row after row, each by a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adaptc.runtime import DecoderSpec
from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.bundle.manifest import TensorSpec, VerificationGraph
from adaptc.runtime.speculation.drafter import Draft, Drafter
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.speculation import Drafted, Speculation
from adaptc.runtime.speculation.step_costs import StepCosts
from tests.models.history_lm import HistoryLm, logits_after

SIZES = (4, 8)


class VerifyingLm(HistoryLm):
    """The model, and what verifies for it.

    Attributes:
        verified: The number of tokens of each run that verified.
    """

    def __init__(self, spec: DecoderSpec, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(spec, before)
        self.verified: list[int] = []

    def decoder(self, batch: int = 1, chunk: int = 512, prefixes: PrefixCache | None = None) -> VerifyingDecoder:
        """A decoder of it that verifies."""
        graphs = tuple(VerificationGraph(size, f"verify{size}") for size in SIZES)
        return VerifyingDecoder(
            self.engine,
            self.spec,
            batch,
            chunk,
            None,
            prefixes=prefixes or PrefixCache(0),
            name="lm",
            graphs={"dense": graphs},
            load=self.verifying_engine,
        )

    def verifying_engine(self, name: str) -> FakeEngine:
        """The engine of a graph that verifies."""
        size = int(name.removeprefix("verify"))
        fixed = [each for each in self.engine.inputs if each.name.startswith("past.")]
        caches = [TensorSpec(each.name, each.dtype, (1, *each.shape[1:])) for each in fixed]
        results = [TensorSpec(each.name.replace("past", "present"), each.dtype, each.shape) for each in caches]
        earlier = [
            TensorSpec(f"{each.name}.{row}", each.dtype, each.shape) for each in results for row in range(size - 1)
        ]
        inputs = (
            TensorSpec("input_ids", "int64", ("tokens", 1)),
            TensorSpec("seqlens_k", "int32", (size,)),
            TensorSpec("total_sequence_length", "int32", ()),
            TensorSpec("logits_from", "int64", (1,)),
            *caches,
            TensorSpec("rows", "int64", (size,)),
        )
        outputs = (TensorSpec("logits", "float32", ("tokens", 1, self.spec.vocab_size)), *results, *earlier)
        return FakeEngine(inputs, outputs, self._verify)

    def _verify(self, feeds: Arrays, outputs: Arrays) -> None:
        self.before()
        ids, rows, places = feeds["input_ids"], feeds["rows"], feeds["seqlens_k"]
        self.verified.append(len(ids))
        assert feeds["total_sequence_length"] == places.max() + 1
        assert feeds["logits_from"] == [0]
        assert places.max() < self.spec.max_tokens
        assert sorted({*rows.tolist()}) == [*range(len(ids))], "each token is read"
        for row, place in zip(rows, places, strict=True):
            for name in self._names:
                same = {array.ctypes.data for key, array in outputs.items() if key.startswith(f"present.{name}")}
                assert same == {feeds[f"past.{name}"].ctypes.data}, "the cache is updated in place"
                feeds[f"past.{name}"][0, :, place] = ids[row]
            cells = [feeds[f"past.{name}"][0, head, : place + 1, w] for name, head, w in self._cells()]
            histories = {cell.astype(np.int64).tobytes() for cell in cells}
            assert len(histories) == 1, "all layers hold the same history"
            history = np.frombuffer(histories.pop(), np.int64)
            outputs["logits"][row, 0] = logits_after(history.tolist(), self.spec.vocab_size)


class Oracle:
    """A `Drafter` that knows what the model writes, and says something else now and then."""

    def __init__(self, vocab: int, wrong: float, seed: int) -> None:
        """`wrong`: the share of its tokens that are."""
        self._vocab, self._wrong = vocab, wrong
        self._random = np.random.default_rng(seed)
        self.closed = 0

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook | None = None) -> Draft:
        """See `Drafter.draft`."""
        assert most >= 1
        history = [*ids]
        for _ in range(int(self._random.integers(0, most + 1))):
            token = int(logits_after(history, self._vocab).argmax())
            history.append((token + 1) % self._vocab if self._random.random() < self._wrong else token)
        tokens = tuple(history[len(ids) :])
        return Draft(tokens, (1.0,) * len(tokens))

    def close(self) -> None:
        """See `Drafter.close`."""
        self.closed += 1


class FreeDrafts(StepCosts):
    """Costs by which a draft pays in any case, whatever the clock says."""

    def __init__(self) -> None:
        super().__init__({1: 1.0} | dict.fromkeys(range(2, 9), 1e-3))

    def plain(self, sequences: int) -> float:
        """See `StepCosts`."""
        return 1e3 * sequences

    def note_reading(self, tokens: int, seconds: float) -> None:
        """See `StepCosts`."""

    def note_plain(self, sequences: int, seconds: float) -> None:
        """See `StepCosts`."""


def speculation(
    decoder: VerifyingDecoder, wrong: float = 0.3, seed: int = 0, close: float = 0.0, costs: StepCosts | None = None
) -> Speculation:
    """Drafts by an `Oracle` for each sequence, called "oracle"."""

    def oracle(sequence: Drafted) -> Drafter:
        return Oracle(decoder.spec.vocab_size, wrong, seed + len(sequence.all_ids()))

    makers: Mapping[str, Callable[[Drafted], Drafter]] = {"oracle": oracle}
    return Speculation(decoder, costs or FreeDrafts(), makers, close=close)
