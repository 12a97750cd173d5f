"""Operators for causal attention, with images, in chunks or plain, so that every graph says what it means.

Pretrained models spell attention in a dozen ways (masks, caches, repeated heads). Capture asks transformers for
*our* attention function instead, and the captured graph then holds one node, `adaptc::causal_attention`: a pure
function of the whole sequence. Masks and KV caches are lowering's business (`passes/decoder/kv_cache.py`). Where the
places of an image attend to each other, the node is `adaptc::image_attention`, which without an image is the same;
where a text is read in chunks that do not see each other, `adaptc::chunked_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "adaptc"


@torch.library.custom_op("adaptc::causal_attention", mutates_args=())
def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """Attend from each position to itself and the positions before it.

    Args:
        query: float [batch, heads, tokens, head_dim].
        key: float [batch, kv_heads, tokens, head_dim]; heads is a multiple of kv_heads.
        value: float [batch, kv_heads, tokens, head_dim].
        scale: Factor on query · key.
        window: How many latest positions, itself included, a position sees; 0 for all.
        softcap: If not 0, scores become softcap · tanh(score / softcap) (Gemma 2, arXiv:2408.00118, section 2).

    Returns:
        float [batch, tokens, heads, head_dim].
    """
    return _attend(query, key, value, scale, window, softcap)


@torch.library.custom_op("adaptc::image_attention", mutates_args=())
def image_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Attend as `causal_attention` does, and from each place of an image to those behind it of the same image.

    Args:
        query: As there; so are the others that are not named here.
        key: As there.
        value: As there.
        places: int64 [places], indices among batch · tokens, rising; those in a row are of one image.
        scale: As there.
        window: As there; what lies behind is seen at any distance.
        softcap: As there.

    Returns:
        float [batch, tokens, heads, head_dim].
    """
    return _attend(query, key, value, scale, window, softcap, places)


@torch.library.custom_op("adaptc::chunked_attention", mutates_args=())
def chunked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, chunk: int
) -> torch.Tensor:
    """Attend from each position to itself and to those before it in its chunk (Llama 4).

    Args:
        query: As in `causal_attention`; so are key, value and scale.
        key: As there.
        value: As there.
        scale: As there.
        chunk: Positions of a chunk, at least 1; the first one begins at position 0.

    Returns:
        float [batch, tokens, heads, head_dim].
    """
    return _attend(query, key, value, scale, 0, 0.0, chunk=chunk)


@causal_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    return _shaped(query, value)


@image_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    return _shaped(query, value)


@chunked_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, chunk: int) -> torch.Tensor:
    return _shaped(query, value)


def _shaped(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[3])


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    places: torch.Tensor | None = None,
    chunk: int = 0,
) -> torch.Tensor:
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them apart: RoPE is in float32
    chunk = 0 if chunk >= query.shape[2] else chunk
    if not window and not chunk and not softcap and (places is None or not len(places)):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).contiguous()
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale  # [batch, heads, tokens, tokens]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(tokens, device=query.device)
    ago = position[:, None] - position[None, :]
    seen = ago >= 0
    if places is not None:
        seen = seen | _same_image(places, query.shape[0], tokens)
    seen = seen & (ago < window) if window else seen
    if chunk:
        seen = seen & (position[:, None] // chunk == position[None, :] // chunk)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def _same_image(places: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """Whether a token and another are of one image: bool [batch, 1, tokens, tokens]."""
    there = torch.zeros(batch * tokens, dtype=torch.bool, device=places.device)
    there[places] = True
    there = there.view(batch, tokens)
    run = (~there).cumsum(1)  # the same for all of a run of places
    both = there[:, :, None] & there[:, None, :]
    return (both & (run[:, :, None] == run[:, None, :]))[:, None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, _, _, *places, scale, window, softcap = inputs
    _keep(ctx, inputs, partial(_attend, scale=scale, window=window, softcap=softcap, places=next(iter(places), None)))


def _save_chunked(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *_, scale, chunk = inputs
    _keep(ctx, inputs, partial(_attend, scale=scale, window=0, softcap=0.0, chunk=chunk))


def _keep(ctx: Any, inputs: tuple[Any, ...], attend: Callable[..., torch.Tensor]) -> None:
    """Keep what the backward pass needs: query, key and value, which come first, and how they attend."""
    ctx.attend, ctx.others = attend, len(inputs) - 3
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # Gates are trained through frozen attention: recomputing it is cheaper than keeping its scores.
    tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
    with torch.enable_grad():
        out = ctx.attend(*tensors)
    return (*torch.autograd.grad(out, tensors, gradient), *[None] * ctx.others)


causal_attention.register_autograd(_backward, setup_context=_save)
image_attention.register_autograd(_backward, setup_context=_save)
chunked_attention.register_autograd(_backward, setup_context=_save_chunked)


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    image_places: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sliding_window is None:  # Qwen2 with experts leaves it to the mask, which is not built
        sliding_window = getattr(module, "sliding_window", None)
    options = scale, sliding_window or 0, softcap or 0.0
    if image_places is not None:
        return torch.ops.adaptc.image_attention(query, key, value, image_places, *options), None
    return torch.ops.adaptc.causal_attention(query, key, value, *options), None


def register() -> None:
    """Make `attn_implementation="adaptc"` known to transformers; no mask is built for it."""
    AttentionInterface.register(NAME, _attention_function)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
