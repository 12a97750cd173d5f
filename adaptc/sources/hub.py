"""A model in a repository of the Hugging Face hub, read through the local cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.ir.source_grid import SourceMatrix
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.folder.files import CONFIGS, TOKENIZER
from adaptc.sources.folder.source import FolderSource
from adaptc.sources.folder.weights import INDEX

if TYPE_CHECKING:
    import torch

_WITHOUT_WEIGHTS = [*CONFIGS, *TOKENIZER, INDEX, "adapter_config.json", "README.md"]


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """A repository of the hub: from the local cache if it is there, else fetched; never renewed."""

    def config(self) -> Any:
        """See `Source.config`."""
        return self._fetch(weights=False).config()

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        return self._fetch(weights=False).token_ids()

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`."""
        return self._fetch(weights=False).tokenizer_files()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """See `Source.tensors`."""
        return self._fetch(weights=True).tensors()

    def quantization(self) -> str | None:
        """See `Source.quantization`."""
        return self._fetch(weights=False).quantization()

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """See `Source.matrices`; fetches the weights."""
        return self._fetch(weights=True).matrices()

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        return self._fetch(weights=False).image_processor()

    def files(self) -> dict[str, Path]:
        """See `Source.files`; fetches the weights."""
        return self._fetch(weights=True).files()

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        return self._fetch(weights=False).remarks()

    def licence(self) -> str | None:
        """See `Source.licence`."""
        return self._fetch(weights=False).licence()

    def commit(self) -> str:
        """Return the commit that is read, 40 hex digits; the cache names its folders so."""
        return self._fetch(weights=False).path.name

    def _fetch(self, *, weights: bool) -> FolderSource:
        """Return the repository as a folder, with or without its weights.

        Raises:
            LoadError: it is not in the cache, and the hub has none, refuses it or cannot be reached.
        """
        from huggingface_hub import errors

        try:
            cached = self._snapshot(weights=weights, local=True)
            cached.files() if weights else cached.config()
        except (OSError, LoadError):
            pass
        else:
            return cached
        try:
            return self._snapshot(weights=weights, local=False)
        except errors.GatedRepoError as error:
            raise LoadError(
                f"{self.origin}: the hub asks to accept this model's terms first; then: hf auth login"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise LoadError(f"{self.origin}: the hub's repository has no revision {self.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise LoadError(f"{self.origin}: no such folder here, and no such repository on the hub") from error
        except (errors.HFValidationError, OSError) as error:
            raise LoadError(
                f"{self.origin}: no such folder here, not in the hub's cache, and the hub cannot be reached"
            ) from error

    def _snapshot(self, *, weights: bool, local: bool) -> FolderSource:
        from huggingface_hub import snapshot_download

        patterns = [*_WITHOUT_WEIGHTS, "*.safetensors"] if weights else _WITHOUT_WEIGHTS
        path = snapshot_download(self.origin, revision=self.revision, allow_patterns=patterns, local_files_only=local)
        folder = FolderSource(self.path, self.origin, "hub", self.dtype, self.revision)
        return replace(folder, path=Path(str(path)))
