"""What is fetched of a repository: the files that decide the model, then its weights, through the hub's own cache.

`HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the token of `hf auth login` mean what they mean to the
hub's library, which does the fetching: in several threads, with hashes, and going on where a connection broke.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import LoadError
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.folder.files import ADAPTER, CONFIGS, TOKENIZER
from adaptc.sources.folder.weights import FILE, INDEX
from adaptc.sources.hub.names import HubName
from adaptc.sources.hub.refusals import hub_refusals

WITHOUT_WEIGHTS = (*CONFIGS, *TOKENIZER, INDEX, ADAPTER, "README.md")
"""Patterns of the files that are read before any weight."""

BELOW = ("[!a0-9]*/*", "a[!d]*/*")
"""Patterns of files in folders of a repository, which hold other forms of the model (original/, onnx/): a pattern's `*`
stands for slashes too. Folders that begin with "ad" are read, additional_chat_templates/, and with a digit,
1_Pooling/."""

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub.

    Attributes:
        origin: The model's name in the spec, for errors.
        name: Its name on the hub.
    """

    origin: str
    name: HubName

    def folder(self) -> Path:
        """Return the folder of a commit in the cache, with all files that are read before any weight.

        What is whole in the cache is taken as it is, without asking the hub: a branch is not looked up again.

        Raises:
            LoadError: it is not in the cache, and the hub has none, refuses it or cannot be reached.
        """
        return self._get(WITHOUT_WEIGHTS, BELOW)

    def with_weights(self, folder: Path, progress: Progress = SILENT) -> Path:
        """Return the folder with its weights: model.safetensors, or the shards of the index, and nothing else.

        Args:
            folder: What `folder` returned.
            progress: Told of megabytes.

        Raises:
            LoadError: as in `folder`; or the repository has no safetensors.
        """
        shards = _shards(folder / INDEX)
        if shards and not (folder / FILE).is_file() and not all((folder / name).is_file() for name in shards):
            shards = shards if FILE not in self.files(folder.name) else ()  # the file comes before an index
        wanted = shards or (FILE,)
        if not all((folder / name).is_file() for name in wanted):
            if not shards and FILE not in (files := self.files(folder.name)):
                raise self.lacks(FILE, files)
            self._get(wanted, (), folder.name, progress)
        return folder

    def with_file(self, folder: Path, name: str) -> Path:
        """Return the folder of a commit with one more file, if the repository has it.

        Raises:
            LoadError: as in `folder`.
        """
        if not (folder / name).is_file() and name in self.files(folder.name):
            self._get((name,), (), folder.name)
        return folder

    def lacks(self, what: str, files: Sequence[str]) -> LoadError:
        """Return the error that says that a repository of these files has no such one, and what it has instead."""
        return LoadError(f"{self.origin}: the hub's repository has no {what}{_instead(files, self.name)}")

    def file(self, progress: Progress = SILENT) -> Path:
        """Return the path of the one file that is meant, in the cache.

        Raises:
            LoadError: as in `folder`; or the repository has no such file.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.name.repository, self.name.file, revision=self.name.revision)
        if isinstance(cached, str):
            return Path(cached)
        with hub_refusals(self.origin, self.name):
            path = hf_hub_download(
                self.name.repository, self.name.file, revision=self.name.revision, tqdm_class=bar_of(progress)
            )
        return Path(path)

    def files(self, commit: str) -> list[str]:
        """Return the names of all files of a commit.

        Raises:
            LoadError: as in `folder`.
        """
        from huggingface_hub import HfApi

        with hub_refusals(self.origin, self.name):
            return list(HfApi().list_repo_files(self.name.repository, revision=commit))

    def _get(
        self, wanted: Sequence[str], left_out: Sequence[str], commit: str | None = None, progress: Progress = SILENT
    ) -> Path:
        from huggingface_hub import errors, snapshot_download

        options: dict[str, Any] = {
            "repo_id": self.name.repository,
            "revision": commit or self.name.revision,
            "allow_patterns": list(wanted),
            "ignore_patterns": list(left_out),
        }
        cached: Path | None = None
        with contextlib.suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):
            cached = Path(str(snapshot_download(**options, local_files_only=True)))
        if cached is not None and _listed(cached) and commit is None:
            return cached
        try:
            with hub_refusals(self.origin, self.name):
                return Path(str(snapshot_download(**options, tqdm_class=bar_of(progress))))
        except LoadError:
            if cached is None or not (cached / CONFIGS[0]).is_file() or commit is not None:
                raise
            return cached  # other programs have put there what they needed, which may be all


def _listed(folder: Path) -> bool:
    """Whether the hub's list of this commit is in the cache: then the library has compared what is there with it."""
    return (folder.parents[1] / "trees" / f"{folder.name}.json").is_file()


def _shards(index: Path) -> tuple[str, ...]:
    """The files that an index names; none where it is not there or damaged, which reading the weights refuses."""
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ()
    names = {name for name in places if isinstance(name, str) and Path(name).name == name}
    return tuple(sorted(name for name in names if name.endswith(".safetensors")))


def _instead(files: Sequence[str], name: HubName) -> str:
    """What the repository has in the place of a model."""
    if ADAPTER in files:
        return f", but {ADAPTER}: an adapter; source: its base, and adapters: [{name.repository}], are right"
    if gguf := [each for each in files if each.endswith(".gguf")]:
        return f", but GGUF files: {name.repository}/{gguf[0]} names one"
    pickles = [each for each in files if each.endswith((".bin", ".pt", ".pth"))]
    return f", but {pickles[0]}, a pickle, which adaptc never opens" if pickles else "; another repository is right"


def bar_of(progress: Progress) -> Any:
    """Return what the hub's library takes for a class of progress bars: it tells `progress` of megabytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Megabytes(tqdm):
        """Counts bytes and shows nothing by itself; bars of anything else are silent."""

        def __init__(self, *args: Any, **options: Any) -> None:
            # Two bars count bytes: what came over the network, and what is on the disk. The second is the whole.
            self._counts = options.get("unit") == "B" and "transfer" not in str(options.get("name"))
            options.pop("name", None)
            self.bytes = int(options.get("initial") or 0)
            tqdm.__init__(self, *args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            if self._counts and self.total and self.total >= _MB:
                progress.step(self.bytes // _MB, int(self.total) // _MB, "MB fetched")

    return Megabytes
