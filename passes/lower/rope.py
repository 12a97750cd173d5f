"""The rotary embedding, and a layer norm in pieces, as one operator, however a model spells them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern


class Rope(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """x · cos + rotate_half(x) · sin, as every supported family writes it, is one RotaryEmbedding.

    onnxscript's own rule wants cos and sin computed in sight and unscaled; ours takes them as they come
    (another layer computes them, YaRN scales them).
    """

    def __init__(self) -> None:
        # cos and sin are shared by query and key, so the matched nodes have other users.
        super().__init__(name="rope", remove_nodes=False)

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        first = op.Slice(x, _allow_other_inputs=True, _outputs=["first"])
        second = op.Slice(x, _allow_other_inputs=True, _outputs=["second"])
        turned = op.Concat(op.Neg(second), first, axis=-1)
        return op.Add(op.Mul(x, op.Unsqueeze(cos, [1])), op.Mul(turned, op.Unsqueeze(sin, [1])))

    def check(self, context: Any, x: ir.Value, first: ir.Value, second: ir.Value, **_: Any) -> bool:
        width = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
        return (
            isinstance(width, int)
            and _bounds(first) == (0, width // 2, 3, 1)
            and _bounds(second)[:1] == (width // 2,)
            and _bounds(second)[1] >= width
        )

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
        half = [0], [x.shape[3] // 2], [2]  # type: ignore[index]
        ends = [op.Constant(value_ints=v) for v in half]
        return op.RotaryEmbedding(x, op.Slice(cos, *ends), op.Slice(sin, *ends), interleaved=0)


class RopeOfNeighbours(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """x · cos + [-x₁, x₀, -x₃, x₂, …] · sin, as Cohere's models write it, is one RotaryEmbedding, interleaved."""

    def __init__(self) -> None:
        super().__init__(name="rope_of_neighbours", remove_nodes=False)

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any, shape: Any) -> Any:
        even = op.Slice(x, _allow_other_inputs=True, _outputs=["even"])
        odd = op.Slice(x, _allow_other_inputs=True, _outputs=["odd"])
        pairs = op.Concat(op.Unsqueeze(op.Neg(odd), [-1]), op.Unsqueeze(even, [-1]), axis=-1)
        turned = op.Reshape(pairs, shape)
        return op.Add(op.Mul(x, op.Unsqueeze(cos, [1])), op.Mul(turned, op.Unsqueeze(sin, [1])))

    def check(self, context: Any, x: ir.Value, even: ir.Value, odd: ir.Value, **_: Any) -> bool:
        width = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
        forms = [_bounds(value) for value in (even, odd)]
        return (
            isinstance(width, int)
            and [(form[0], *form[2:]) for form in forms if form] == [(0, 3, 2), (1, 3, 2)]
            and all(form[1] >= width for form in forms)
        )

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
        every = [0], [x.shape[3]], [2], [2]  # type: ignore[index]
        ends = [op.Constant(value_ints=v) for v in every]
        return op.RotaryEmbedding(x, op.Slice(cos, *ends), op.Slice(sin, *ends), interleaved=1)


class RopeOfPart(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """RoPE on the first numbers of a head, joined with the rest, is one RotaryEmbedding that says how many."""

    def __init__(self) -> None:
        super().__init__(name="rope_of_part", remove_nodes=False)

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        first = op.Slice(x, _allow_other_inputs=True, _outputs=["first"])
        rest = op.Slice(x, _allow_other_inputs=True, _outputs=["rest"])
        turned = op.RotaryEmbedding(first, cos, sin, _allow_other_attributes=True, _outputs=["turned"])
        return op.Concat(turned, rest, axis=-1)

    def check(self, context: Any, x: ir.Value, first: ir.Value, rest: ir.Value, **_: Any) -> bool:
        width = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
        head, tail = _bounds(first), _bounds(rest)
        return (
            isinstance(width, int)
            and len(head) == len(tail) == 4
            and (head[0], *head[2:]) == (0, 3, 1)
            and (tail[0], *tail[2:]) == (head[1], 3, 1)
            and tail[1] >= width
        )

    def rewrite(
        self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, first: ir.Value, turned: Any, **_: Any
    ) -> Any:
        assert x.shape is not None, "what `check` has seen"
        side_by_side = turned.producer().attributes.get_int("interleaved", 0)
        return op.RotaryEmbedding(
            x, cos, sin, interleaved=side_by_side, rotary_embedding_dim=_bounds(first)[1], num_heads=x.shape[1]
        )


class LayerNorm(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """A norm of x less its mean, as Cohere's models write it, is one LayerNormalization."""

    def pattern(self, op: Any, x: Any, scale: Any, axes: Any) -> Any:
        mean = op.ReduceMean(x, axes, keepdims=1, _allow_other_attributes=True)
        return op.RMSNormalization(op.Sub(x, mean), scale, _allow_other_attributes=True, _outputs=["normed"])

    def check(self, context: Any, scale: ir.Value, axes: ir.Value, **_: Any) -> bool:
        numbers = ir.convenience.get_const_tensor(axes)
        last = numbers is not None and numbers.numpy().reshape(-1).tolist() == [-1]
        return last and scale.shape is not None and len(scale.shape) == 1

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, normed: Any, **_: Any) -> Any:
        epsilon = normed.producer().attributes.get_float("epsilon", 1e-5)
        return op.LayerNormalization(x, scale, axis=-1, epsilon=epsilon, stash_type=1)


def _bounds(value: ir.Value) -> tuple[int, ...]:
    """Start, end, axis, step of a Slice over one axis; empty if any is computed."""
    node = value.producer()
    given = [v for v in node.inputs[1:] if v is not None] if node is not None else []
    numbers = [tensor for v in given if (tensor := ir.convenience.get_const_tensor(v)) is not None and tensor.size == 1]
    return tuple(int(tensor.numpy().item()) for tensor in numbers) if len(numbers) == len(given) else ()
