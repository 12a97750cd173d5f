"""How the states of a text's tokens become one vector, in the words of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
"""In the order in which sentence-transformers puts the vectors of several modes one after another."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """How an embedding model makes one vector of a text.

    Attributes:
        pooling: One vector of each mode, one after another.
        normalize: Whether vectors are brought to length 1.
        max_tokens: The most tokens of a text, special ones included; None for as many as the model has positions.
        prompts: What is written before a text, by name.
        default_prompt: The name of the one that is used where nobody names one; "" for none.
    """

    pooling: tuple[PoolingMode, ...] = ("mean",)
    normalize: bool = False
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_prompt: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for cache keys."""
        return {
            "pooling": list(self.pooling),
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
            "prompts": dict(self.prompts),
            "default_prompt": self.default_prompt,
        }


MEAN = Sentences()
"""What sentence-transformers does with a model that says nothing: the mean of the states."""
