"""A GGUF file's tensors as the parameters of transformers' model: by their names, in their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptc.errors import LoadError
from adaptc.families.base import ModuleNames
from adaptc.sources.gguf.config import family_and_layout
from adaptc.sources.gguf.file import GgufFile, GgufTensor
from adaptc.sources.gguf.grids import has_grid, read_grid
from adaptc.sources.gguf.rope import FACTORS, LONG_FACTORS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adaptc.ir.source_grid import SourceGrid

    Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """A parameter of transformers' model as a file holds it.

    Attributes:
        tensors: One tensor; or those of shape [experts, rows, columns] whose rows are its rows, one below the other.
        row: Which row of the tensor it is; None for the whole.
        turned: Whether the tensor is [outputs, inputs] and the parameter [inputs, outputs]; of experts, with an axis of
            these before.
    """

    tensors: tuple[GgufTensor, ...]
    row: int | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, as far as the tensors fit each other; a matrix of one row may be stored as a vector."""
        first = self.tensors[0].shape
        if len(self.tensors) > 1:
            first = (first[0], sum(tensor.shape[1] for tensor in self.tensors), *first[2:])
        if self.row is not None:
            return first[1:]
        return (*first[:-2], *first[:-3:-1]) if self.turned else first

    @property
    def whole(self) -> bool:
        """Whether it is one tensor as the file has it, but for the order of rows."""
        return len(self.tensors) == 1 and self.row is None and not self.turned


def parameter_names(file: GgufFile) -> dict[str, StoredParameter]:
    """Return the file's tensors by the parameter names of the transformers model.

    Raises:
        LoadError: a tensor with no place in the model, or one of several that belong together is missing.
    """
    family, layout = family_and_layout(file)
    tensors = dict[str, StoredParameter]()
    of_experts = {name: path for path, names in layout.experts.items() for name in names}
    inside = {**layout.layer_names, **(layout.renamed(file) if layout.renamed is not None else {})}
    outside, stem = _outside_layers(family.names), f"{family.names.decoder}.{family.names.layers}"
    for name, tensor in file.tensors.items():
        if (name == FACTORS and layout.rope_factors) or (name in LONG_FACTORS.values() and layout.long_rope):
            continue
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        outer = re.fullmatch(r"(\w+)\.(weight|bias)", name)
        if layer and layer[2] in inside:
            path = f"{stem}.{layer[1]}.{inside[layer[2]]}.{layer[3]}"
            whole = StoredParameter((tensor,), turned=layer[2] in layout.turned and layer[3] == "weight")
            rows = range(tensor.shape[0] if ".*." in path else 0)
            each = {path.replace(".*.", f".{row}."): StoredParameter((tensor,), row) for row in rows}
            tensors |= each or {path: whole}
        elif layer and layer[2] in of_experts and layer[3] == "weight":
            path = of_experts[layer[2]]
            parts = [f"blk.{layer[1]}.{part}.weight" for part in layout.experts[path]]
            together = _together(file, parts)
            tensors[f"{stem}.{layer[1]}.{path}"] = StoredParameter(together, turned=layer[2] in layout.turned)
        elif outer and outer[1] in outside:
            tensors[f"{outside[outer[1]]}.{outer[2]}"] = StoredParameter((tensor,))
        else:
            raise LoadError(f"{file.path}: tensor {name} has no place in a {family.model_type} model")
    return tensors


def _together(file: GgufFile, names: Sequence[str]) -> tuple[GgufTensor, ...]:
    """The tensors that make up the matrices of a block's experts."""
    for name in names:
        if name not in file.tensors or len(file.tensors[name].shape) != 3:
            raise LoadError(f"{file.path}: no tensor {name} of [experts, rows, columns] beside {', '.join(names)}")
    tensors = tuple(file.tensors[name] for name in names)
    if len({(tensor.shape[0], tensor.shape[2]) for tensor in tensors}) > 1:
        raise LoadError(f"{file.path}: {' and '.join(names)} are of experts that do not fit each other")
    return tensors


def _outside_layers(names: ModuleNames) -> dict[str, str]:
    """Module paths outside the layers by GGUF name."""
    found = {
        "token_embd": f"{names.decoder}.{names.table}",
        "output_norm": f"{names.decoder}.{names.norm}",
        "output": names.head,
    }
    return found | ({"position_embd": f"{names.decoder}.{names.positions}"} if names.positions else {})


def zero_biases(file: GgufFile, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, StoredParameter]:
    """Return the biases that a model has and a file leaves out: they are zero, as llama.cpp adds only those it finds.

    Args:
        file: The header.
        wanted: Shapes of the model's parameters by name.

    Raises:
        LoadError: as in `parameter_names`.
    """
    there = parameter_names(file)
    return {
        name: StoredParameter((GgufTensor(name, shape, kind=0, start=0, bytes=0),))
        for name, shape in wanted.items()
        if name.endswith(".bias") and name not in there
    }


def read_parameter(
    file: GgufFile, parameter: StoredParameter, shape: tuple[int, ...], heads: int, kv_heads: int
) -> Array:
    """Read one parameter in transformers' layout.

    Args:
        file: The file that holds it.
        parameter: One of its parameters.
        shape: The parameter's shape in the model.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.

    Returns:
        float32 of this shape.

    Raises:
        LoadError: the file cannot be read.
    """
    import numpy as np

    _, layout = family_and_layout(file)
    parts = [layout.weight(tensor.name, file.read(tensor), heads, kv_heads) for tensor in parameter.tensors]
    whole: Array = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
    if parameter.row is not None:
        whole = whole[parameter.row]
    return (np.swapaxes(whole, -1, -2) if parameter.turned else whole).reshape(shape)


def read_matrix(file: GgufFile, tensor: GgufTensor, heads: int, kv_heads: int) -> SourceGrid | None:
    """Read one matrix's codes in transformers' layout.

    Args:
        file: The file that holds it.
        tensor: One of its tensors.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.

    Returns:
        The codes; None where the tensor's type has no grid, or the family does more to it than to order its rows.

    Raises:
        LoadError: the file cannot be read.
    """
    import numpy as np

    if not has_grid(tensor):
        return None
    _, layout = family_and_layout(file)
    rows = tensor.shape[0]
    numbered = np.arange(rows, dtype=np.float32)[:, None].repeat(2, 1)
    placed = layout.weight(tensor.name, numbered, heads, kv_heads)
    order = placed[:, 0].astype(np.int64)
    whole = placed.shape == numbered.shape and (placed[:, 0] == placed[:, 1]).all() and (order == placed[:, 0]).all()
    if rows >= 1 << 24 or not whole or not np.array_equal(np.sort(order), np.arange(rows)):
        return None
    grid = read_grid(file, tensor)
    return grid if grid is None or np.array_equal(order, np.arange(rows)) else grid.rows(order)
