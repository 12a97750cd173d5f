"""From an ONNX graph with a KV cache to atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_graph import sizes
from adaptc.ir.onnx_ops import is_skip
from adaptc.passes.device.atoms import (
    ALWAYS,
    Alternative,
    Atom,
    Attention,
    Gemm,
    Line,
    Operand,
    Region,
    StateInput,
    TableLookup,
    Weight,
)
from adaptc.passes.quantize.experts import MIXTURES
from adaptc.passes.skip_ffn.skips import CHEAP, FULL, Skip, gives_zero, serving_only, skips
from adaptc.runtime.bundle.gpu_steps.device_step import AttentionLayer, GemmWeight, LookupTable, RowOp
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, LOGITS, LOGITS_FROM

_ELEMENTWISE: Mapping[str, RowOp] = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}

_SAME = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"))
"""Operators that leave a row's numbers as they are."""


@dataclass(frozen=True, slots=True)
class Atoms:
    """What a graph computes.

    Attributes:
        order: All atoms, each after those that it reads.
        result: The logits, or a trunk's states.
        logits: For each gate, the operand that it compares.
        leaders: For each gate, the gate that decides for it: itself, or an earlier one that compares the same.
        names: Of the gates' nodes, for messages.
    """

    order: tuple[Atom, ...]
    result: Atom
    logits: tuple[Operand, ...]
    leaders: tuple[int, ...]
    names: tuple[str, ...]


def read_atoms(graph: ir.Graph) -> Atoms:
    """What a decoder's graph computes, for one token of each row.

    Args:
        graph: After `kv_cache` and the pass that stores weights; gates are `Skip` nodes.

    Raises:
        PassError: an operator that no kernel computes; naming the node.
    """
    if mixture := next((node for node in graph if node.op_type in MIXTURES), None):
        raise PassError(f"{label(mixture)}: experts; no kernel of a step computes them")
    reader = _Reader(graph)
    for node in graph:
        reader.read(node)
    result = next((v for v in graph.outputs if v.name in (LOGITS, HIDDEN)), None)
    if result is None:
        raise PassError(f"outputs: {', '.join(v.name or '' for v in graph.outputs)}; logits or hidden states are right")
    atom = reader.operand(result)
    assert isinstance(atom, Atom)
    logits = tuple(reader.operand(gate.logit) for gate in reader.gates)
    firsts = {id(gate.logit): i for i, gate in reversed(list(enumerate(reader.gates)))}
    leaders = tuple(firsts[id(gate.logit)] for gate in reader.gates)
    return Atoms(tuple(reader.order), atom, logits, leaders, tuple(label(gate.node) for gate in reader.gates))


