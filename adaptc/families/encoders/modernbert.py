"""ModernBERT (arXiv:2412.13663): RoPE, gated feed-forward blocks, and attention to neighbours in most layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import EncoderFamily
from adaptc.families.encoders.bert import counted

if TYPE_CHECKING:
    import torch


def of_each_text(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """Count positions from 0: int64 [batch, tokens], as ONNX's rotary embedding has angles for each text."""
    return counted(config, ids).expand(ids.shape)


MODERNBERT = EncoderFamily("modernbert", layers="layers", positions=of_each_text)
