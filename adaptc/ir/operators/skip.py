"""One operator for a skipped feed-forward block, so that every graph says what it decides.

`adaptc::skip` chooses, token by token, between a block's result and what stands in for it. In a whole-sequence FX graph
both are computed and one is taken, which makes the graph an oracle that can be trained; the pass `branch` turns the
choice into an ONNX `If` that runs one of the two.
"""

from __future__ import annotations

from typing import Any

import torch

RUN = float("-inf")
"""The threshold of a token that must not skip."""


@torch.library.custom_op("adaptc::skip", mutates_args=())
def skip(logit: torch.Tensor, threshold: torch.Tensor, full: torch.Tensor, cheap: torch.Tensor) -> torch.Tensor:
    """Take `full` where logit ≥ threshold, elsewhere `cheap`.

    The gradient of the choice is straight through: that of a sigmoid of the distance to the threshold (Bengio et al.
    2013, arXiv:1308.3432, section 4). `full` and `cheap` get the gradient of the tokens they stand for.

    Args:
        logit: float [batch, tokens], what the gate says; higher means the block is needed.
        threshold: float [batch, tokens]; -inf runs the block whatever the gate says.
        full: float [batch, tokens, width], the block's result.
        cheap: float [batch, tokens, width], what stands in for it.

    Returns:
        float [batch, tokens, width].
    """
    return torch.where((logit >= threshold)[..., None], full, cheap)


@skip.register_fake
def _(logit: torch.Tensor, threshold: torch.Tensor, full: torch.Tensor, cheap: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(full)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    logit, threshold, full, cheap = ctx.saved_tensors
    runs = (logit >= threshold)[..., None]
    slope = None
    if ctx.needs_input_grad[0]:  # trained gates are fitted, and need none
        soft = torch.sigmoid(logit - threshold)  # 1, with no slope, where the threshold is -inf
        slope = soft * (1 - soft) * (gradient * (full - cheap)).sum(-1)
    return slope, None, gradient * runs, gradient * ~runs


skip.register_autograd(_backward, setup_context=_save)
