"""The FX level of a program: torch.fx graphs over aten operators, which say what a model means and can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptc.errors import PassError
from adaptc.runtime.bundle.names import LOGITS

if TYPE_CHECKING:
    import torch
    from torch import fx
    from typing_extensions import Self

    from adaptc.ir.graph import Array


VIEWS = "views"
"""Key of an FX module's `meta`: of which pretrained weights its own are parts, `WeightView` by name."""

UNUSED = "unused"
"""Key of an FX module's `meta`: parameters by name that the captured model has and no operator reads."""


@dataclass(frozen=True, slots=True)
class FxGraph:
    """A torch.fx graph over aten operators; runs eagerly and is differentiable.

    Attributes:
        module: The graph with its weights; each node carries `meta["path"]` and, once exported, `meta["val"]`.
        dims: Names for the exporter's symbolic sizes, {"s44": "batch"}.
    """

    module: fx.GraphModule
    dims: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(str(n.target) for n in self.module.graph.nodes if n.op == "placeholder")

    def fork(self) -> Self:
        from torch import fx

        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.module.graph, copied)
        graph.output(output)
        next(iter(reversed(graph.nodes))).meta = dict(self.module.graph.output_node().meta)
        return type(self)(_reparent(self.module, graph), self.dims)

    def with_nodes(self, graph: fx.Graph) -> Self:
        """A graph of other nodes over the same weights."""
        return type(self)(_reparent(self.module, graph), self.dims)

    def loaded(self) -> Self:
        """A fork whose weights are all read, for what runs a graph many times."""
        import torch

        from adaptc.ir.unread.tensors import UnreadTensor

        fork, read = self.fork(), dict[int, torch.nn.Parameter]()
        for name, value in list(fork.module.named_parameters(remove_duplicate=False)):
            if isinstance(value, UnreadTensor):
                if id(value) not in read:
                    read[id(value)] = torch.nn.Parameter(value.read(), requires_grad=False)
                assign(fork.module, name, read[id(value)])
        return fork

    def verify(self) -> None:
        try:
            self.module.graph.lint()
        except (RuntimeError, ValueError) as error:
            raise PassError(f"FX graph: {error}") from error
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and attribute(self.module, str(node.target)) is None:
                raise PassError(f"FX graph: {node.name} reads {node.target}, which the module does not have")

    def text(self) -> str:
        lines = []
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                continue
            if node.op == "output":
                lines.append(f"return {_arguments(node.args[0])}")
                continue
            name = str(node.target).removeprefix("aten.").removesuffix(".default")
            call = "input" if node.op == "placeholder" else f"{name}({_arguments(node.args, node.kwargs)})"
            path = f"  # {node.meta['path']}" if node.meta.get("path") else ""
            lines.append(f"%{node.name}: {self._type(node.meta.get('val'))} = {call}{path}")
        return "\n".join(lines) + "\n"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            outputs = self.module(*(torch.from_numpy(feeds[name]) for name in self.inputs))
        names = self.module.meta.get("outputs", (LOGITS,))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    def _type(self, value: Any) -> str:
        if value is None or not hasattr(value, "dtype"):
            return "int"
        sizes = ", ".join(self.dims.get(str(size), str(size)) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"


def _reparent(module: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A new module that owns `graph` and shares every parameter and buffer of `module`."""
    import torch
    from torch import fx

    root = torch.nn.Module()
    for name, value in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        assign(root, name, value)
    fork = fx.GraphModule(root, graph)
    fork.meta = dict(module.meta)
    return fork


def attribute(module: Any, target: str) -> Any:
    """What is at a dotted path of a module; None if nothing is."""
    for part in target.split("."):
        module = getattr(module, part, None)
    return module


def assign(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Make a tensor an attribute at a dotted path: a parameter if it is one, else a buffer."""
    import torch

    *parents, leaf = name.split(".")
    for part in parents:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module.get_submodule(part)
    if isinstance(value, torch.nn.Parameter):
        module.register_parameter(leaf, value)
    else:
        module.register_buffer(leaf, value)


def _arguments(args: Any, kwargs: Mapping[str, Any] | None = None) -> str:
    from torch import fx

    def show(value: Any) -> str:
        if isinstance(value, fx.Node):
            return str(value.target) if value.op == "get_attr" else f"%{value.name}"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(show, value)) + "]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    named = [f"{key}={show(value)}" for key, value in (kwargs or {}).items()]
    return ", ".join([*map(show, args), *named])
