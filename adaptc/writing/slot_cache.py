"""Keys and values of many sequences of different lengths, for a model of transformers, and attention over them.

A sequence has a slot, a row of one large block of memory for each layer, and its tokens lie at their positions from
the row's beginning. What a row holds behind its sequence's end is never looked at, so a slot is given to a new
sequence by writing that over the old one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

NAME = "adaptc_slots"

_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Kernels that take any length; cuDNN's would be made anew for each."""


class SlotCache:
    """The cache that transformers' attention modules write to and read from.

    Before a forward pass either `read` says which slots whole prompts go to, or `step` that every slot gets one token.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        """Allocate nothing yet: the first pass shows the sizes.

        Args:
            slots: Number of sequences.
            capacity: Most tokens of a sequence.
        """
        self.slots, self.capacity = slots, capacity
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._rows: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None
        self._length = 0

    def read(self, rows: torch.Tensor) -> None:
        """Have the next pass write whole prompts.

        Args:
            rows: int64 [prompts]: their slots.
        """
        self._rows, self._positions = rows, None

    def step(self, rows: torch.Tensor, positions: torch.Tensor, length: int) -> None:
        """Have the next pass write one token of every slot.

        Args:
            rows: int64 [slots]: 0, 1, 2 and so on.
            positions: int64 [slots]: where each one goes.
            length: Positions that are read; more than the largest of `positions`.
        """
        self._rows, self._positions, self._length = rows, positions, length

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write what a layer computed, and return what its attention reads.

        Args:
            key: float [rows, kv_heads, tokens, head_dim].
            value: float of such a shape.
            layer_idx: Which layer it is.

        Returns:
            Keys and values; for whole prompts those that were given.
        """
        if layer_idx not in self._keys:
            self._keys[layer_idx] = key.new_zeros(self.slots, key.shape[1], self.capacity, key.shape[3])
            self._values[layer_idx] = value.new_zeros(self.slots, value.shape[1], self.capacity, value.shape[3])
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._positions is None:
            keys[self._rows, :, : key.shape[2]] = key
            values[self._rows, :, : key.shape[2]] = value
            return key, value
        keys[self._rows, :, self._positions] = key[:, :, 0]
        values[self._rows, :, self._positions] = value[:, :, 0]
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always given."""
        return 0


def step_bias(positions: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to a step's scores: dtype [slots, 1, 1, length], -inf behind each position."""
    seen = torch.arange(length, device=positions.device) <= positions[:, None]
    bias = torch.zeros(seen.shape, dtype=dtype, device=positions.device).masked_fill_(~seen, float("-inf"))
    return bias[:, None, None]


def register() -> None:
    """Make `NAME` known to transformers as an attention function; it builds no mask for it."""
    AttentionInterface.register(NAME, _attention)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; a mask is given for steps alone, and whole prompts are causal."""
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value)) if groups > 1 else (key, value)
        if softcap:
            seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
            bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
            return _capped(query, key, value, bias, scaling, softcap).transpose(1, 2), None
        with sdpa_kernel(_BACKENDS):
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None
    # The heads that share a key are tokens of one head: keys are read once, and not repeated.
    folded = query.reshape(rows, heads // groups, groups * tokens, width)
    bias = attention_mask.expand(rows, heads // groups, groups, key.shape[2])
    if softcap:
        out = _capped(folded, key, value, bias, scaling, softcap)
    else:
        with sdpa_kernel(_BACKENDS):
            out = F.scaled_dot_product_attention(folded, key, value, attn_mask=bias, scale=scaling)
    return out.reshape(rows, heads, tokens, value.shape[3]).transpose(1, 2), None


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores are capped before the mask (Gemma 2)."""
    scores = (query @ key.transpose(2, 3)).float() * (scaling or query.shape[-1] ** -0.5)
    capped = softcap * torch.tanh(scores / softcap) + bias
    return capped.softmax(-1).to(value.dtype) @ value
