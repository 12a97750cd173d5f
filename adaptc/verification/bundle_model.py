"""A bundle that is asked for its predictions: as it runs, or with all its arithmetic in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.errors import BundleError
from adaptc.runtime.backends.backend import Backend, DecoderOptions
from adaptc.runtime.backends.onnxruntime_cpu.backend import OnnxRuntimeCpu
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import BACKENDS, load_decoder
from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.runtime.model.options import RequestOptions
from adaptc.verification.parity import Passage, Predictions

Ran = npt.NDArray[np.bool_]

_CHUNK = 128
"""Prompt tokens that are read at once: fewer than the longest prompt has, so that reading in pieces is compared too."""


class ExactCpu(OnnxRuntimeCpu):
    """The CPU backend with kernels that keep activations in float32, where the bundle's own round them to int8."""

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> OrtEngine:
        """See `Backend.engine`."""
        file = bundle.file(bundle.manifest.graphs[graph].file)
        return OrtEngine(file, threads, instead=exact_graph(file))


EXACT: dict[str, Backend] = {"onnxruntime": ExactCpu()}
"""Backends whose arithmetic is float32, by the name that bundles carry."""


def exact_graph(file: Path) -> bytes:
    """A graph whose products of codes are computed in float32; everything else, and its weights, as in the file."""
    import onnx_ir as ir

    model = ir.load(file)
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def has_coded_experts(bundle: Bundle) -> bool:
    """Whether a graph has experts whose weights are codes: their kernel rounds activations whatever it is told."""
    import onnx_ir as ir

    files = {bundle.file(graph.file) for graph in bundle.manifest.graphs.values()}
    return any(node.op_type == "QMoE" for file in files for node in ir.load(file).graph.all_nodes())


class BundleModel:
    """A bundle, seen as a `Model`: samples go through the prefill path and the decode path."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        route: str | None = None,
        *,
        gated: bool = False,
        exact: bool = False,
        budget: float = 1.0,
    ) -> None:
        """Load it; its hashes are not looked at.

        Args:
            bundle: An opened bundle.
            threads: Threads of the engine; None for the physical cores.
            route: Route of a stitched bundle.
            gated: Whether every block is run by the graph with gates, where there is one without them too.
            exact: Whether arithmetic is float32, where the bundle's kernels would round activations.
            budget: Of steps; prompts are read by every block.

        Raises:
            EngineError: the engine is not installed or refuses the graph.
            BundleError: it is not a decoder.
        """
        if bundle.manifest.graphs[bundle.manifest.reader].decoder is None:
            raise BundleError(f"{bundle.path}: not a decoder; there is nothing to compare")
        options = DecoderOptions(chunk=_CHUNK, threads=threads, budget=0.0 if gated else budget)
        self._decoder = load_decoder(bundle, options, EXACT if exact else BACKENDS)
        self._options = RequestOptions(budget=1.0, route=route)
        self._stepping = RequestOptions(budget=budget, route=route)
        self.max_tokens = self._decoder.spec.max_tokens
        gates = bundle.manifest.gates.get(bundle.manifest.reader)
        self._gates = 0 if gates is None else len(gates.layers)

    def predictions(self, sample: Passage) -> Predictions:
        """See `Model`."""
        return Predictions(self.logits(sample.ids, sample.last), self.stepped(sample.ids, sample.prompt))

    def logits(self, ids: Ids, last: int | None = None) -> Logits:
        """Logits at every position, or the last ones, all read at once: int64 [tokens] -> float32 [last, vocab]."""
        parts: list[Logits] = []
        for part in self._decoder.score(ids, len(ids), self._options):
            parts.append(part.copy())
            while last is not None and sum(map(len, parts[1:])) >= last:
                parts.pop(0)
        return np.concatenate(parts)[-(last or len(ids)) :]

    def stepped(self, ids: Ids, prompt: int) -> Logits:
        """Logits from the prompt's end on, token by token: float32 [tokens - prompt + 1, vocab]."""
        logits = [self._decoder.start(0, ids[:prompt], self._stepping).copy()]
        logits += [self._decoder.decode([int(token)])[0].copy() for token in ids[prompt:]]
        return np.stack(logits)

    def decided(self, sample: Passage) -> tuple[Logits, Ran]:
        """As `stepped`, and which gated blocks ran at each step: bool [steps, gates]."""
        logits, ran = [self._decoder.start(0, sample.ids[: sample.prompt], self._stepping).copy()], []
        for token in sample.ids[sample.prompt :]:
            logits.append(self._decoder.decode([int(token)])[0].copy())
            ran.append(self._decoder.ran(0))
        # A short sample may end before the gates begin to decide.
        decided = [np.ones(self._gates, np.bool_) if each is None else np.frombuffer(each, np.bool_) for each in ran]
        return np.stack(logits), np.stack(decided)

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation; an end token does not end it."""
        logits = self._decoder.start(0, np.array(prompt, np.int64), self._stepping)
        ids = [int(logits.argmax())]
        while len(ids) < new_tokens:
            ids.append(int(self._decoder.decode(ids[-1:])[0].argmax()))
        return ids

    def close(self) -> None:
        """Free the engine and the cache."""
        self._decoder.close()
