"""Find the pretrained model that a spec names.

A source is a Hugging Face folder, a GGUF file, either of them inside an installed package or a repository of the
Hugging Face hub, or a function in a Python file. No package is imported to find a file in it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from adaptc.errors import LoadError
from adaptc.sources.adapters.files import find_adapter
from adaptc.sources.adapters.source import AdaptedSource
from adaptc.sources.base import Source
from adaptc.sources.folder.source import FolderSource
from adaptc.sources.gguf.source import GgufSource
from adaptc.sources.hub.names import HubName, hub_name, refuse_url
from adaptc.sources.hub.source import HubSource
from adaptc.sources.module import ModuleSource
from adaptc.sources.package import PREFIX, find_file
from adaptc.spec.schema import ModelSpec

_MODULE = "module:"


def find_source(model: ModelSpec, base: Path) -> Source:
    """Find a pretrained model.

    Args:
        model: One entry of the spec's `models`.
        base: Folder that relative paths start from: the spec's.

    Returns:
        The source. Files of a hub repository are fetched when they are needed, not before.

    Raises:
        LoadError: there is no such model; the message says what would help.
    """
    try:
        found = _find(model, base)
        if not model.adapters:
            return found
        if isinstance(found, ModuleSource):
            raise LoadError(f"{model.source}: adapters are for pretrained models; merge them into weights:")
        adapters = tuple(find_adapter(each, base) for each in model.adapters)
        return AdaptedSource(
            *(found.path, found.origin, found.kind, found.dtype, found.revision),
            base=found,
            adapters=tuple(each for each in adapters if not each.name),
            kept=tuple(each for each in adapters if each.name),
        )
    except OSError as error:  # a folder above it that this user may not enter, a name that is too long
        raise LoadError(f"{model.source[:100]}: cannot be read: {error.strerror}") from error


def _find(model: ModelSpec, base: Path) -> Source:
    name = model.source
    if name.startswith(_MODULE):
        return _find_module(model, base)
    if model.weights is not None or model.tokenizer is not None:
        raise LoadError(f"{name}: weights and tokenizer are for module:FILE.py:FUNCTION; this source has its own")
    in_package, path = name.startswith(PREFIX), find_file(name, base)
    if not path.exists():
        if (hub := hub_name(name)) is not None:
            return _find_on_hub(model, hub)
        if (why := refuse_url(name)) is not None:
            raise LoadError(why)
        raise LoadError(f"{name}: no such file or folder: {path}")
    if model.revision is not None:
        raise LoadError(f"{name}: revision is for hub repositories, this is on disk; remove it")
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return FolderSource(path, name, "package" if in_package else "folder", model.dtype)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise LoadError(f"{name}: one file of a model; give the folder that also has its config.json")
    return GgufSource(path, name, "package" if in_package else "gguf", model.dtype)


def _find_on_hub(model: ModelSpec, hub: HubName) -> HubSource:
    """Name a repository of the hub; nothing is fetched yet."""
    name, revision = model.source, model.revision
    if revision is not None and hub.revision not in (None, revision):
        raise LoadError(f"{name}: revision: {revision} is another than the one after @; one of the two is right")
    hub = replace(hub, revision=revision or hub.revision)
    return HubSource(Path(hub.repository, hub.file), name, "hub", model.dtype, hub.revision, name=hub)


def _find_module(model: ModelSpec, base: Path) -> ModuleSource:
    """Find a factory; nothing is run yet."""
    name = model.source
    file, _, function = name.removeprefix(_MODULE).rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise LoadError(f"{name}: no factory; module:FILE.py:FUNCTION is right")
    if model.weights is None:
        raise LoadError(f"{name}: no weights; weights: a safetensors file is right")
    path, weights = base / file, find_file(model.weights, base)
    for each, what in ((path, "file"), (weights, "weights")):
        if not each.is_file():
            raise LoadError(f"{name}: no {what} {each}")
    if weights.suffix != ".safetensors":
        raise LoadError(f"{name}: weights: {weights.name}; only .safetensors is read, which holds no code")
    tokenizer = None if model.tokenizer is None else find_file(model.tokenizer, base)
    return ModuleSource(path, name, "module", model.dtype, function=function, weights=weights, tokenizer=tokenizer)
