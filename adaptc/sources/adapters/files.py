"""Where an adapter lies, and the tensors in its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptc.errors import LoadError
from adaptc.sources.folder.files import ADAPTER
from adaptc.sources.folder.weights import safetensors_in
from adaptc.sources.hub.fetching import Repository
from adaptc.sources.hub.names import hub_name
from adaptc.sources.package import find_file
from adaptc.spec.schema import AdapterSpec

if TYPE_CHECKING:
    import torch

FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was found; nothing of it is read yet.

    Attributes:
        origin: Its name in the spec.
        weight: What its change is multiplied by.
        path: Its folder; of a repository of the hub, None until it is fetched.
        name: What requests call it; "" for one that is merged.
    """

    origin: str
    weight: float
    path: Path | None
    name: str = ""

    def folder(self) -> Path:
        """Return its folder, which a repository of the hub is fetched into first.

        Raises:
            LoadError: it cannot be fetched, or lacks its config or its weights.
        """
        folder = self.path
        if folder is None:
            name = hub_name(self.origin)
            assert name is not None  # so it was found
            repository = Repository(self.origin, name)
            folder = repository.folder()
            if (folder / ADAPTER).exists():
                folder = repository.with_file(folder, FILE)
        if not (folder / ADAPTER).is_file():
            raise LoadError(f"{self.origin}: no {ADAPTER}; the folder of an adapter, as peft saves it, is right")
        if not (folder / FILE).is_file():
            pickled = "; adapter_model.bin is a pickle, which adaptc never opens" if _pickled(folder) else ""
            raise LoadError(f"{self.origin}: no {FILE}{pickled or '; save the adapter with save_pretrained of peft'}")
        return folder

    def files(self) -> dict[str, Path]:
        """Return the files that decide what it changes, by name.

        Raises:
            LoadError: as in `folder`.
        """
        folder = self.folder()
        return {name: folder / name for name in (ADAPTER, FILE)}


def _pickled(folder: Path) -> bool:
    return (folder / "adapter_model.bin").exists()


def find_adapter(spec: AdapterSpec, base: Path) -> Adapter:
    """Find an adapter that a spec names; one of the hub is not fetched yet.

    Args:
        spec: The entry of a model's `adapters`.
        base: Folder that relative paths start from: the spec's.

    Raises:
        LoadError: there is none.
    """
    found = Adapter(spec.source, spec.weight, find_file(spec.source, base), spec.name or "")
    if found.path is not None and found.path.is_dir():
        return found
    if found.path is not None and found.path.exists():
        raise LoadError(f"{spec.source}: one file of an adapter; the folder that also has its {ADAPTER} is right")
    name = hub_name(spec.source)
    if name is None or name.file:
        raise LoadError(f"{spec.source}: no such folder: {found.path}")
    return replace(found, path=None)


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """A tensor of an adapter's file.

    Attributes:
        shape: Its shape.
        read: Reads it.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def stored_tensors(adapter: Adapter) -> Mapping[str, AdapterTensor]:
    """Return the tensors of an adapter's file by their names in the base model.

    Raises:
        LoadError: the file is damaged, or holds something else than floats.
    """
    stored = safetensors_in(adapter.origin, {FILE: adapter.folder() / FILE})
    return {
        name.removeprefix(_PREFIX): AdapterTensor(shape, stored.readers[name]) for name, shape in stored.shapes.items()
    }
