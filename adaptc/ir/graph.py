"""The two levels of a program: FX graphs (meaning, training) and ONNX graphs (target, speed).

Both answer the same four questions, so that one pipeline, one kind of golden test and one oracle serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from adaptc.errors import PassError
from adaptc.ir.marks import path_of
from adaptc.runtime.bundle.names import LOGITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir
    import torch
    from torch import fx
    from typing_extensions import Self

    Array = npt.NDArray[np.generic]


UNUSED = "unused"
"""Key of an FX module's `meta`: parameters by name that the captured model has and no operator reads."""


class Graph(Protocol):
    """What every graph can do."""

    def fork(self) -> Self:
        """An editable copy that shares the weights."""

    def verify(self) -> None:
        """Raise PassError unless the graph is well formed."""

    def text(self) -> str:
        """One operation a line; the same graph always gives the same text."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run plainly and slowly: the oracle that faster forms are held against."""


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


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """An ONNX graph as an onnx-ir model; initializers may be lazy, so a 3 GB backbone costs nothing to hold."""

    model: ir.Model

    def fork(self) -> Self:
        return type(self)(self.model.clone())

    def verify(self) -> None:
        import onnx

        try:
            onnx.checker.check_model(self._skeleton())
        except onnx.checker.ValidationError as error:
            raise PassError(f"ONNX graph: {' '.join(str(error).split())}") from error

    def text(self) -> str:
        graph = self.model.graph
        lines = [f"{_typed(value)} = input" for value in graph.inputs]
        lines += _node_lines(graph, "")
        lines.append("return " + ", ".join(f"%{value.name}" for value in graph.outputs))
        return "\n".join(lines) + "\n"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import onnx_ir as ir
        import onnxruntime as ort

        from adaptc.ir.onnx_ops import define

        model = ir.external_data.load_to_model(self.model.clone())
        define(model)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    def bytes(self) -> bytes:
        """The graph without its weights, as ONNX; what caches and hashes of structure look at."""
        content: bytes = self._skeleton().SerializeToString(deterministic=True)
        return content

    def _skeleton(self) -> Any:
        """The proto with initializers declared as inputs: all structure, no weights."""
        import onnx_ir as ir

        clone = self.model.clone()
        for name in list(clone.graph.initializers):
            value = clone.graph.initializers.pop(name)
            value.const_value = None
            clone.graph.inputs.append(value)
        for node in clone.graph.all_nodes():
            # onnxruntime keeps this contrib operator in ONNX's own domain, where the checker does not know it.
            if node.op_type == "SimplifiedLayerNormalization":
                node.domain = "com.microsoft"
                clone.opset_imports.setdefault("com.microsoft", 1)
        return ir.to_proto(clone)


def sizes(value: ir.Value) -> tuple[int | str, ...]:
    """A value's shape; a string names a size that is only known at run time."""
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())


def fixed(value: ir.Value) -> tuple[int, ...]:
    """A value's shape, all of whose sizes must be known.

    Raises:
        PassError: one is only known at run time.
    """
    shape = sizes(value)
    known = tuple(size for size in shape if isinstance(size, int))
    if len(known) != len(shape):
        raise PassError(f"{value.name}: shape {list(shape)}; every size must be known when compiling")
    return known


def _node_lines(graph: Any, indent: str) -> list[str]:
    lines = []
    for node in graph:
        values = ", ".join("-" if v is None else _reference(v) for v in node.inputs)
        options = {key: _attribute_text(attr) for key, attr in sorted(node.attributes.items())}
        shown = "".join(f", {key}={value}" for key, value in options.items() if value is not None)
        path = path_of(node)
        results = ", ".join(_typed(v) for v in node.outputs if v.name)
        comment = f"  # {path}" if path else ""
        lines.append(f"{indent}{results} = {node.op_type}({values}{shown}){comment}")
        for key, attr in sorted(node.attributes.items()):
            if attr.type.name == "GRAPH":
                lines.append(f"{indent}  {key}:")
                lines += _node_lines(attr.as_graph(), indent + "    ")
    return lines


def _reference(value: Any) -> str:
    return str(value.name) if value.is_initializer() else f"%{value.name}"


def _typed(value: Any) -> str:
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    sizes = ", ".join(str(size) for size in value.shape) if value.shape is not None else "…"
    return f"%{value.name}: {dtype}[{sizes}]"


def _attribute_text(attr: Any) -> str | None:
    if attr.type.name == "GRAPH":
        return None
    value = attr.value
    if attr.type.name == "TENSOR":
        array = value.numpy()
        return str(array.tolist()) if array.size <= 4 else f"tensor{list(array.shape)}"
    return f"{value:g}" if isinstance(value, float) else str(value)
