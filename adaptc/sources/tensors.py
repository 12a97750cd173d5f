"""Weights by name: read when they are asked for, compared by shape with what the config's model needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.encoder_model import encoder_of
from adaptc.families.model import head_name, model_of, names_of, text_of
from adaptc.ir.weight_names import UnreadTensors

if TYPE_CHECKING:
    import torch


class Tensors(UnreadTensors):
    """Weights by name, each read when it is asked for.

    Args:
        origin: The model's name in the spec, for errors.
        dtype: Name of the torch dtype that tensors come in.
        readers: For each name, a function that reads it.
        shapes: For each name, the shape that it comes in.
    """

    __slots__ = ("_dtype", "_origin", "_readers", "_shapes")

    def __init__(
        self,
        origin: str,
        dtype: str,
        readers: Mapping[str, Callable[[], torch.Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._origin, self._dtype, self._readers, self._shapes = origin, dtype, readers, shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """See `UnreadTensors.shape`."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """See `UnreadTensors.dtype`; it is one for all."""
        import torch

        dtype: torch.dtype = getattr(torch, self._dtype)
        return dtype

    def stored(self, name: str) -> torch.Tensor:
        """See `UnreadTensors.stored`.

        Raises:
            LoadError: it cannot be read, has values that are not finite, or some that are beyond `dtype`.
        """
        import torch

        tensor = self._readers[name]()
        # NaN and infinity show in the extremes, which need no copy the tensor's size, as isfinite does.
        extremes = [extreme.item() for extreme in torch.aminmax(tensor)]
        if not all(map(math.isfinite, extremes)):
            raise LoadError(f"{self._origin}: tensor {name} has values that are not finite; the file is damaged")
        largest, end = max(map(abs, extremes)), torch.finfo(self.dtype(name)).max
        if largest > end:
            wider = "dtype: bfloat16 or float32" if self._dtype == "float16" else "a model of smaller weights"
            raise LoadError(
                f"{self._origin}: tensor {name} has {largest:.4g}; {self._dtype} ends at {end:.4g}: {wider} is right"
            )
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def check_shapes(origin: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Compare tensors on disk with what transformers' model of this config has, as `needed` does, and refuse others.

    Raises:
        LoadError: as in `needed`, or a tensor has no place in the model.
    """
    names = needed(origin, config, shapes)
    for name in without_place(config, shapes):
        raise LoadError(f"{origin}: tensor {name} has no place in a {config.model_type} model")
    return names


def needed(origin: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Compare tensors on disk with what transformers' model of this config needs.

    Args:
        origin: The model's name in the spec, for errors.
        config: The model's config.
        shapes: Shapes on disk by parameter name.

    Returns:
        The names the model needs, without a tied head.

    Raises:
        LoadError: one is missing, or has another shape.
    """
    if encoder_of(config) is None:
        _check_depth(origin, config, shapes)
    wanted = parameter_shapes(config)
    tied = {head_name(config)} if config.tie_word_embeddings else set()
    for name in wanted.keys() - tied:
        if name not in shapes:
            raise LoadError(f"{origin}: the weights have no {name}, which a {config.model_type} model needs")
        if shapes[name] != wanted[name]:
            raise LoadError(
                f"{origin}: {name} is {list(shapes[name])}; by its config it should be {list(wanted[name])}"
            )
    return wanted.keys() - tied


def _check_depth(origin: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a decoder of fewer layers than its config says: the first that is missing would be named, of many."""
    names = names_of(config)
    stem = re.compile(rf"{re.escape(names.decoder)}\.{names.layers}\.(\d+)\.")
    layers = {match[1] for name in shapes if (match := stem.match(name))}
    if len(layers) < (depth := text_of(config).num_hidden_layers):
        raise LoadError(f"{origin}: weights for {len(layers)} layers; by its config there are {depth}")


def without_place(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of tensors on disk that transformers' model of this config does not have, in order."""
    return sorted(shapes.keys() - parameter_shapes(config).keys())


def parameter_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of transformers' model of this config, by its name."""
    return dict(_shapes(_Stated(type(config), config.to_json_string(), config)))


@dataclass(frozen=True, slots=True)
class _Stated:
    """A config that is equal to those which state the same."""

    kind: type
    text: str
    config: Any = field(compare=False)


@lru_cache(maxsize=4)  # a model of full depth takes a tenth of a second and more, and a compile asks for it six times
def _shapes(stated: _Stated) -> Mapping[str, tuple[int, ...]]:
    import torch

    with torch.device("meta"):
        state = model_of(stated.config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
