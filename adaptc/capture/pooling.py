"""From the states of a text's tokens to its vector, as sentence-transformers' modules do it."""

from __future__ import annotations

import torch

from adaptc.families.sentences import PoolingMode, Sentences


def pooled(states: torch.Tensor, mask: torch.Tensor, sentences: Sentences) -> torch.Tensor:
    """Make one vector of a text.

    Args:
        states: float [batch, tokens, width].
        mask: int64 [batch, tokens], 0 for padding, which comes last.
        sentences: How.

    Returns:
        float [batch, width times the number of modes].
    """
    vectors = [_pool(mode, states, mask) for mode in sentences.pooling]
    whole = torch.cat(vectors, 1) if len(vectors) > 1 else vectors[0]
    return torch.nn.functional.normalize(whole, dim=1) if sentences.normalize else whole


def _pool(mode: PoolingMode, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Float [batch, width]."""
    seen = mask[:, :, None].to(states.dtype)
    match mode:
        case "cls":
            return states[:, 0]
        case "max":
            return states.masked_fill(seen == 0, -1e9).amax(1)
        case "lasttoken":
            last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[2])
            return states.gather(1, last)[:, 0]
        case "weightedmean":
            seen = seen * torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[None, :, None]
    total, count = (states * seen).sum(1), seen.sum(1)
    return total / (count.clamp(min=1e-9).sqrt() if mode == "mean_sqrt_len_tokens" else count.clamp(min=1e-9))
