"""A model in a repository of the Hugging Face hub, read through the hub's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.families.sentences import Sentences
from adaptc.ir.source_grid import SourceMatrix
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.folder.files import CONFIGS
from adaptc.sources.folder.source import FolderSource
from adaptc.sources.gguf.source import GgufSource
from adaptc.sources.hub.fetching import Repository
from adaptc.sources.hub.names import HubName

if TYPE_CHECKING:
    from adaptc.ir.weight_names import UnreadTensors


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """A repository of the hub, or one GGUF file in it: from the cache if it is there, else fetched; never renewed.

    Attributes:
        name: Its name on the hub, with the revision that is read.
    """

    name: HubName = field(kw_only=True)

    def config(self) -> Any:
        """See `Source.config`."""
        return self._without_weights().config()

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        return self._without_weights().token_ids()

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`."""
        return self._without_weights().tokenizer_files()

    def tensors(self) -> UnreadTensors:
        """See `Source.tensors`."""
        return self.local().tensors()

    def quantization(self) -> str | None:
        """See `Source.quantization`; fetches no weights of a folder."""
        return self._without_weights().quantization()

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """See `Source.matrices`; fetches the weights."""
        return self.local().matrices()

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        return self._without_weights().image_processor()

    def sentences(self) -> Sentences:
        """See `Source.sentences`."""
        return self._without_weights().sentences()

    def files(self) -> dict[str, Path]:
        """See `Source.files`; fetches the weights."""
        return self.local().files()

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        return self._without_weights().remarks()

    def licence(self) -> str | None:
        """See `Source.licence`."""
        return self._without_weights().licence()

    def sha256(self, progress: Progress = SILENT) -> str:
        """See `Source.sha256`; fetches the weights."""
        return self.local().sha256(progress)

    def commit(self) -> str:
        """Return the commit that is read, 40 hex digits; the cache names its folders so."""
        own = self._without_weights().path
        return (
            own if isinstance(self._without_weights(), FolderSource) else own.parents[self.name.file.count("/")]
        ).name

    def local(self, progress: Progress = SILENT) -> Source:
        """See `Source.local`; fetches the weights.

        Raises:
            LoadError: it is not in the cache, and the hub has none, refuses it or cannot be reached.
        """
        if self.name.file:
            return self._gguf(progress)
        folder = self._without_weights().path
        return self._folder(self._repository().with_weights(folder, progress))

    def _without_weights(self) -> Source:
        """The repository as a folder whose weights may not be there; a GGUF file is in one piece."""
        if self.name.file:
            return self._gguf()
        repository = self._repository()
        folder = repository.folder()
        if not (folder / CONFIGS[0]).exists():
            raise repository.lacks(CONFIGS[0], repository.files(folder.name))
        return self._folder(folder)

    def _gguf(self, progress: Progress = SILENT) -> Source:
        return GgufSource(self._repository().file(progress), self.origin, "hub", self.dtype, self.revision)

    def _folder(self, path: Path) -> Source:
        return FolderSource(path, self.origin, "hub", self.dtype, self.revision)

    def _repository(self) -> Repository:
        return Repository(self.origin, self.name)
