"""A folder's weights: which files hold them, what is in these, and which tensors the model takes.

Where a folder says two things, it is read as transformers reads it: the file before an old index, a head of its own
before a config that says tied, and no tensor without a place. Each such choice is a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError, one_line
from adaptc.families.encoder_model import encoder_of
from adaptc.families.model import has_experts, head_name, multimodal_of, names_of, renamed, stacked, table_name
from adaptc.ir.source_grid import SourceGrid, SourceMatrix
from adaptc.sources.folder.files import ADAPTER, read_object
from adaptc.sources.folder.mapped import mapped, starts_of
from adaptc.sources.quantized.methods import PutTogether, put_together
from adaptc.sources.quantized.packed import FLOATS, Method, PackedMatrix, Piece

if TYPE_CHECKING:
    import torch

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
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
        readers: For each a function that reads it; as floats, if it is quantized.
        grids: For those of quantized weights that lie on a grid, a function that reads their codes.
        unread: Names of scales of activations and of KV caches, which are floats here.
    """

    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Callable[[], torch.Tensor]]
    grids: Mapping[str, Callable[[], SourceGrid | None]] = field(default_factory=lambda: MappingProxyType({}))
    unread: tuple[str, ...] = ()

    def named(self, names: Mapping[str, str]) -> StoredWeights:
        """The same by other names; those that have no other keep theirs."""
        return StoredWeights(
            {names.get(name, name): shape for name, shape in self.shapes.items()},
            {names.get(name, name): reader for name, reader in self.readers.items()},
            {names.get(name, name): reader for name, reader in self.grids.items()},
            self.unread,
        )

    def matrices(self, names: Collection[str]) -> dict[str, SourceMatrix]:
        """Those of these names that are matrices, with the codes that the files have."""
        return {
            name: SourceMatrix(shape[0], self.grids.get(name, _as_floats))
            for name, shape in self.shapes.items()
            if name in names and len(shape) == 2
        }


def _as_floats() -> None:
    """What a matrix that is stored as floats has of codes."""


def weight_files(origin: str, folder: Path) -> dict[str, Path]:
    """Return the files that hold the weights, by name: one, or the shards that an index names.

    Raises:
        LoadError: there are none, a shard is missing or elsewhere, or the weights belong to an adapter.
    """
    refuse_adapter(origin, folder)
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


def refuse_adapter(origin: str, folder: Path) -> None:
    """Refuse the folder of an adapter, which is no model.

    Raises:
        LoadError: it is one.
    """
    if (folder / ADAPTER).exists():
        raise LoadError(
            f"{origin}: {ADAPTER}: an adapter, which changes the weights of its base; source: the base, and "
            f"adapters: [{origin}], are right"
        )


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


def stored_weights(origin: str, files: Mapping[str, Path], config: Any, method: Method | None = None) -> StoredWeights:
    """Return what the files hold, from their headers.

    Args:
        origin: The model's name in the spec, for errors.
        files: By name.
        config: The model's config.
        method: How the weights are quantized; None if they are floats.

    Raises:
        LoadError: a file is damaged, has a tensor of a kind that is not read, or lacks a matrix of an expert.
    """
    stored = safetensors_in(origin, files, method)
    if has_experts(config):
        return _stacked(origin, stored, config)
    return stored.named(_full_names(config, stored.shapes))


def safetensors_in(origin: str, files: Mapping[str, Path], method: Method | None = None) -> StoredWeights:
    """Return what safetensors files hold, by the names in them.

    Args:
        origin: The model's name in the spec, for errors.
        files: By name.
        method: How the weights are quantized; None if they are floats.

    Raises:
        LoadError: a file is damaged, or has a tensor of a kind that is not read.
    """
    pieces = _pieces(origin, files)
    held = PutTogether({}, pieces) if method is None else put_together(method, pieces)
    matrices, rest = held.matrices, held.rest
    for name, piece in rest.items():
        if piece.dtype not in FLOATS:
            raise LoadError(f"{origin}: {name} is {piece.dtype}; adaptc reads {', '.join(FLOATS)}")
    return StoredWeights(
        {name: piece.shape for name, piece in rest.items()} | {name: each.shape for name, each in matrices.items()},
        {name: piece.read for name, piece in rest.items()}
        | {name: partial(_tensor, each) for name, each in matrices.items()},
        {name: each.grid for name, each in matrices.items() if each.grid is not None},
        held.unread,
    )


