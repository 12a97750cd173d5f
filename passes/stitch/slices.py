"""Cut captured decoders into runs of layers and join such runs, of one decoder or of several, into a new graph.

    decoder:   ids ─> embedding ─> layer 0 ─ … ─> layer n-1 ─> norm, head ─> logits
    slice:   hidden ─> layer a ─ … ─> layer b-1 ─> hidden

A slice that begins at layer 0 of the first graph takes the embedding with it, one that ends at the last layer takes the
norm and the head. Weights are shared with the decoder and carry its name: `large.model.layers.3.mlp.up_proj.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph, assign, attribute
from adaptc.ir.marks import LAYER, path_of
from adaptc.ir.weight_names import named_after
from adaptc.runtime.bundle.names import HIDDEN, IMAGE_PLACES, INPUT_IDS, LOGITS


@dataclass(frozen=True, eq=False)
class LayeredDecoder:
    """A captured decoder seen as layers, between which it can be cut.

    Attributes:
        name: Name of the model; the names of its weights begin with it.
        graph: The decoder's graph.
    """

    name: str
    graph: FxGraph

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.states) - 1

    @property
    def width(self) -> int:
        """Size of the state between layers."""
        return int(self.states[-1].meta["val"].shape[-1])

    @property
    def rms_norm(self) -> bool:
        """Whether its layers read the state through RMS norms: none of them has a layer norm, or takes a mean away."""
        nodes = [node for node in self.graph.module.graph.nodes if layer_of(node) is not None]
        return not any(n.target is torch.ops.aten.layer_norm.default or _centres(n) for n in nodes)

    @cached_property
    def states(self) -> tuple[fx.Node, ...]:
        """The states that the layers read, in order, and the one that the last layer gives.

        Raises:
            PassError: no decoder layers, or more than one value goes from layer to layer.
        """
        if IMAGE_PLACES in self.graph.inputs:
            raise PassError(f"'{self.name}': takes images; drop_modality with keep: [[text]] before this pass is right")
        inside: dict[int, list[fx.Node]] = {}
        for node in self.graph.module.graph.nodes:
            if node.op == "call_function" and (index := layer_of(node)) is not None:
                inside.setdefault(index, []).append(node)
        if not inside:
            raise PassError(f"'{self.name}': no decoder layers ('….layers.N'); only decoders can be stitched")
        ends = [self._end(index, inside[index]) for index in sorted(inside)]
        width = ends[0].meta["val"].shape[-1]
        # Layer 0 also reads the rotary embedding, which may be as wide as a narrow model.
        sources = [source for node in inside[0] for source in node.all_input_nodes if source.op == "call_function"]
        reads = dict.fromkeys(
            source
            for source in sources
            if layer_of(source) is None and "rotary" not in path_of(source) and _width(source) == width
        )
        if len(reads) != 1:
            raise PassError(f"'{self.name}': layer 0 reads {len(reads)} states; one embedding is right")
        return (*reads, *ends)

    def _end(self, index: int, nodes: list[fx.Node]) -> fx.Node:
        own = set(nodes)
        ends = [node for node in nodes if any(user not in own for user in node.users)]
        if len(ends) != 1:
            raise PassError(
                f"'{self.name}': {len(ends)} values leave layer {index}; layers that hand on one state can be cut "
                "(cosine gates of skip_ffn hand on a second)"
            )
        return ends[0]


def _centres(node: fx.Node) -> bool:
    """Whether a node takes a mean away, as Cohere's norms do."""
    means = [arg for arg in node.args[1:2] if isinstance(arg, fx.Node) and arg.target is torch.ops.aten.mean.dim]
    return node.target is torch.ops.aten.sub.Tensor and bool(means)


def layer_of(node: fx.Node) -> int | None:
    """Return the index of the decoder layer a node belongs to; None outside of layers."""
    match = LAYER.match(path_of(node))
    return int(match["index"]) if match else None


def _width(node: fx.Node) -> int:
    shape: Sequence[Any] = getattr(node.meta.get("val"), "shape", ())
    return shape[-1] if len(shape) == 3 and isinstance(shape[-1], int) else 0


