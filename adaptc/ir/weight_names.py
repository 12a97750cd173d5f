"""Names of weights, and what they say: whose a weight is, and whether it was trained for gates.

In graphs that join several models each is called after its model, `large.model.norm.weight`.

Checkpoints join matrices in ways of their own (query, key and value; gate and up) and store some turned. A captured
graph has each matrix by itself, so that every pass sees the same form; a `WeightView` says where in a pretrained
weight it is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GATES = "gates.data"
"""File of everything trained for gates, whatever its size, so that it can be replaced: see `adaptc.compiler.swap`."""

_TRAINED = re.compile(r"\.skip\.(gate|cheap)\.[^/]+$")
"""Names of weights that are trained for gates, and of what they become in a target."""


def is_trained(weight: str) -> bool:
    """Whether a constant of this name was trained for gates."""
    return _TRAINED.search(weight) is not None


def named_after(model: str, weight: str) -> str:
    """What a model's weight, or module, is called in a graph of several models."""
    return f"{model}.{weight}"


def owner_of(weight: str, models: Iterable[str]) -> str:
    """Which of these models a weight is called after; "" for none of them.

    Args:
        weight: Its name, or a name that a pass made by adding to it.
        models: Names of models.
    """
    return next((model for model in models if model and weight.startswith(named_after(model, ""))), "")


Runs = tuple[tuple[int, int], ...]
"""Rows as runs, (first, one past the last)."""


@dataclass(frozen=True, slots=True)
class WeightView:
    """Where a graph's weight is in the pretrained model.

    Attributes:
        source: Name of the pretrained weight.
        turned: Whether that is stored as [inputs, outputs], or as [experts, inputs, outputs].
        rows: Which of its outputs, in order; empty for all.
    """

    source: str
    turned: bool = False
    rows: Runs = ()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part of a pretrained weight of this shape."""
        whole = (*shape[:-2], *shape[:-3:-1]) if self.turned and len(shape) > 1 else shape
        return (sum(end - first for first, end in self.rows), *whole[1:]) if self.rows else whole

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The part of the pretrained weight; it shares memory where it is one run of whole rows."""
        import torch

        if self.turned and weight.ndim > 1:
            weight = weight.transpose(-1, -2).contiguous()
        if not self.rows:
            return weight
        parts = [weight[first:end] for first, end in self.rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class UnreadTensors(Mapping[str, "torch.Tensor"]):
    """Weights by name, each read when it is asked for; what their files say of them is known before."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The type that a weight comes in."""

    @abstractmethod
    def stored(self, name: str) -> torch.Tensor:
        """A weight in the type that its file has; rows of it are brought into `dtype` without a copy of the whole."""

    def identity(self, name: str) -> str:
        """What a weight is known by without being read: another one for other numbers; "" where there is no such."""
        return ""

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored(name).to(self.dtype(name))


@dataclass(frozen=True)
class KnownTensors(UnreadTensors):
    """Weights of files whose content is known by a hash.

    Attributes:
        weights: The weights.
        content: A hash of all that decides their numbers: the files, and the code that reads them.
    """

    weights: UnreadTensors
    content: str

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.weights.dtype(name)

    def stored(self, name: str) -> torch.Tensor:
        return self.weights.stored(name)

    def identity(self, name: str) -> str:
        return f"{self.content} {self.dtype(name)} {name}"

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class ViewedTensors(UnreadTensors):
    """Pretrained weights by the names that a graph has for them; each is read when it is asked for.

    Attributes:
        weights: By their own names.
        views: By a graph's names.
    """

    weights: UnreadTensors
    views: Mapping[str, WeightView] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        view = self.views.get(name)
        return self.weights.shape(name) if view is None else view.shape(self.weights.shape(view.source))

    def dtype(self, name: str) -> torch.dtype:
        return self.weights.dtype(self._source(name))

    def stored(self, name: str) -> torch.Tensor:
        view = self.views.get(name)
        return self.weights.stored(name) if view is None else view.of(self.weights.stored(view.source))

    def identity(self, name: str) -> str:
        known = self.weights.identity(self._source(name))
        return f"{known} {self.views.get(name, '')}" if known else ""

    def _source(self, name: str) -> str:
        return self.views[name].source if name in self.views else name

    def __contains__(self, name: object) -> bool:
        return name in self.views or name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self.weights), **dict.fromkeys(self.views)})

    def __len__(self) -> int:
        return len(set(self.weights) | set(self.views))
