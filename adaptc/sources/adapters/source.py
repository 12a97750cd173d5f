"""A model with adapters merged into its weights, and others kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.sentences import Sentences
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.adapters.changes import Change, Changes, base_of, changes_of, kept_of, remarks_of
from adaptc.sources.adapters.files import Adapter
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.hashes import file_digest, hash_of
from adaptc.sources.tensors import Tensors

if TYPE_CHECKING:
    import torch

    from adaptc.ir.low_rank import KeptAdapter
    from adaptc.ir.source_grid import SourceMatrix
    from adaptc.ir.weight_names import Runs, UnreadTensors, WeightView


@dataclass(frozen=True, slots=True)
class AdaptedSource(Source):
    """A pretrained model and the adapters that are merged into it; what no adapter changes is the base's.

    Attributes:
        base: The model.
        adapters: Those that are merged, in the order of the spec; their changes add up.
        kept: Those that requests choose among, in the order of the spec; weights are without them.
    """

    base: Source = field(kw_only=True)
    adapters: tuple[Adapter, ...] = field(kw_only=True)
    kept: tuple[Adapter, ...] = field(kw_only=True, default=())

    @property
    def title(self) -> str:
        """See `Source.title`."""
        added = (each.origin if each.weight == 1.0 else f"{each.weight:g} {each.origin}" for each in self.adapters)
        return " + ".join((self.base.title, *added))

    def config(self) -> Any:
        """See `Source.config`; a head that adapters change otherwise than the embedding is untied."""
        config = self.base.config()
        if config.tie_word_embeddings and self._changes(config).unties:
            config.tie_word_embeddings = False
        return config

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        return self.base.token_ids()

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`."""
        return self.base.tokenizer_files()

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        return self.base.image_processor()

    def sentences(self) -> Sentences:
        """See `Source.sentences`."""
        return self.base.sentences()

    def licence(self) -> str | None:
        """See `Source.licence`; the base's."""
        return self.base.licence()

    def tensors(self) -> UnreadTensors:
        """See `Source.tensors`; a changed one is computed in float32 each time that it is asked for.

        Raises:
            LoadError: as for the base; or an adapter is of another base, of a kind that is not merged, or damaged.
        """
        if not self.adapters:
            return self.base.tensors()
        config = self.base.config()
        about, changes = base_of(config), self._changes(config)
        tensors = replace(self.base, dtype="float32").tensors()
        readers: dict[str, Callable[[], torch.Tensor]] = {name: partial(tensors.__getitem__, name) for name in tensors}
        shapes = {name: tensors.shape(name) for name in tensors}
        if changes.unties:
            readers[about.head], shapes[about.head] = readers[about.table], shapes[about.table]
        for name, several in changes.by_parameter.items():
            if name not in readers:
                raise LoadError(f"{self.adapters[0].origin}: {name}: the base's files have no such weight")
            readers[name] = partial(_changed, readers[name], several)
        return Tensors(self.origin, self.dtype, readers, shapes)

    def quantization(self) -> str | None:
        """See `Source.quantization`; what is merged is made of floats."""
        return None if self.adapters else self.base.quantization()

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """See `Source.matrices`."""
        return {} if self.adapters else self.base.matrices()

    def kept_adapters(self, views: Mapping[str, WeightView] = MappingProxyType({})) -> tuple[KeptAdapter, ...]:
        """See `Source.kept_adapters`.

        Raises:
            LoadError: as in `tensors`; or one changes what is no product with a weight.
        """
        if not self.kept:
            return ()
        about = base_of(self.config())
        return tuple(viewed(kept_of(each, about), views) for each in self.kept)

    def files(self) -> dict[str, Path]:
        """See `Source.files`; an adapter's are below its number."""
        own = {
            f"adapters/{index}/{name}": path
            for index, adapter in enumerate((*self.adapters, *self.kept))
            for name, path in adapter.files().items()
        }
        return self.base.files() | own

    def sha256(self, progress: Progress = SILENT) -> str:
        """See `Source.sha256`; the weights of adapters count too."""
        digests = {"base": bytes.fromhex(self.base.sha256(progress))}
        for index, adapter in enumerate((*self.adapters, *self.kept)):
            for name, path in adapter.files().items():
                digests[f"adapters/{index}/{name}"] = file_digest(adapter.origin, path)
            said = adapter.weight.hex() + (f" {adapter.name}" if adapter.name else "")
            digests[f"adapters/{index}"] = hashlib.sha256(said.encode()).digest()
        return hash_of(digests)

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        config = self.base.config()
        kept = remarks_of(self.kept, base_of(config), self.origin) if self.kept else ()
        return (*self.base.remarks(), *self._changes(config).remarks, *kept)

    def local(self, progress: Progress = SILENT) -> Source:
        """See `Source.local`."""
        for adapter in (*self.adapters, *self.kept):
            adapter.folder()
        return replace(self, base=self.base.local(progress))

    def _changes(self, config: Any) -> Changes:
        return changes_of(self.adapters, base_of(config), self.origin)


def viewed(adapter: KeptAdapter, views: Mapping[str, WeightView]) -> KeptAdapter:
    """Return an adapter by the names that a graph has for weights: a part of a joined layer has its rows of B.

    Args:
        adapter: By the names of the pretrained weights.
        views: Of which of them those of the graph are parts, by the graph's names.
    """
    changes = dict(adapter.changes)
    for name, view in views.items():
        change = adapter.changes.get(view.source)
        if change is not None:
            changes[name] = replace(change, b=partial(_rows, change.b, view.rows)) if view.rows else change
    joined = {view.source for view in views.values()} - views.keys()
    return replace(adapter, changes={name: change for name, change in changes.items() if name not in joined})


def _rows(read: Callable[[], Any], rows: Runs) -> Any:
    import numpy as np

    whole = read()
    return np.concatenate([whole[first:end] for first, end in rows])


def _changed(read: Callable[[], torch.Tensor], changes: tuple[Change, ...]) -> torch.Tensor:
    base = now = read()
    for change in changes:
        now = change(now, base)
    return now
