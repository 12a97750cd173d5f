"""How a decoder is cut into partitions, each an engine: the dataclasses behind `partitions/NAME.json` in a bundle.

A step calls partitions' graphs with values by name, or chooses between two lists of calls by a gate. Weights are inputs
of the graphs like all else, so identical partitions are one graph, one engine and one build, whatever their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.strict_json import dumps, parse, read_json
from adaptc.runtime.errors import BundleError

VERSION = 3
"""Of this file's form."""


@dataclass(frozen=True, slots=True)
class PartitionGraph:
    """A graph that partitions share.

    Attributes:
        file: ONNX without weights, relative to the bundle.
        inputs: In the graph's order; a string in a shape is "batch", "tokens" or "kv_bucket".
        outputs: In the graph's order.
        weights: Bytes of weights that a call reads.
        gemm: Whether it is y = x·Wᵀ and no more: half[batch, tokens, columns] and half[results, columns] give
            float32[batch, tokens, results]. Few rows need no engine for it
            (runtime/backends/cuda/kernels/skinny_gemm.py).
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: int
    gemm: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a graph.

    Attributes:
        graph: Its name.
        reads: What each input is: an earlier value, an input of the whole, or a weight.
        writes: What each output is called.
    """

    graph: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class When:
    """A block that may be skipped.

    Attributes:
        logit: float32[batch, tokens], or float32[1] for one that is the same for every token; the block runs if it
            reaches the threshold for one of the step's tokens.
        then: The block.
        otherwise: What stands in for it; () gives zeros.
        result: What both write, with their last call.
    """

    logit: str
    then: tuple[Call, ...]
    otherwise: tuple[Call, ...]
    result: str


@dataclass(frozen=True, slots=True)
class PartitionStep:
    """Calls one after another, or a choice.

    Attributes:
        then: What runs, if nothing is chosen.
        when: The choice, or None.
    """

    then: tuple[Call, ...]
    when: When | None = None

    def calls(self) -> tuple[Call, ...]:
        """What may run in it."""
        return self.then if self.when is None else (*self.when.then, *self.when.otherwise)


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """Where a weight lies in the data file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """A decoder cut into partitions.

    Attributes:
        version: Version of this form.
        graphs: By name.
        steps: In order; the last is the head, from the last norm to the logits.
        whole: The dense model in one piece, to hold the pieces against.
        weights: By name, in the file `data`.
        data: Relative to the bundle.
        half: Type of matrix products and of the cache: "float16", "bfloat16".
    """

    version: int
    graphs: dict[str, PartitionGraph]
    steps: tuple[PartitionStep, ...]
    whole: Call
    weights: dict[str, WeightRecord]
    data: str
    half: str

    @property
    def gates(self) -> tuple[When, ...]:
        """The gated blocks, in order."""
        return tuple(step.when for step in self.steps if step.when is not None)

    def calls(self) -> Iterator[Call]:
        """Every call that may run, in order."""
        for step in self.steps:
            yield from step.calls()

    def called(self, prefix: str) -> Partitions:
        """The same with longer names for its graphs, so that those of several decoders differ."""

        def renamed(call: Call) -> Call:
            return replace(call, graph=prefix + call.graph)

        def all_of(calls: tuple[Call, ...]) -> tuple[Call, ...]:
            return tuple(map(renamed, calls))

        steps = tuple(
            PartitionStep(
                all_of(step.then),
                None
                if step.when is None
                else replace(step.when, then=all_of(step.when.then), otherwise=all_of(step.when.otherwise)),
            )
            for step in self.steps
        )
        graphs = {prefix + name: graph for name, graph in self.graphs.items()}
        return replace(self, graphs=graphs, steps=steps, whole=renamed(self.whole))

    def to_json(self) -> str:
        """The text of the file."""
        return dumps(self, indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> Partitions:
        """Read the file.

        Raises:
            BundleError: not of this form.
        """
        content = parse(text)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise BundleError(f"version: not {VERSION}; compile again")
        partitions = read_json(Partitions, content)
        for call in (*partitions.calls(), partitions.whole):
            if call.graph not in partitions.graphs:
                raise BundleError(f"no graph {call.graph!r}; there are: {', '.join(partitions.graphs)}")
        return partitions
