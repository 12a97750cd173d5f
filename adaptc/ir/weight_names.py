"""Names of weights in graphs that join several models: each is called after its model, `large.model.norm.weight`."""

from __future__ import annotations

from collections.abc import Iterable


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
