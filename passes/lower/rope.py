"""The rotary embedding as one operator, however a model spells it."""

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


def _bounds(value: ir.Value) -> tuple[int, ...]:
    """Start, end, axis, step of a Slice over one axis; empty if any is computed."""
    node = value.producer()
    given = [v for v in node.inputs[1:] if v is not None] if node is not None else []
    numbers = [tensor for v in given if (tensor := ir.convenience.get_const_tensor(v)) is not None and tensor.size == 1]
    return tuple(int(tensor.numpy().item()) for tensor in numbers) if len(numbers) == len(given) else ()
