"""A folder's weights: which files hold them, what is in these, and which tensors the model takes.

Where a folder says two things, it is read as transformers reads it: the file before an old index, a head of its own
before a config that says tied, and no tensor without a place. Each such choice is a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError, one_line
from adaptc.families.model import head_name, multimodal_of, names_of, renamed, table_name
from adaptc.sources.folder.files import read_object

if TYPE_CHECKING:
    import torch

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of buffers that old files hold and that models compute by themselves now."""

_OLD_HEADS = ("embed_out.weight",)
"""Heads' names of old files, which transformers renames when it reads them."""

_HEADS = ("lm_head.weight", *_OLD_HEADS)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The tensors of a folder by transformers' parameter names, none of them read.

    Attributes:
        shapes: Their shapes.
        readers: For each a function that reads it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Callable[[], torch.Tensor]]


def weight_files(origin: str, folder: Path) -> dict[str, Path]:
    """Return the files that hold the weights, by name: one, or the shards that an index names.

    Raises:
        LoadError: there are none, a shard is missing or elsewhere, or the weights belong to an adapter.
    """
    if (folder / _ADAPTER).exists():
        raise LoadError(
            f"{origin}: {_ADAPTER}: an adapter, which changes the weights of its base; merge them (merge_and_unload of "
            "peft) and give the folder of the merged model"
        )
    if (folder / FILE).is_file() or not (folder / INDEX).exists():
        names = [FILE]
    else:
        shards = read_object(origin, folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise LoadError(f"{origin}: {INDEX} has no weight_map; the file is damaged")
        names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not name.isprintable():
            raise LoadError(f"{origin}: {INDEX} names a file outside the folder: {name[:100]!r}")
        if not name.endswith(".safetensors"):
            raise LoadError(f"{origin}: {INDEX} names {name[:100]}; only .safetensors is read, which holds no code")
        if len(name) > 255 or not (folder / name).is_file():
            raise LoadError(f"{origin}: {_instead(folder, name)}")
    return {name: folder / name for name in names}


def file_remarks(folder: Path) -> list[str]:
    """Return what there is to say of a folder's choice of files."""
    if (folder / FILE).is_file() and (folder / INDEX).exists():
        return [f"{FILE} stands beside {INDEX}; the file is read, as transformers does, and the index's shards are not"]
    return []


def _instead(folder: Path, name: str) -> str:
    """Why the weights are not there, and what is."""
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        return f"only {pickles[0]}, a pickle, which adaptc never opens; save the model as safetensors"
    others = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("model-"))
    if others and name == FILE:
        return f"{name} is missing, and {others[0]} is not read in its place; save the model with save_pretrained"
    return f"{name[:100]} is missing; fetch the model again"


def stored_weights(origin: str, files: Mapping[str, Path], config: Any) -> StoredWeights:
    """Return what the files hold, from their headers.

    Raises:
        LoadError: a file is damaged, or has a tensor of a kind that is not read.
    """
    stored = _as_spelled(origin, files)
    names = _full_names(config, stored.shapes)
    return StoredWeights(
        {names[name]: shape for name, shape in stored.shapes.items()},
        {names[name]: reader for name, reader in stored.readers.items()},
    )


def _as_spelled(origin: str, files: Mapping[str, Path]) -> StoredWeights:
    """What the files hold, by the names in them."""
    from safetensors import SafetensorError, safe_open

    shapes, readers = {}, {}
    for path in files.values():
        try:
            path.open("rb").close()  # safetensors says of one that may not be read that it is not there
        except OSError as error:
            raise LoadError(f"{origin}: {path.name} cannot be read: {error.strerror}") from error
        try:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name.endswith(_BUFFERS):
                    continue
                part = file.get_slice(name)
                if part.get_dtype() not in _FLOATS:
                    raise LoadError(f"{origin}: {name} is {part.get_dtype()}; adaptc reads {', '.join(_FLOATS)}")
                shapes[name], readers[name] = tuple(part.get_shape()), partial(file.get_tensor, name)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{origin}: {path.name} is damaged or cut short: {one_line(error)}") from error
    return StoredWeights(shapes, readers)


def check_headers(origin: str, files: Mapping[str, Path]) -> None:
    """Refuse files that are cut short or damaged as far as their headers tell: hashing large ones takes minutes.

    Raises:
        LoadError: a file is.
    """
    from safetensors import SafetensorError, safe_open

    for path in files.values():
        try:
            with path.open("rb"), safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise LoadError(f"{origin}: {path.name} is damaged or cut short: {one_line(error)}") from error
        except OSError as error:
            raise LoadError(f"{origin}: {path.name} cannot be read: {error.strerror or one_line(error)}") from error


def with_tied_table(config: Any, stored: StoredWeights) -> StoredWeights:
    """Return the weights with the head as the table where only the head is stored, as transformers ties them."""
    table, head = table_name(config), head_name(config)
    if not config.tie_word_embeddings or table in stored.shapes or head not in stored.shapes:
        return stored
    moved = {head: table}
    return StoredWeights(
        {moved.get(name, name): shape for name, shape in stored.shapes.items()},
        {moved.get(name, name): reader for name, reader in stored.readers.items()},
    )


def has_own_head(origin: str, files: Mapping[str, Path], config: Any) -> bool:
    """Return whether the files hold a head that is not the table: then transformers ties nothing, whatever it is told.

    Only where both are stored are they read.

    Raises:
        LoadError: as in `stored_weights`.
    """
    stored = _as_spelled(origin, files)
    if not any(name.endswith(_HEADS) for name in stored.shapes):
        return False
    spelled = {full: name for name, full in _full_names(config, stored.shapes).items()}
    head, table = (spelled.get(name) for name in (head_name(config), table_name(config)))
    if head is None or table is None:
        return False
    if stored.shapes[head] != stored.shapes[table]:
        return True
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files.values())
    return _differ(origin, stamps, head, table)


@lru_cache(maxsize=8)  # a table is hundreds of megabytes, and a compile asks for the config several times
def _differ(origin: str, stamps: tuple[tuple[Path, int, int], ...], *names: str) -> bool:
    """Whether two tensors differ; `stamps` are the files with their sizes and times."""
    import torch

    readers = _as_spelled(origin, {path.name: path for path, *_ in stamps}).readers
    first, second = (readers[name]() for name in names)
    return not torch.equal(first, second.to(first.dtype))


def _full_names(config: Any, names: Mapping[str, object]) -> dict[str, str]:
    """The name that transformers' model gives to each tensor."""
    if multimodal_of(config) is not None:
        return renamed(config, names)
    called = names_of(config)
    if f"{called.table}.weight" in names:  # saved from the model without its head
        head = head_name(config)
        return {name: name if name == head else f"{called.decoder}.{name}" for name in names}
    if any(name.endswith(_OLD_HEADS) for name in names):
        return renamed(config, names)
    return {name: name for name in names}
