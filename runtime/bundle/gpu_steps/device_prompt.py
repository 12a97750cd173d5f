"""A prompt of a decoder as a few ONNX graphs: the dataclasses behind `steps/NAME-prompt.json` in a bundle.

Our own kernels read few rows at once; cuBLAS, through ONNX Runtime, reads hundreds of them several times as fast. So a
long prompt runs layer by layer through graphs whose weights are inputs: layers that differ in weights alone are one
graph. The embedding before them and the head behind them are calls of `DeviceStep`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepValue
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import SEQLENS_K, TOTAL_SEQUENCE_LENGTH, cache_tensor
from adaptc.runtime.bundle.strict_json import loads
from adaptc.runtime.errors import BundleError

VERSION = 1
"""Of this file's form."""


@dataclass(frozen=True, slots=True)
class PromptGraph:
    """A graph that layers share.

    Attributes:
        file: ONNX without weights, relative to the bundle.
        inputs: In the graph's order; a string in a shape is "batch", always 1, or "tokens".
        outputs: In the graph's order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class PromptCall:
    """One run of a graph.

    Attributes:
        graph: Its name.
        reads: What each input is: a value of the step or of an earlier call, a weight, `past.N.key`, `past.N.value`,
            `seqlens_k` or `total_sequence_length`.
        writes: What each output is: a value, or `present.N.key` and `present.N.value`, which lie where `past` does.
    """

    graph: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptProduct:
    """A product's weight, float16[results, columns] as a call reads it.

    Attributes:
        gemm: The entry of `DeviceStep.gemms`.
        factor: What it is multiplied by, a power of two; the graph divides what the product gives by it.
    """

    gemm: int
    factor: float


@dataclass(frozen=True, slots=True)
class PromptPieces:
    """A decoder from its embedding to what its head reads, every gated block among it.

    Attributes:
        version: Version of this form.
        graphs: By name.
        calls: In order.
        values: Values that calls give to later ones, to the head, or get from the lookup, by name.
        products: Weights of products, by name.
        ends: Names of the values that the step's head, or whoever reads its hidden states, goes on from.
    """

    version: int
    graphs: dict[str, PromptGraph]
    calls: tuple[PromptCall, ...]
    values: dict[str, StepValue]
    products: dict[str, PromptProduct]
    ends: tuple[str, ...]

    @staticmethod
    def from_json(text: str | bytes, step: DeviceStep) -> PromptPieces:
        """Read the file.

        Args:
            text: The file's.
            step: The step that the pieces go with.

        Raises:
            BundleError: not of this form, or it names what is not there.
        """
        pieces = loads(PromptPieces, text)
        if pieces.version != VERSION:
            raise BundleError(f"version: {pieces.version}, not {VERSION}; compile again")
        for name, product in pieces.products.items():
            if not 0 <= product.gemm < len(step.gemms):
                raise BundleError(f"{name}: product {product.gemm}; there are {len(step.gemms)}; compile again")
        given = {step.source, *(name for call in step.body if call.kind == "lookup" for name in call.writes)}
        for call in pieces.calls:
            pieces._check(call, step, given)
            given |= set(call.writes)
        if missing := set(pieces.ends) - given:
            raise BundleError(f"nothing gives {', '.join(sorted(missing))}; compile again")
        return pieces

    def _check(self, call: PromptCall, step: DeviceStep, given: set[str]) -> None:
        """A call reads what there is, as its graph has it."""
        graph = self.graphs.get(call.graph)
        if graph is None:
            raise BundleError(f"no graph {call.graph!r}; there are: {', '.join(self.graphs)}")
        if len(graph.inputs) != len(call.reads) or len(graph.outputs) != len(call.writes):
            raise BundleError(f"{call.graph}: {len(call.reads)} inputs and {len(call.writes)} outputs; compile again")
        layers = range(len(step.attentions))
        for name in (*call.reads, *call.writes):
            cache = cache_tensor(name)
            if cache is not None and cache.layer not in layers:
                raise BundleError(f"{name}: there are {len(step.attentions)} layers; compile again")
        for name in call.reads:
            known = name in given or name in step.weights or name in self.products
            if not known and cache_tensor(name) is None and name not in (SEQLENS_K, TOTAL_SEQUENCE_LENGTH):
                raise BundleError(f"nothing gives {name!r}; compile again")
        for name in call.writes:
            if cache_tensor(name) is None and name not in self.values:
                raise BundleError(f"{name}: how wide it is is not said; compile again")
