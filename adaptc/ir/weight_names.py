"""Names of weights, and what they say: whose a weight is, and whether it was trained for gates.

In graphs that join several models each is called after its model, `large.model.norm.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
