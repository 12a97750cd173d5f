"""Weights of FX graphs that are not read yet: tensors of known shape and type, whose numbers come when they are used.

A graph of a large model has its weights this way, so that passes which look at shapes alone read none, and one that
walks through the graph holds those of one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map


class UnreadTensor(torch.Tensor):
    """A constant tensor that is read for each operator that takes it, and not kept; a module has it as a parameter.

    What asks for its shape, type or device reads nothing. Anything else gets, and works on, a plain tensor.
    """

    read: Callable[[], torch.Tensor]
    identity: str

    @classmethod
    def of(
        cls, shape: Sequence[int], dtype: torch.dtype, read: Callable[[], torch.Tensor], identity: str = ""
    ) -> UnreadTensor:
        """Make one.

        Args:
            shape: Its shape.
            dtype: Its type.
            read: Gives its numbers, of this shape and type.
            identity: Equal for tensors of equal numbers alone, such as a hash of their file and their place in it; ""
                if nothing but their numbers tells them apart.
        """
        tensor: UnreadTensor = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        tensor.read, tensor.identity = read, identity
        tensor._is_param = True  # by this torch knows parameters of other classes than its own
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SAME:
            return args[0]
        if func in _ABOUT:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return func(*tree_map(in_memory, args), **tree_map(in_memory, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it as a class's, and declares it as an instance's
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Reached from inside of torch alone, as in the backward pass.
        return func(*tree_map(in_memory, args), **tree_map(in_memory, kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"UnreadTensor({list(self.shape)}, {self.dtype})"


def in_memory(value: Any) -> Any:
    """A tensor with its numbers; anything else as it is."""
    return value.read() if isinstance(value, UnreadTensor) else value


_SAME = frozenset({torch.Tensor.detach})
"""Functions that give the tensor itself, as it is a constant."""

_ATTRIBUTES = (
    *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad", "grad_fn", "itemsize"),
    *("nbytes", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_nested"),
)
_METHODS = ("size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "__len__")
_ABOUT = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in _ATTRIBUTES] + [getattr(torch.Tensor, name) for name in _METHODS]
)
"""Functions that need no numbers."""