class GraphAssembly:
    """A graph under construction, from runs of layers one after another.

    Attributes:
        module: Owner of the graph and its weights.
        state: The newest state, float [batch, tokens, width]; None before the first slice.
    """

    def __init__(self) -> None:
        """Make an empty assembly."""
        self.module = fx.GraphModule(torch.nn.Module(), fx.Graph())
        self.state: fx.Node | None = None
        self._result = HIDDEN
        self._dims: dict[str, str] = {}
        self._inputs: dict[str, fx.Node] = {}
        self._copies: dict[str, dict[fx.Node, fx.Node]] = {}

    def read(self, decoder: LayeredDecoder, width: int) -> None:
        """Begin with a state from another graph.

        Args:
            decoder: The one whose slice comes next: names of sizes are taken from it.
            width: Of the state.
        """
        like = decoder.states[0].meta["val"]
        with like.fake_mode:
            value = torch.empty(*like.shape[:2], width, dtype=torch.float32)
        self.state = self._input(HIDDEN, value)

    def append(self, decoder: LayeredDecoder, first: int, last: int, *, head: bool) -> None:
        """Add layers `first` to `last - 1` of a decoder; before the first slice, with its embedding.

        Args:
            decoder: The decoder that the layers are part of.
            first: Index from 0.
            last: One more than the last index.
            head: Also add its norm and head: the graph then gives logits.

        Raises:
            PassError: something else than the state comes from a layer that is left out.
        """
        self._dims.update(decoder.graph.dims)
        end = _logits(decoder.graph) if head else decoder.states[last]
        self._result = LOGITS if head else HIDDEN
        copies = self._copies.setdefault(decoder.name, {})
        if self.state is not None:
            copies[decoder.states[first]] = self.state
        for node in _needed(decoder.graph.module.graph, end, set(copies)):
            if node.op == "placeholder":
                if node.target != INPUT_IDS or self.state is None:
                    copies[node] = self._input(str(node.target), node.meta["val"])
                continue
            index = layer_of(node) if node.op == "call_function" else None
            if index is not None and not first <= index < last:
                raise PassError(
                    f"'{decoder.name}': layer {last - 1} reads {node.name} of layer {index}, which is left out"
                )
            if node.op == "get_attr":
                copies[node] = self._weight(decoder, node)
            elif node.target is torch.ops.aten.sym_size.int and self.state is not None:
                copies[node] = self._size(int(node.args[1]), node)  # type: ignore[arg-type]
            else:
                copies[node] = self.module.graph.node_copy(node, copies.__getitem__)
                path = path_of(node)
                copies[node].meta = {**node.meta, "path": named_after(decoder.name, path) if path else ""}
        self.state = copies[end]

    def graph(self) -> FxGraph:
        """Return the graph; its one output is called `logits` if it ends with a head, else `hidden`."""
        assert self.state is not None
        self.module.graph.output((self.state,))
        self.module.meta["outputs"] = (self._result,)
        self.module.recompile()
        return FxGraph(self.module, self._dims).fork()

    def _input(self, name: str, value: Any) -> fx.Node:
        if name not in self._inputs:
            last = list(self._inputs.values())
            graph = self.module.graph
            with graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes), None)):
                node = graph.placeholder(name)
            node.meta = {"val": value, "path": ""}
            self._inputs[name] = node
        return self._inputs[name]

    def _size(self, axis: int, node: fx.Node) -> fx.Node:
        """Batch or tokens, read off the first input."""
        source = next(iter(self._inputs.values()))
        copy = self.module.graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
        copy.meta = dict(node.meta)
        return copy

    def _weight(self, decoder: LayeredDecoder, node: fx.Node) -> fx.Node:
        """A weight or buffer of the decoder, shared, under the decoder's name."""
        name = named_after(decoder.name, str(node.target))
        assign(self.module, name, attribute(decoder.graph.module, str(node.target)))
        copy = self.module.graph.get_attr(name)
        copy.meta = dict(node.meta)
        return copy


def states_graph(decoder: LayeredDecoder, cuts: Mapping[str, int], *, logits: bool) -> FxGraph:
    """Return the decoder with some of its states as outputs; nothing that is not needed for them is computed.

    Args:
        decoder: A captured decoder.
        cuts: For each output's name, the layer that reads the state.
        logits: Whether its logits are an output too, the last.
    """
    fork = decoder.graph.fork()
    states = LayeredDecoder(decoder.name, fork).states
    output = fork.module.graph.output_node()
    output.args = ((*(states[cut] for cut in cuts.values()), *((_logits(fork),) if logits else ())),)
    fork.module.meta["outputs"] = (*cuts, *((LOGITS,) if logits else ()))
    fork.module.graph.eliminate_dead_code()
    fork.module.recompile()
    return fork


def _logits(graph: FxGraph) -> fx.Node:
    results: Any = graph.module.graph.output_node().args[0]
    first: fx.Node = results[0]
    return first


def _needed(graph: fx.Graph, end: fx.Node, known: set[fx.Node]) -> list[fx.Node]:
    """Return the nodes that must be computed for a node, in order, if `known` are there."""
    needed: set[fx.Node] = set()
    open_ = [end]
    while open_:
        node = open_.pop()
        if node not in needed and node not in known:
            needed.add(node)
            open_ += node.all_input_nodes
    return [node for node in graph.nodes if node in needed]
