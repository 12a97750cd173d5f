"""Skip gates: the rewritten graph with the decisions that a bundle made, token by token.

Which blocks run is read from the bundle and forced on the graph, so what is compared is what the blocks and their
stand-ins compute. The decisions are then compared with what the gates of the graph say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import LAYER, path_of
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import INPUT_IDS, LOGITS, POSITION_IDS, THRESHOLD
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import threshold_of
from adaptc.runtime.model.decoder import Logits
from adaptc.verification.bundle_model import Ran
from adaptc.verification.parity import Passage

if TYPE_CHECKING:
    from torch import fx

Said = dict[int, npt.NDArray[np.float32]]
"""What each gate said, by layer: float32 [steps]."""

NEAR = 1e-3
"""Two sums of float32 may decide differently where a gate is so near to its threshold."""


@dataclass(frozen=True, eq=False)
class DecidedGraph:
    """A graph whose skip gates are told what to do.

    Attributes:
        graph: Reads `run.N`, float [batch, tokens], 1 or -1, for the gate of layer N; also gives what each gate says.
        layers: The layers with a gate, in order.
    """

    graph: FxGraph
    layers: tuple[int, ...]

    @classmethod
    def of(cls, graph: FxGraph) -> DecidedGraph:
        """A fork of a graph with gates."""
        from adaptc.passes.quantize.kept_codes import SKIP

        fork = graph.fork()
        nodes = fork.module.graph.nodes
        gates = {int(match["index"]): n for n in nodes if n.target is SKIP and (match := LAYER.match(path_of(n)))}
        said: list[Any] = [gate.args[0] for gate in gates.values()]
        last = next(node for node in reversed(nodes) if node.op == "placeholder")
        for layer, gate in gates.items():
            last = _placeholder(fork.module.graph, last, f"run_{layer}", gate.args[0])
            gate.update_arg(0, last)
        output = fork.module.graph.output_node()
        results: Any = output.args[0]
        output.args = ((*results, *said),)
        fork.module.meta["outputs"] = (LOGITS, *(f"said.{layer}" for layer in gates))
        fork.module.recompile()
        return cls(fork, tuple(gates))

    def run(self, sample: Passage, ran: Ran, layers: Sequence[int]) -> tuple[Logits, Said]:
        """Run a sample with the decisions that were made.

        Args:
            sample: A prompt, every block of which runs, and what is read after it step by step.
            ran: Which blocks ran, at each step.
            layers: The layers that these belong to; the blocks of other layers run.

        Returns:
            float32 [written + 1, vocab] from the prompt's end on; and what each gate said at each step, by layer.
        """
        tokens = len(sample.ids)
        feeds: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: sample.ids[None],
            POSITION_IDS: np.arange(tokens)[None],
            THRESHOLD: np.zeros((1, tokens), np.float32),
        }
        for layer in self.layers:
            runs = np.ones((1, tokens), np.float32)
            if layer in layers:
                runs[0, sample.prompt :] = np.where(ran[:, list(layers).index(layer)], 1, -1)
            feeds[f"run_{layer}"] = runs
        found = self.graph.run(feeds)
        said: Said = {
            layer: found[f"said.{layer}"].reshape(tokens)[sample.prompt :].astype(np.float32) for layer in self.layers
        }
        return found[LOGITS][0, sample.prompt - 1 :].astype(np.float32), said


def _placeholder(graph: fx.Graph, after: fx.Node, name: str, like: fx.Node) -> fx.Node:
    with graph.inserting_after(after):
        node = graph.placeholder(name)
    node.meta = {"val": like.meta["val"], "path": ""}
    return node


def wrong_decisions(bundle: Bundle, name: str, budget: float, said: Said, ran: Ran, positions: range) -> int:
    """How many decisions a bundle made against what the gates of the rewritten graph say.

    Args:
        bundle: Whose gates they are.
        name: Of the graph.
        budget: Under which it ran.
        said: What each gate said at each step, by layer.
        ran: Which blocks ran, at each step.
        positions: Of the steps.
    """
    gates: SkipGates = bundle.manifest.gates[name]
    verdict = bundle.manifest.gate_verdicts.get(name)
    leaders = {each.layer: each.leader for each in verdict.each} if verdict is not None else {}
    threshold = threshold_of(gates, budget)
    wrong = 0
    for place, layer in enumerate(gates.layers):
        leader = leaders.get(layer)
        says = said[layer if leader is None else leader]
        for step, position in enumerate(positions):
            runs = position < gates.warmup or says[step] >= threshold
            near = position >= gates.warmup and abs(says[step] - threshold) < NEAR
            wrong += int(runs != ran[step, place] and not near)
    return wrong
