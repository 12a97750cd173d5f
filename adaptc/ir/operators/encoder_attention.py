"""One operator for an encoder's attention: every position sees all others that are no padding, or those near it.

Capture asks transformers for *our* attention function, and for a mask that is the padding alone, as the tokenizer gives
it. How a target masks is lowering's business (`passes/encoder/encoder_attention.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "adaptc_encoder"


@torch.library.custom_op("adaptc::encoder_attention", mutates_args=())
def encoder_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, reach: int
) -> torch.Tensor:
    """Attend from each position to all that are no padding.

    Args:
        query: float [batch, heads, tokens, head_dim].
        key: float [batch, heads, tokens, head_dim].
        value: float [batch, heads, tokens, head_dim].
        mask: bool [batch, tokens], False for padding; None if there is none.
        scale: Factor on query · key.
        reach: How far a position sees to either side; 0 for everywhere.

    Returns:
        float [batch, tokens, heads, head_dim]; of padding, whatever comes out.
    """
    seen = None if mask is None else mask[:, None, None, :]
    if reach:
        position = torch.arange(query.shape[2], device=query.device)
        near = (position[:, None] - position[None, :]).abs() <= reach
        seen = near if seen is None else seen & near
    bias = None
    if seen is not None:  # a finite number: a row that sees nothing, which only padding is, gives no NaN
        bias = torch.zeros(seen.shape, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return out.transpose(1, 2).contiguous()


@encoder_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, reach: int
) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[3])


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reach = 0 if sliding_window is None else sliding_window - 1  # transformers counts the position itself
    return torch.ops.adaptc.encoder_attention(query, key, value, attention_mask, scale, reach), None


def _padding(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """The mask that transformers hands on to attention: the padding, bool [batch, tokens]."""
    return attention_mask


def register() -> None:
    """Make `attn_implementation="adaptc_encoder"` known to transformers."""
    AttentionInterface.register(NAME, _attention_function)
    AttentionMaskInterface.register(NAME, _padding)
