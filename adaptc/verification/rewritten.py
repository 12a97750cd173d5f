"""What the passes of a bundle's spec make of its models, as graphs that torch runs: the reference of lossy passes.

A pass that skips, stitches or leaves inputs out changes the model on purpose. Its bundle is therefore compared with the
rewritten program, before lowering and rounding: from this it differs by float32 sums alone, whatever the pass has cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.evaluation.reference import sources_of, torch_of
from adaptc.ir.fx_graph import FxGraph, assign, attribute
from adaptc.ir.program import Program
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import INPUT_IDS, LOGITS, POSITION_IDS, SPEC, THRESHOLD
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.verification.parity import Passage, Predictions, Written
from adaptc.verification.rounded import WeightError, weight_error
from adaptc.verification.stored_weights import BundleWeights

Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A bundle's models, captured again and rewritten by the passes of its spec.

    Attributes:
        sources: The models, by their names in the spec.
        captured: The program before any pass: a graph for each model.
        program: The program after the spec's passes, at FX level.
    """

    sources: Mapping[str, Source]
    captured: Program
    program: Program

    @classmethod
    def of(cls, bundle: Bundle, base: Path, threads: int | None = None, progress: Progress = SILENT) -> Rewritten:
        """Capture the models of a bundle again, and rewrite them.

        Args:
            bundle: An opened bundle.
            base: The folder that paths in its spec start from.
            threads: Threads of torch; None leaves them as they are.
            progress: Told of stages and steps.

        Raises:
            LoadError: a model is not there or has changed, or torch is missing.
            PassError: what a pass reads is not there, or other than the spec's.
        """
        torch = torch_of()
        if threads is not None:
            torch.set_num_threads(threads)
        sources = sources_of(bundle, base)

        from adaptc.compiler.cache import Cache
        from adaptc.compiler.stages import program_from_sources
        from adaptc.passes.base import Pipeline
        from adaptc.spec.passes import build_passes
        from adaptc.spec.reading import read_spec
        from adaptc.writing.calibration import calibration_of

        spec = read_spec(bundle.file(SPEC))
        text = calibration_of(spec, base, Cache.default(), progress)
        captured = program = program_from_sources(sources, text, progress).loaded()
        for pass_ in (each.at(base) for each in build_passes(spec)):
            progress.stage(pass_.name)
            program = Pipeline((pass_,)).run(program)
        return cls(sources, captured, program)

    def graph(self, name: str) -> FxGraph:
        """A graph of the rewritten program."""
        return self.program.graph(name, FxGraph)

    def route(self, name: str) -> tuple[FxGraph, ...]:
        """The graphs of one route, in order.

        Raises:
            RequestError: there is none of this name.
        """
        [switch] = (step for step in self.program.plan if isinstance(step, Switch))
        if name not in switch.routes:
            raise RequestError(f"route: no route {name!r}; there are: {', '.join(switch.routes)}")
        return self.graph(self.program.plan[0].graphs[0]), self.graph(switch.routes[name])


def with_stored(graph: FxGraph, stored: BundleWeights) -> tuple[FxGraph, list[WeightError]]:
    """A graph with the weights that a bundle holds, and how far each is from the one that was there.

    Args:
        graph: A captured or rewritten graph; it stays as it is.
        stored: The bundle's weights, under the same names.
    """
    import torch

    fork = graph.fork()
    parameters = dict(fork.module.named_parameters(remove_duplicate=False))
    rows = {name: value.shape[0] for name, value in parameters.items() if value.ndim}
    errors = []
    for node in list(fork.module.graph.nodes):
        name = str(node.target)
        if node.op != "get_attr" or name not in parameters or name.endswith(_APART):
            continue
        tables = [user for user in node.users if user.target is torch.ops.aten.embedding.default]
        for looked_up, users in ((True, tables), (False, [user for user in node.users if user not in tables])):
            if not users:
                continue
            found = stored.find(name, rows, looked_up=looked_up)
            values, error = weight_error(name, parameters[name], found)
            errors.append(error)
            if values is None:
                continue
            into = f"{name}{_APART}" if looked_up and len(users) < len(node.users) else name
            assign(fork.module, into, torch.nn.Parameter(values, requires_grad=False))
            if into != name:
                with fork.module.graph.inserting_after(node):
                    apart = fork.module.graph.get_attr(into)
                apart.meta = dict(node.meta)
                for user in users:
                    user.replace_input_with(node, apart)
    fork.module.recompile()
    assert all(attribute(fork.module, str(n.target)) is not None for n in fork.module.graph.nodes if n.op == "get_attr")
    return fork, errors


_APART = "_looked_up"
"""End of the name of an embedding that a bundle stores apart from the head of the same name."""


@dataclass(frozen=True, eq=False)
class GraphModel(Written):
    """Graphs that run one after the other, from token ids to logits; see `Writer`. No block is skipped."""

    graphs: tuple[FxGraph, ...]

    def predictions(self, sample: Passage) -> Predictions:
        """See `Model`; without steps."""
        return Predictions(self.logits(sample.ids)[-sample.last :])

    def logits(self, ids: Ids) -> Logits:
        """int64 [tokens] -> float32 [tokens, vocab], at every position, without a cache."""
        feeds: Feeds = {
            INPUT_IDS: ids[None],
            POSITION_IDS: np.arange(len(ids))[None],
            THRESHOLD: np.full((1, len(ids)), -np.inf, np.float32),
        }
        for graph in self.graphs:
            feeds |= graph.run(feeds)
        logits: Logits = feeds[LOGITS][0]
        return logits
