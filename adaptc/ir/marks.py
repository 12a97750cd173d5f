"""What a node says of itself besides its operator, at both levels: its module, and whether it is the model's head.

Capture and `lower` write these facts once, rewrites hand them on, and whoever needs one asks here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import fx

    from adaptc.ir.stored.onnx_file import StoredNode

PATH = "adaptc.path"
"""Metadata of an ONNX node: path of the module it belongs to, `model.layers.3.mlp`."""

HEAD = "adaptc.head"
"""Metadata of the ONNX nodes from the last norm to the logits: the language-model head."""

LAYER = re.compile(r"^(?P<stem>(?:.*\.)?(?:layers|layer|h))\.(?P<index>\d+)(?=\.|$)")
"""Beginning of a module path, or of a weight's name, inside a layer:
`model.layers.3`, `transformer.h.3`, `encoder.layer.3`."""


def path_of(node: fx.Node | ir.Node | StoredNode) -> str:
    """Path of the module a node came from, `model.layers.3.mlp`; empty for what belongs to no module."""
    metadata: Mapping[str, str] | None = getattr(node, "metadata_props", None)
    if metadata is not None:
        return metadata.get(PATH, "")
    node = cast("fx.Node", node)
    if "path" in node.meta:
        return str(node.meta["path"])
    stack = node.meta.get("nn_module_stack") or {}
    path = [str(entry[0]) for entry in stack.values()][-1:] or [""]
    return "" if path[0].startswith("_empty_nn_module_stack") else path[0]


def label(node: ir.Node) -> str:
    """What to call an ONNX node in messages and names: its module, or else its own name or operator."""
    return path_of(node) or node.name or node.op_type


def marks_of(node: ir.Node) -> dict[str, str]:
    """What nodes that a rewrite puts beside this one say of themselves: its module, and whether it is in the head."""
    return {PATH: label(node), **({HEAD: node.metadata_props[HEAD]} if in_head(node) else {})}


def in_head(node: ir.Node) -> bool:
    """Whether an ONNX node is part of the language-model head."""
    return HEAD in node.metadata_props
