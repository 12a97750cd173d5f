"""Runs of graphs that verify drafted tokens: several tokens of one slot, each read as a step of its own reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import BoundRun, Engine
from adaptc.runtime.backends.host.dense_twin import Form
from adaptc.runtime.backends.host.kv_slots import KvSlots
from adaptc.runtime.bundle.manifest import VerificationGraph
from adaptc.runtime.bundle.names import (
    HIDDEN,
    LOGITS,
    LOGITS_FROM,
    RAN,
    ROWS,
    SEQLENS_K,
    THRESHOLD,
    TOKEN_POSITIONS,
    TOTAL_SEQUENCE_LENGTH,
    past,
    present,
    present_after,
    window_lengths,
    window_total,
)
from adaptc.runtime.model.decoder import Ids, States

Arrays = dict[str, npt.NDArray[Any]]


class _Graph:
    """A loaded graph: its engine, and what it reads and gives."""

    def __init__(self, engine: Engine) -> None:
        shapes = {tensor.name: tensor.shape for tensor in engine.outputs}
        self.engine = engine
        self.inputs = frozenset(tensor.name for tensor in engine.inputs)
        self.source = engine.inputs[0].name
        self.result = LOGITS if LOGITS in shapes else HIDDEN
        self._ran = shapes.get(RAN)

    def ran(self, tokens: int) -> npt.NDArray[np.bool_] | None:
        """An array for which blocks ran, of all tokens together if they decide so; None if the graph has no gates."""
        shape = self._ran
        return None if shape is None else np.ones((*(tokens for _ in shape[1:]), int(shape[-1])), np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class _SlotRun:
    """A graph that is bound to a slot, and the arrays whose contents say what it reads."""

    call: BoundRun
    rows: Ids
    lengths: npt.NDArray[np.int32]
    total: npt.NDArray[np.int32]
    windows: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], ...]


class HostVerification:
    """The graphs of one decoder that verify; each is loaded when it is first needed.

    Attributes:
        most: The largest number of tokens of a run.
    """

    def __init__(
        self,
        graphs: Mapping[Form, Sequence[VerificationGraph]],
        load: Callable[[str], Engine],
        kv: KvSlots,
        extra: Arrays,
    ) -> None:
        """Take the graphs.

        Args:
            graphs: By form, at least one; those with gates are "gated".
            load: Loads one of them.
            kv: The cache of the decoder, which they read and write.
            extra: What the decoder's other inputs hold when no token is an image's.
        """
        self.graphs = {form: {each.tokens: each.graph for each in graphs[form]} for form in graphs if graphs[form]}
        self.most = min(max(sizes) for sizes in self.graphs.values())
        self._load = load
        self._kv, self._extra = kv, extra
        self._loaded: dict[str, _Graph] = {}
        self._runs: dict[tuple[str, int], _SlotRun] = {}

    def read(
        self, form: Form, slot: int, start: int, tokens: Ids | States, levels: npt.NDArray[np.float32], width: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """Read tokens of a slot.

        Args:
            form: Which graphs run.
            slot: The slot.
            start: As many tokens as it has.
            tokens: int64 [tokens], or float32 [tokens, states] for a tail; 1 to `most`.
            levels: float32 [tokens], what the gates are compared with.
            width: Of a row of the result.

        Returns:
            float32 [tokens, width], logits or a trunk's states; and bool [tokens, gates], the blocks that ran, of
            graphs with gates.

        Raises:
            EngineError: the engine failed.
        """
        count = len(tokens)
        size, name = next(each for each in sorted(self.graphs[form].items()) if each[0] >= count)
        if name not in self._loaded:
            self._loaded[name] = _Graph(self._load(name))
        graph = self._loaded[name]
        result, ran = np.empty((count, 1, width), np.float32), graph.ran(count)
        feeds: Arrays = {graph.source: tokens[:, None]}
        outputs: Arrays = {graph.result: result}
        if ran is not None:
            feeds[THRESHOLD], outputs[RAN] = levels[:, None], ran
        self._kv.read(slot, start, count)
        if TOKEN_POSITIONS in graph.inputs:
            feeds[TOKEN_POSITIONS] = np.arange(start, start + count)[:, None]
        run = self._runs.get((name, slot))
        if run is None:
            run = self._runs[name, slot] = self._bound(graph, size, slot, feeds, outputs)
        else:
            run.call.rebind(feeds, outputs)
        run.rows[:] = np.minimum(np.arange(size), count - 1)  # the last one is read again where there are fewer
        run.lengths[:] = start + run.rows
        run.total[...] = start + count
        for window, (lengths, total) in zip(self._kv.windows, run.windows, strict=True):
            lengths[:] = run.lengths - window.base(slot)
            total[...] = start + count - window.base(slot)
        run.call()
        return result[:, 0], None if ran is None else np.broadcast_to(ran, (count, ran.shape[-1]))

    def close(self) -> None:
        """Free the engines."""
        self._runs.clear()
        for graph in self._loaded.values():
            graph.engine.close()
        self._loaded.clear()

    def _bound(self, graph: _Graph, size: int, slot: int, feeds: Arrays, outputs: Arrays) -> _SlotRun:
        rows, lengths = np.zeros(size, np.int64), np.zeros(size, np.int32)
        total = np.zeros((), np.int32)
        own: Arrays = {ROWS: rows, SEQLENS_K: lengths, TOTAL_SEQUENCE_LENGTH: total, LOGITS_FROM: np.zeros(1, np.int64)}
        own = {name: array for name, array in own.items() if name in graph.inputs}
        windows = tuple((np.zeros(size, np.int32), np.zeros((), np.int32)) for _ in self._kv.windows)
        for number, (each, sum_) in enumerate(windows):
            own |= {window_lengths(number): each, window_total(number): sum_}
        cache = {where: whole[slot : slot + 1] for where, whole in self._kv.arrays.items()}
        kept = {present(*where): part for where, part in cache.items()}
        kept |= {present_after(*where, row): part for where, part in cache.items() for row in range(size - 1)}
        feeds = {**own, **self._extra, **feeds, **{past(*where): part for where, part in cache.items()}}
        return _SlotRun(graph.engine.bind(feeds, {**outputs, **kept}), rows, lengths, total, windows)
