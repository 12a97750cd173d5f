"""Run a subset of a model's modalities: encoders once for each content, then the subset's own graph."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock

import numpy as np

from adaptc.runtime.backends.engine import Array, Engine
from adaptc.runtime.bundle.manifest import ModalSpec, TensorSpec
from adaptc.runtime.errors import EngineError
from adaptc.runtime.multimodal.inputs import ModalInputs
from adaptc.runtime.process import Home

Features = tuple[Array, ...]
"""One row's features of one modality."""


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """The outputs of a batch.

    Attributes:
        outputs: The model's outputs by name, [rows, ...] each.
        modalities: The modalities that each row's outputs come from.
        confidence: P(correct) of each row, if the modality gate decided.
    """

    outputs: dict[str, Array]
    modalities: tuple[tuple[str, ...], ...]
    confidence: tuple[float, ...] | None


class FeatureCache:
    """Features by the content they were computed from; the least recently used are dropped first."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: The largest size of all features, in bytes; 0 keeps none.
        """
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self._entries: OrderedDict[bytes, Features] = OrderedDict()

    def get(self, key: bytes) -> Features | None:
        """The features of a key; None if they are not there."""
        features = self._entries.get(key)
        if features is not None:
            self._entries.move_to_end(key)
            self.hits += 1
        return features

    def put(self, key: bytes, features: Features) -> None:
        """Keep features, as long as there is room."""
        size = sum(each.nbytes for each in features)
        if size > self.limit or key in self._entries:
            return
        self._entries[key] = features
        self.bytes += size
        while self.bytes > self.limit:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= sum(each.nbytes for each in oldest)


def key_of(modality: str, arrays: Sequence[Array], row: int) -> bytes:
    """A hash of one row's content."""
    digest = hashlib.blake2b(modality.encode(), digest_size=16)
    for array in arrays:
        digest.update(memoryview(array[row]).cast("B") if array[row].ndim else array[row].tobytes())
    return digest.digest()


class ModalGraphs:
    """The graphs of one model; each is loaded when it first runs, so unused ones are never read.

    Attributes:
        ran: How many times each graph ran.
        cache: Features that were encoded.
    """

    def __init__(self, modal: ModalSpec, load: Callable[[str], Engine], cache_bytes: int = 64 << 20) -> None:
        """Load nothing yet.

        Args:
            modal: Which graphs run for which modalities.
            load: Loads the engine of a graph.
            cache_bytes: The largest size of the features kept, in bytes; 0 keeps none.
        """
        self.modal = modal
        self.ran: Counter[str] = Counter()
        self.cache = FeatureCache(cache_bytes)
        self._load = load
        self._engines: dict[str, Engine] = {}
        self._lock = RLock()
        self._home = Home()
        self._closed = False
        self._heads = {subset.modalities: subset.graph for subset in modal.subsets}
        encoders = {each.encoder for each in modal.modalities.values() if each.encoder is not None}
        self._count = len(encoders | set(self._heads.values()))

    def run(self, subset: tuple[str, ...], inputs: ModalInputs) -> dict[str, Array]:
        """Run a subset.

        Args:
            subset: Modalities in the model's order; there is a graph for them.
            inputs: At least these modalities, [rows, ...] each.

        Returns:
            The model's outputs by name, [rows, ...].

        Raises:
            EngineError: a graph cannot be loaded or fails.
        """
        self._home.check("session")
        with self._lock:
            feeds: dict[str, Array] = {}
            for name in subset:
                feeds |= self.features(name, inputs[name])
            return self.engine_run(self._heads[subset], feeds)

    def head(self, subset: tuple[str, ...]) -> str:
        """The graph of a subset."""
        return self._heads[subset]

    def features(self, modality: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """A modality's features by name, [rows, ...]; only content that is not in the cache is encoded."""
        self._home.check("session")
        spec = self.modal.modalities[modality]
        if spec.encoder is None:
            return dict(arrays)
        ordered = [arrays[name] for name in spec.inputs]
        if not self.cache.limit:
            computed = self.engine_run(spec.encoder, dict(zip(spec.inputs, ordered, strict=True)))
            return {name: computed[name] for name in spec.features}
        with self._lock:
            keys = [key_of(modality, ordered, row) for row in range(len(ordered[0]))]
            known = {key: kept for key in dict.fromkeys(keys) if (kept := self.cache.get(key)) is not None}
            new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
            if new:
                order = sorted(new.values())
                computed = self.engine_run(
                    spec.encoder, {n: np.ascontiguousarray(a[order]) for n, a in zip(spec.inputs, ordered, strict=True)}
                )
                for place, row in enumerate(order):
                    known[keys[row]] = tuple(computed[name][place] for name in spec.features)
                    self.cache.put(keys[row], tuple(each.copy() for each in known[keys[row]]))
        return {name: np.stack([known[key][i] for key in keys]) for i, name in enumerate(spec.features)}

    def engine_run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph.

        Raises:
            EngineError: it cannot be loaded or fails.
            RequestError: this process is a fork of the one that loaded the session.
        """
        self._home.check("session")
        with self._lock:
            engine = self.engine(graph)
            batch = len(next(iter(feeds.values())))
            outputs = {spec.name: np.empty(_sized(spec, batch), spec.dtype) for spec in engine.outputs}
            names = {spec.name for spec in engine.inputs}
            engine.bind({n: np.ascontiguousarray(a) for n, a in feeds.items() if n in names}, outputs)()
            self.ran[graph] += 1
        return outputs

    def engine(self, graph: str) -> Engine:
        """A graph's engine, loaded if it is not.

        Raises:
            EngineError: it cannot be loaded, or the session is closed.
        """
        if self._closed:
            raise EngineError(f"{graph}: closed")
        if graph not in self._engines:
            self._engines[graph] = self._load(graph)
        return self._engines[graph]

    def unused(self, subsets: Iterable[tuple[str, ...]]) -> int:
        """How many graphs of some subsets have not run yet."""
        if len(self.ran) == self._count:
            return 0
        graphs = {self._heads[subset] for subset in subsets if subset in self._heads}
        graphs |= {e for subset in subsets for name in subset if (e := self.modal.modalities[name].encoder) is not None}
        return sum(graph not in self.ran for graph in graphs)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Graphs that have been read from disk."""
        return tuple(self._engines)

    def close(self) -> None:
        """Free every engine; a fork frees nothing."""
        if self._home.left:
            self._closed = True
            return
        with self._lock:
            self._closed = True
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()


def _sized(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """An output's shape; the one size that is only known at run time is the batch."""
    return tuple(size if isinstance(size, int) else batch for size in spec.shape)
