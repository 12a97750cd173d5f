"""RoBERTa (arXiv:1907.11692): BERT whose positions begin after the padding's id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import EncoderFamily
from adaptc.families.encoders.bert import NOT_A_DECODER

if TYPE_CHECKING:
    import torch


def after_padding(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """Count positions from the padding's id on, which padding itself has: int64 [batch, tokens]."""
    text = ids.ne(config.pad_token_id).long()
    positions: torch.Tensor = text.cumsum(1) * text + config.pad_token_id
    return positions


def without_padding(config: Any) -> int:
    """How many of a config's positions come after the padding's."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


ROBERTA = EncoderFamily(
    "roberta",
    layers="encoder.layer",
    limit=without_padding,
    positions=after_padding,
    token_types=True,
    pooler=True,
    accepted=NOT_A_DECODER,
)
