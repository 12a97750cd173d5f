"""A GGUF file's tensors as the parameters of transformers' model: by their names, in their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptc.errors import LoadError
from adaptc.families.base import ModuleNames
from adaptc.sources.gguf.config import family_and_layout
from adaptc.sources.gguf.file import GgufFile, GgufTensor
from adaptc.sources.gguf.rope import FACTORS, LONG_FACTORS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """A parameter of transformers' model as a file holds it.

    Attributes:
        tensor: The tensor that has it.
        row: Which row of the tensor it is; None for the whole.
        turned: Whether the tensor is [outputs, inputs] and the parameter [inputs, outputs].
    """

    tensor: GgufTensor
    row: int | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        if self.row is not None:
            return self.tensor.shape[1:]
        return self.tensor.shape[::-1] if self.turned else self.tensor.shape


def parameter_names(file: GgufFile) -> dict[str, StoredParameter]:
    """Return the file's tensors by the parameter names of the transformers model.

    Raises:
        LoadError: a tensor with no place in the model.
    """
    family, layout = family_and_layout(file)
    tensors = dict[str, StoredParameter]()
    inside = {**layout.layer_names, **(layout.renamed(file) if layout.renamed is not None else {})}
    outside, stem = _outside_layers(family.names), f"{family.names.decoder}.{family.names.layers}"
    for name, tensor in file.tensors.items():
        if (name == FACTORS and layout.rope_factors) or (name in LONG_FACTORS.values() and layout.long_rope):
            continue
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        outer = re.fullmatch(r"(\w+)\.(weight|bias)", name)
        if layer and layer[2] in inside:
            path = f"{stem}.{layer[1]}.{inside[layer[2]]}.{layer[3]}"
            whole = StoredParameter(tensor, turned=layer[2] in layout.turned and layer[3] == "weight")
            rows = range(tensor.shape[0] if ".*." in path else 0)
            each = {path.replace(".*.", f".{row}."): StoredParameter(tensor, row) for row in rows}
            tensors |= each or {path: whole}
        elif outer and outer[1] in outside:
            tensors[f"{outside[outer[1]]}.{outer[2]}"] = StoredParameter(tensor)
        else:
            raise LoadError(f"{file.path}: tensor {name} has no place in a {family.model_type} model")
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
        name: StoredParameter(GgufTensor(name, shape, kind=0, start=0, bytes=0))
        for name, shape in wanted.items()
        if name.endswith(".bias") and name not in there
    }


def read_parameter(file: GgufFile, parameter: StoredParameter, heads: int, kv_heads: int) -> Array:
    """Read one parameter in transformers' layout.

    Args:
        file: The file that holds it.
        parameter: One of its parameters.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.

    Returns:
        float32, of the shape of the transformers parameter.

    Raises:
        LoadError: the file cannot be read.
    """
    _, layout = family_and_layout(file)
    tensor = parameter.tensor
    values = layout.weight(tensor.name, file.read(tensor), heads, kv_heads)
    if parameter.row is not None:
        row: Array = values[parameter.row]
        return row
    return values.T if parameter.turned else values