@dataclass
class _Reader:
    graph: ir.Graph
    order: list[Atom] = field(default_factory=list)
    known: dict[ir.Value, Operand] = field(default_factory=dict)
    attentions: int = 0
    scored: set[ir.Value] = field(default_factory=set)  # what the head reads
    in_head: bool = False

    def __post_init__(self) -> None:
        self.gates = skips(self.graph)
        self.regions: dict[ir.Node, Region] = {}
        self.zero: set[int] = set()
        for index, gate in enumerate(self.gates):
            cheap = serving_only(self.graph, gate, CHEAP)
            if gives_zero(cheap):
                self.zero.add(index)
            self.regions |= dict.fromkeys(cheap, (index, True))
            self.regions |= dict.fromkeys(serving_only(self.graph, gate, FULL), (index, False))
        self.numbers = {gate.node: index for index, gate in enumerate(self.gates)}

    def read(self, node: ir.Node) -> None:
        """Take note of what a node computes; nodes that compute shapes are left out."""
        if is_skip(node):
            self.choose(self.numbers[node], self.gates[self.numbers[node]])
            return
        region = self.regions.get(node, ALWAYS)
        if region[1] and region[0] in self.zero:
            return
        if node.op_type == "Constant":
            self.constant(node)
            return
        if not self.of_rows(node):
            return
        self.in_head = any(value in self.scored for value in node.inputs)
        special = _SPECIAL.get(node.op_type)
        if special is not None:
            special(self, node)
        elif node.op_type in _ELEMENTWISE:
            self.line(node, _ELEMENTWISE[node.op_type], [self.of(node, i) for i in range(len(node.inputs))])
        elif node.op_type in _SAME:
            self.known[node.outputs[0]] = self.of(node, 0)
        else:
            raise PassError(f"{label(node)}: {node.op_type}; no kernel of a step computes it")

    def of_rows(self, node: ir.Node) -> bool:
        """Whether a node's result depends on a row, or is a number or a vector that lines read."""
        if node.op_type in ("Shape", "ConstantOfShape"):
            return False
        given = [value for value in node.inputs if value is not None]
        if any(value in self.known and isinstance(self.known[value], Atom) for value in given):
            return True
        if any(value.is_graph_input() and value.name in (INPUT_IDS, HIDDEN) for value in given):
            return True
        # Vectors made of weights alone, such as 1 + w; what is made of shapes has whole numbers.
        return node.op_type in _ELEMENTWISE and all(value.dtype == ir.DataType.FLOAT for value in given)

    def constant(self, node: ir.Node) -> None:
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is not None and tensor.size == 1:
            self.known[node.outputs[0]] = float(tensor.numpy().reshape(-1)[0])

    def of(self, node: ir.Node, index: int) -> Operand:
        """What a node reads."""
        value = node.inputs[index]
        if value is None:
            raise PassError(f"{label(node)}: input {index} of {node.op_type} is left out; no kernel computes it")
        try:
            return self.operand(value)
        except KeyError:
            raise PassError(f"{label(node)}: {node.op_type} reads {value.name}, which no row has") from None

    def operand(self, value: ir.Value) -> Operand:
        """What a value is."""
        if value in self.known:
            return self.known[value]
        if value.is_graph_input() and value.name == HIDDEN:
            found: Operand = self.add(StateInput(_width(value), ()))
        elif (stored := _stored(value)) is not None:
            found = Weight(stored.name or "", prod(int(size) for size in sizes(stored)))
        else:
            raise KeyError(value.name)
        self.known[value] = found
        return found

    def add(self, atom: Atom, node: ir.Node | None = None) -> Atom:
        """A new atom; it lies in the head if what it reads does, or is what the head reads."""
        if node is not None:
            atom.region = self.regions.get(node, ALWAYS)
        atom.head = self.in_head or any(isinstance(arg, Atom) and arg.head for arg in atom.args)
        self.order.append(atom)
        return atom

    def line(
        self, node: ir.Node, op: RowOp, args: list[Operand], numbers: tuple[float, ...] = (), width: int | None = None
    ) -> Atom:
        """A line for a node's first result."""
        value = node.outputs[0]
        if width is None:
            width = max(arg.width if isinstance(arg, (Atom, Weight)) else 1 for arg in args)
        atom = self.add(Line(width, tuple(args), op=op, numbers=numbers), node)
        self.known[value] = atom
        return atom

    def choose(self, gate: int, skip: Skip) -> None:
        full = self.operand(skip.full)
        args: list[Operand] = [full]
        if gate not in self.zero:
            args.append(self.operand(skip.cheap))
        for arg, otherwise in zip(args, (False, True), strict=False):
            if not isinstance(arg, Atom) or arg.region != (gate, otherwise):
                raise PassError(f"{label(skip.node)}: others read what it gives; a block of its own is right")
        assert isinstance(full, Atom)
        self.known[skip.result] = self.add(Alternative(full.width, tuple(args), gate=gate))

    # Operators with a meaning of their own

    def gelu(self, node: ir.Node) -> None:
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        self.line(node, "gelu_tanh" if tanh else "gelu", [self.of(node, 0)])

    def norm(self, node: ir.Node) -> None:
        self.rms(node, self.of(node, 0), self.of(node, 1))

    def rms(self, node: ir.Node, x: Operand, weight: Operand) -> None:
        value = node.inputs[0]
        assert value is not None
        group = int(sizes(value)[-1])
        width = x.width if isinstance(x, Atom) else group
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        self.line(node, "rms_norm", [x, weight], (epsilon, float(group)), width)

    def skip_norm(self, node: ir.Node) -> None:
        total = self.line(node, "add", [self.of(node, 0), self.of(node, 1)])
        if len(node.inputs) > 3 and node.inputs[3] is not None:  # the bias of the product before
            total = self.line(node, "add", [total, self.of(node, 3)])
        if len(node.outputs) > 3:
            self.known[node.outputs[3]] = total
        self.rms(node, total, self.of(node, 2))

    def split(self, node: ir.Node) -> None:
        source, start = self.of(node, 0), 0
        for value in node.outputs:
            width = _width(value)
            atom = self.add(Line(width, (source,), op="slice", numbers=(float(start),)), node)
            self.known[value] = atom
            start += width

    def slice_(self, node: ir.Node) -> None:
        start = node.inputs[1]
        if start is None or start.name != LOGITS_FROM:
            raise PassError(f"{label(node)}: Slice; no kernel of a step computes it")
        self.known[node.outputs[0]] = self.of(node, 0)
        self.scored.add(node.outputs[0])

    def concat(self, node: ir.Node) -> None:
        parts = [self.of(node, index) for index in range(len(node.inputs))]
        gemms = [part for part in parts if isinstance(part, Gemm)]
        if len(gemms) < len(parts) or len({part.args for part in gemms}) > 1:
            raise PassError(f"{label(node)}: Concat of other values than products; no kernel of a step computes it")
        width, start, weights = sum(part.width for part in gemms), 0, []
        for part in gemms:
            weights += [replace(weight, offset=weight.offset + start, stride=width) for weight in part.weights]
            start += part.width
            self.order.remove(part)
        joined = self.add(Gemm(width, gemms[0].args, weights=tuple(weights)), node)
        joined.head = any(part.head for part in parts if isinstance(part, Atom))
        self.known[node.outputs[0]] = joined

    def codes(self, node: ir.Node) -> None:
        inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
        count = {name: node.attributes.get_int(name, 0) for name in ("K", "N", "bits", "block_size")}
        if inputs[4] is not None or count["bits"] not in (4, 8):
            raise PassError(f"{label(node)}: MatMulNBits of {count['bits']} bits in another order; 4 and 8 are right")
        codes, scales, zeros, bias = (_name(value) for value in (*inputs[1:4], inputs[5]))
        bits: Literal[4, 8] = 4 if count["bits"] == 4 else 8
        results, columns, block = count["N"], count["K"], count["block_size"]
        weight = GemmWeight(results, columns, bits, block, codes, scales, zeros, bias, 0, results)
        self.gemm(node, weight)

    def floats(self, node: ir.Node) -> None:
        """FusedMatMul over a weight that lies as it is stored, in half precision or not."""
        value = _stored(node.inputs[1])
        if value is None or not node.attributes.get_int("transB", 0) or node.attributes.get_float("alpha", 1.0) != 1:
            raise PassError(f"{label(node)}: FusedMatMul of two values; no kernel of a step computes it")
        rows, columns = (int(size) for size in sizes(value))
        bits: Literal[16, 32] = 16 if value.dtype == ir.DataType.FLOAT16 else 32
        self.gemm(node, GemmWeight(rows, columns, bits, 0, value.name or "", "", "", "", 0, rows))

    def gemm(self, node: ir.Node, weight: GemmWeight) -> None:
        if weight.columns % 8:
            raise PassError(f"{label(node)}: {weight.columns} columns; a multiple of 8 is right on a GPU")
        self.known[node.outputs[0]] = self.add(Gemm(weight.results, (self.of(node, 0),), weights=(weight,)), node)

    def matmul(self, node: ir.Node) -> None:
        """A product with one column, such as a gate's."""
        value = _stored(node.inputs[1])
        weight = self.of(node, 1)
        if value is None or int(sizes(value)[-1]) != 1:
            raise PassError(f"{label(node)}: MatMul; no kernel of a step computes it")
        self.line(node, "dot", [self.of(node, 0), weight], width=1)

    def attention(self, node: ir.Node) -> None:
        numbers = {name: attribute.value for name, attribute in node.attributes.items()}
        parts = [index for index in range(3) if node.inputs[index] is not None]
        past = node.inputs[3]
        assert past is not None
        width = int(sizes(past)[-1])
        tables = [value for value in node.inputs[7:9] if value is not None]
        if numbers.get("rotary_interleaved") or (len(node.inputs) > 9 and any(node.inputs[9:])) or len(parts) == 2:
            raise PassError(f"{label(node)}: attention with more inputs than kernels of a step read")
        rotary = bool(numbers.get("do_rotary")) and len(tables) == 2
        heads = int(numbers["num_heads"])
        about = AttentionLayer(
            layer=self.attentions,
            heads=heads,
            kv_heads=int(numbers["kv_num_heads"]),
            width=width,
            scale=float(numbers.get("scale", 0.0)) or width**-0.5,
            softcap=float(numbers.get("softcap", 0.0)),
            window=max(0, int(numbers.get("local_window_size", -1))),
            cosine=tables[0].name or "" if rotary else "",
            sine=tables[1].name or "" if rotary else "",
            pairs=int(sizes(tables[0])[-1]) if rotary else 0,
            packed=len(parts) == 1,
        )
        self.attentions += 1
        atom = Attention(heads * width, tuple(self.of(node, index) for index in parts), about=about)
        self.known[node.outputs[0]] = self.add(atom, node)

    def lookup(self, node: ir.Node) -> None:
        ids = node.inputs[1]
        table = _stored(node.inputs[0])
        if ids is None or ids.name != INPUT_IDS or table is None:
            raise PassError(f"{label(node)}: {node.op_type} of other than token ids; no kernel of a step computes it")
        scales, zeros = (_name(value) for value in (*node.inputs[2:], None, None)[:2])
        block, width, name = node.attributes.get_int("block_size", 0), int(sizes(table)[-1]), _name(table)
        if table.dtype == ir.DataType.UINT8:
            about = LookupTable(width, 8, block, name, scales, zeros)
        else:
            about = LookupTable(width, 16 if table.dtype == ir.DataType.FLOAT16 else 32, 0, name, "", "")
        self.known[node.outputs[0]] = self.add(TableLookup(width, (), table=about), node)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value that may be widened from half precision; None for what is computed."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _name(value: ir.Value | None) -> str:
    """Of an initializer; "" for none."""
    return value.name or "" if value is not None else ""


def _width(value: ir.Value) -> int:
    """Numbers of a row: all sizes behind batch and tokens."""
    return prod(int(size) for size in sizes(value)[2:])


_SPECIAL: Mapping[str, Callable[[_Reader, ir.Node], None]] = {
    "Gelu": _Reader.gelu,
    "SimplifiedLayerNormalization": _Reader.norm,
    "RMSNormalization": _Reader.norm,
    "SkipSimplifiedLayerNormalization": _Reader.skip_norm,
    "Split": _Reader.split,
    "Slice": _Reader.slice_,
    "Concat": _Reader.concat,
    "MatMulNBits": _Reader.codes,
    "FusedMatMul": _Reader.floats,
    "MatMul": _Reader.matmul,
    "GroupQueryAttention": _Reader.attention,
    "GatherBlockQuantized": _Reader.lookup,
    "Gather": _Reader.lookup,
}
"""How operators are read that are more than a line."""
