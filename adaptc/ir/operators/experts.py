"""One operator for a mixture of experts, so that every graph says which experts a token goes to.

transformers computes experts in several ways, all of them loops or sorts over what a router chose. Capture asks it for
*our* way instead, and the captured graph then holds one node a block, `adaptc::experts`: a pure function of the states,
of the router's choice and of the experts' matrices. How no weight is read of an expert that nobody chose is lowering's
business (`passes/quantize/experts.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from adaptc.errors import LoadError

NAME = "adaptc"


@torch.library.custom_op("adaptc::experts", mutates_args=())
def experts(
    states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Add up what a token's experts make of it: Σ weight · down_e(silu(gate_e x) · up_e x).

    Args:
        states: float [..., width], x of each token.
        chosen: int64 [..., k], the experts that a token goes to, each at most once; 0 .. experts - 1.
        weights: float [..., k], what each one's result is multiplied by.
        gate_up: float [experts, 2 · inner, width], each expert's gate and below it its up matrix.
        down: float [experts, width, inner].

    Returns:
        float [..., width].
    """
    return _mix(states, chosen, weights, gate_up, down)


@experts.register_fake
def _(
    states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(states)


def _mix(
    states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    x = states.reshape(-1, states.shape[-1])
    ids, shares = chosen.reshape(len(x), -1), weights.reshape(len(x), -1)
    total = torch.zeros_like(x)
    for expert in torch.unique(ids).tolist():
        tokens, places = torch.where(ids == expert)
        result = F.linear(inner_states(x[tokens], gate_up[expert]), down[expert])
        total = total.index_add(0, tokens, (result * shares[tokens, places, None]).to(total.dtype))
    return total.reshape(states.shape)


def inner_states(x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """What one expert's down matrix reads: float [tokens, inner].

    Args:
        x: float [tokens, width].
        gate_up: float [2 · inner, width].
    """
    gate, up = F.linear(x, gate_up.to(x.dtype)).chunk(2, -1)
    return F.silu(gate) * up


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # Gates are trained through frozen experts: recomputing them is cheaper than keeping their inner states.
    states, chosen, weights, gate_up, down = ctx.saved_tensors
    states, weights = (each.detach().requires_grad_() for each in (states, weights))
    with torch.enable_grad():
        out = _mix(states, chosen, weights, gate_up, down)
    by_states, by_weights = torch.autograd.grad(out, (states, weights), gradient)
    return by_states, None, by_weights, None, None


experts.register_autograd(_backward, setup_context=_save)


def _experts_function(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.adaptc.experts(
        hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj
    )
    return result


def register() -> None:
    """Make `experts_implementation="adaptc"` known to transformers."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts_function)


def refuse_other_experts(model: torch.nn.Module) -> None:
    """Refuse a model whose experts compute something else than the operator does.

    Raises:
        LoadError: its experts have biases, norms, no gate, another activation or another layout.
    """
    for path, module in model.named_modules():
        if not hasattr(module, "is_concatenated"):  # transformers' mark of experts whose code may be replaced
            continue
        odd = {
            "biases": module.has_bias,
            "no gate": not module.has_gate,
            "a norm": module.has_post_expert_norm,
            "transposed matrices": module.is_transposed,
            "interleaved gates": not module.is_concatenated,
            "a gate of their own kind": type(module)._apply_gate.__module__ != ALL_EXPERTS_FUNCTIONS.__module__,
        }
        if wrong := [what for what, there in odd.items() if there]:
            raise LoadError(f"{path}: experts with {', '.join(wrong)}; down(silu(gate x) · up x) is supported")
        activation = getattr(module, "act_fn", None)
        if not _is_silu(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
            raise LoadError(f"{path}: experts with {name}; hidden_act: silu is supported")


def _is_silu(activation: Any) -> bool:
    """Whether a function is x · sigmoid(x), told by what it computes."""
    points = torch.linspace(-4, 4, 9)
    return callable(activation) and torch.equal(activation(points), F.silu(points))
