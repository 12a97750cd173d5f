"""The ONNX level of a program: onnx-ir models of the operators that an engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptc.errors import PassError
from adaptc.ir.marks import path_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from typing_extensions import Self

    from adaptc.ir.graph import Array
    from adaptc.ir.stored.onnx_file import StoredGraph, StoredValue


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
        return graph_text(self.model.graph)

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


def sizes(value: ir.Value | StoredValue) -> tuple[int | str, ...]:
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


def graph_text(graph: ir.Graph | StoredGraph) -> str:
    """A graph, one operation a line; the same text for a graph in a program and for its file."""
    lines = [f"{_typed(value)} = input" for value in graph.inputs]
    lines += _node_lines(graph, "")
    lines.append("return " + ", ".join(f"%{value.name}" for value in graph.outputs))
    return "\n".join(lines) + "\n"


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
