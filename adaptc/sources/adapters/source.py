"""A model with adapters merged into its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.sentences import Sentences
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.adapters.changes import Change, Changes, base_of, changes_of
from adaptc.sources.adapters.files import Adapter
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.hashes import file_digest, hash_of
from adaptc.sources.tensors import Tensors

if TYPE_CHECKING:
    import torch

    from adaptc.ir.weight_names import UnreadTensors


@dataclass(frozen=True, slots=True)
class AdaptedSource(Source):
    """A pretrained model and the adapters that are merged into it; what no adapter changes is the base's.

    Attributes:
        base: The model.
        adapters: In the order of the spec; their changes add up.
    """

    base: Source = field(kw_only=True)
    adapters: tuple[Adapter, ...] = field(kw_only=True)

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

    def files(self) -> dict[str, Path]:
        """See `Source.files`; an adapter's are below its number."""
        own = {
            f"adapters/{index}/{name}": path
            for index, adapter in enumerate(self.adapters)
            for name, path in adapter.files().items()
        }
        return self.base.files() | own

    def sha256(self, progress: Progress = SILENT) -> str:
        """See `Source.sha256`; the weights of adapters count too."""
        digests = {"base": bytes.fromhex(self.base.sha256(progress))}
        for index, adapter in enumerate(self.adapters):
            for name, path in adapter.files().items():
                digests[f"adapters/{index}/{name}"] = file_digest(adapter.origin, path)
            digests[f"adapters/{index}"] = hashlib.sha256(adapter.weight.hex().encode()).digest()
        return hash_of(digests)

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        return (*self.base.remarks(), *self._changes(self.base.config()).remarks)

    def local(self, progress: Progress = SILENT) -> Source:
        """See `Source.local`."""
        for adapter in self.adapters:
            adapter.folder()
        return replace(self, base=self.base.local(progress))

    def _changes(self, config: Any) -> Changes:
        return changes_of(self.adapters, base_of(config), self.origin)


def _changed(read: Callable[[], torch.Tensor], changes: tuple[Change, ...]) -> torch.Tensor:
    base = now = read()
    for change in changes:
        now = change(now, base)
    return now