def _stacked(origin: str, stored: StoredWeights, config: Any) -> StoredWeights:
    """What the files of a model with experts hold, where transformers has one parameter for all experts of a block."""
    try:
        whole, stacks = stacked(config, stored.shapes)
    except LoadError as error:
        raise LoadError(f"{origin}: {error}") from error
    shapes = {full: stored.shapes[name] for name, full in whole.items()}
    readers = {full: stored.readers[name] for name, full in whole.items()}
    for full, kinds in stacks.items():
        for names in kinds:
            if len({stored.shapes[name] for name in names}) > 1 or len(stored.shapes[names[0]]) != 2:
                raise LoadError(f"{origin}: {full}: its experts' matrices differ in shape; the files are damaged")
        rows = [stored.shapes[names[0]][0] for names in kinds]
        shapes[full] = (len(kinds[0]), sum(rows), stored.shapes[kinds[0][0]][1])
        readers[full] = partial(
            _read_stack, shapes[full], [[stored.readers[each] for each in names] for names in kinds]
        )
    grids = {full: stored.grids[name] for name, full in whole.items() if name in stored.grids}
    return StoredWeights(shapes, readers, grids, stored.unread)


def _read_stack(shape: tuple[int, ...], kinds: Sequence[Sequence[Callable[[], torch.Tensor]]]) -> torch.Tensor:
    """Read the matrices of all experts into one tensor; beside it, one matrix is held at a time."""
    import torch

    whole = torch.empty(shape, dtype=kinds[0][0]().dtype)
    first = 0
    for readers in kinds:
        for expert, reader in enumerate(readers):
            matrix = reader()
            whole[expert, first : first + len(matrix)] = matrix
        first += len(matrix)
    return whole


def _tensor(matrix: PackedMatrix) -> torch.Tensor:
    import torch

    return torch.from_numpy(matrix.dense())


def _pieces(origin: str, files: Mapping[str, Path]) -> dict[str, Piece]:
    """The tensors of the files, by the names in them."""
    from safetensors import SafetensorError, safe_open

    pieces = {}
    for path in files.values():
        try:
            path.open("rb").close()  # safetensors says of one that may not be read that it is not there
        except OSError as error:
            raise LoadError(f"{origin}: {path.name} cannot be read: {error.strerror}") from error
        try:
            file: Any = safe_open(path, framework="pt")
            starts = starts_of(path)
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name.endswith(_BUFFERS):
                    continue
                part = file.get_slice(name)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                read = partial(mapped, origin, path, dtype, shape, starts[name]) if dtype in FLOATS else None
                pieces[name] = Piece(dtype, shape, read or partial(file.get_tensor, name))
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{origin}: {path.name} is damaged or cut short: {one_line(error)}") from error
    return pieces


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
    return stored.named({head: table})


def has_own_head(origin: str, files: Mapping[str, Path], config: Any, method: Method | None = None) -> bool:
    """Return whether the files hold a head that is not the table: then transformers ties nothing, whatever it is told.

    Only where both are stored are they read. The arguments are those of `stored_weights`.

    Raises:
        LoadError: as in `stored_weights`.
    """
    stored = safetensors_in(origin, files, method)
    if not any(name.endswith(_HEADS) for name in stored.shapes):
        return False
    spelled = {full: name for name, full in _full_names(config, stored.shapes).items()}
    head, table = (spelled.get(name) for name in (head_name(config), table_name(config)))
    if head is None or table is None:
        return False
    if stored.shapes[head] != stored.shapes[table]:
        return True
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files.values())
    return _differ(origin, stamps, method, head, table)


@lru_cache(maxsize=8)  # a table is hundreds of megabytes, and a compile asks for the config several times
def _differ(origin: str, stamps: tuple[tuple[Path, int, int], ...], method: Method | None, *names: str) -> bool:
    """Whether two tensors differ; `stamps` are the files with their sizes and times."""
    import torch

    readers = safetensors_in(origin, {path.name: path for path, *_ in stamps}, method).readers
    first, second = (readers[name]() for name in names)
    return not torch.equal(first, second.to(first.dtype))


def _full_names(config: Any, names: Mapping[str, object]) -> dict[str, str]:
    """The name that transformers' model gives to each tensor."""
    if multimodal_of(config) is not None or encoder_of(config) is not None:
        return renamed(config, names)
    called = names_of(config)
    if f"{called.table}.weight" in names:  # saved from the model without its head
        head = head_name(config)
        return {name: name if name == head else f"{called.decoder}.{name}" for name in names}
    if any(name.endswith(_OLD_HEADS) for name in names):
        return renamed(config, names)
    return {name: name for name in names}
