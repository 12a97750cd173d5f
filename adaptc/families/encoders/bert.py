"""BERT (arXiv:1810.04805), and the embedding models that are made of it: MiniLM, BGE, E5, GTE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import EncoderFamily

if TYPE_CHECKING:
    import torch

NOT_A_DECODER = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
"""Values of BERT's keys, and of families like it, without which it is an encoder with one embedding of positions."""


def counted(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """Count positions from 0: int64 [1, tokens]."""
    import torch

    return torch.arange(ids.shape[1], device=ids.device)[None]


BERT = EncoderFamily(
    "bert", layers="encoder.layer", positions=counted, token_types=True, pooler=True, accepted=NOT_A_DECODER
)
