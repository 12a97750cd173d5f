"""What a pretrained model offers wherever it comes from: config, tokenizer, weights.

Config and tokenizer are read without the weights; weights are read one tensor at a time. Nothing is unpickled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.sentences import Sentences
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.hashes import Hashed, file_digest, hash_of
from adaptc.sources.package import installed_digest

if TYPE_CHECKING:
    from adaptc.ir.low_rank import KeptAdapter
    from adaptc.ir.source_grid import SourceMatrix
    from adaptc.ir.weight_names import UnreadTensors, WeightView


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The special tokens that generation needs.

    Attributes:
        bos: First token of a text, or None.
        eos: Tokens that end an answer; may be empty.
        pad: Filler, or None.
    """

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """A pretrained model that was found; nothing of it is read yet.

    Attributes:
        path: The folder or file; of a hub repository its id.
        origin: Its name in the spec.
        kind: `folder`, `gguf`, `package`, `hub` or `module`.
        dtype: `float32`, `bfloat16` or `float16`: what weights are read as.
        revision: Branch, tag or commit of a hub repository, or None.
    """

    path: Path
    origin: str
    kind: str
    dtype: str = "float32"
    revision: str | None = None

    @property
    def title(self) -> str:
        """What a report calls the model."""
        return self.origin

    @abstractmethod
    def config(self) -> Any:
        """Return the model's transformers config, without reading a weight.

        Raises:
            LoadError: it cannot be read, or no family in `adaptc.families.table` captures its architecture.
        """

    @abstractmethod
    def token_ids(self) -> TokenIds:
        """Return the special tokens, from the generation config where there is one."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return `tokenizer.json`, `tokenizer_config.json` and, where there are some, the files of chat templates.

        Raises:
            LoadError: there is no tokenizer, or one that cannot be brought into this form.
        """

    @abstractmethod
    def tensors(self) -> UnreadTensors:
        """Return the weights by transformers parameter name; none is read yet.

        Tensors are of `dtype` and of the shapes transformers gives them. A tied head (`lm_head.weight`)
        is left out.

        Raises:
            LoadError: files are damaged, or their tensors are not those that the config's model needs.
        """

    @abstractmethod
    def files(self) -> dict[str, Path]:
        """Return every file the compiled result depends on, by its name within the source.

        Raises:
            LoadError: a file is missing, or only weights of a kind adaptc does not read are there.
        """

    @abstractmethod
    def licence(self) -> str | None:
        """Return the licence the model states, e.g. `apache-2.0`, or None."""

    def image_processor(self) -> dict[str, Any]:
        """Return the settings of the model's image processor; empty where it has none."""
        return {}

    def sentences(self) -> Sentences:
        """Return how an encoder makes one vector of a text.

        Raises:
            LoadError: a file that says so is damaged, or asks for what adaptc does not follow.
        """
        return Sentences()

    def quantization(self) -> str | None:
        """Return what the weights are quantized as, e.g. `Q4_1` or `gptq`; None where they are floats.

        Raises:
            LoadError: as in `config`.
        """
        return None

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """Return the weights that are matrices, by transformers parameter name, with the codes that the source has.

        Raises:
            LoadError: as in `tensors`.
        """
        return {}

    def kept_adapters(self, views: Mapping[str, WeightView] = MappingProxyType({})) -> tuple[KeptAdapter, ...]:
        """Return the adapters that requests choose among, by the names that a graph has for weights.

        Args:
            views: Of which of the source's weights those of the graph are parts.

        Raises:
            LoadError: one is of another base, of a kind that is not kept, or damaged.
        """
        return ()

    def remarks(self) -> tuple[str, ...]:
        """Return what is worth a warning, a sentence each: what the source says twice, or what nothing reads.

        Raises:
            LoadError: as in `config`.
        """
        return ()

    def local(self, progress: Progress = SILENT) -> Source:
        """Return the source as it lies on this machine's disk: itself, but for one that is fetched first.

        Args:
            progress: Told of what is fetched.

        Raises:
            LoadError: it cannot be fetched.
        """
        return self

    def paths(self) -> tuple[Path, ...]:
        """Return the paths of `files()`, sorted."""
        return tuple(sorted(self.files().values()))

    def sha256(self, progress: Progress = SILENT) -> str:
        """Return a hash of `files()`, names and contents, as 64 hex digits; every byte is read.

        Args:
            progress: Told of what is hashed.

        Raises:
            LoadError: a file cannot be read, or differs from the one that pip installed.
        """
        files = self.files()
        told = Hashed(progress, sum(path.stat().st_size for path in files.values() if path.is_file())).add
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda path: file_digest(self.origin, path, told), files.values())
            digests = dict(zip(files, found, strict=True))
        if self.kind == "package":
            for name, path in files.items():
                if installed_digest(self.origin, path) not in (None, digests[name]):
                    raise LoadError(f"{self.origin}: {path.name} is not what pip installed; reinstall the package")
        return hash_of(digests)
