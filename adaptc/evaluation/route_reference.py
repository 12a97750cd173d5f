"""The routes of a stitched bundle as torch runs them: the captured layers and stitches, dense and without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.evaluation.parity import Logits
from adaptc.evaluation.reference import sources_of, torch_of
from adaptc.evaluation.text import Ids
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import INPUT_IDS, LOGITS, POSITION_IDS, SPEC, THRESHOLD

if TYPE_CHECKING:
    from adaptc.ir.fx_graph import FxGraph
    from adaptc.ir.program import Program


@dataclass(frozen=True, eq=False)
class Stitched:
    """What the passes of a bundle's spec make of its models, before rounding.

    Attributes:
        program: A program of FX graphs: a trunk, and a tail for each route.
        tails: Names of the tails, by route.
    """

    program: Program
    tails: dict[str, str]

    @classmethod
    def of(
        cls, bundle: Bundle, base: Path, threads: int | None = None, stage: Callable[[str], None] = lambda _: None
    ) -> Stitched:
        """Capture the models again, and stitch them.

        Args:
            bundle: An opened bundle with routes.
            base: The folder that paths in its spec start from.
            threads: Threads of torch; None leaves them as they are.
            stage: Called with a text that says what is being done.

        Raises:
            LoadError: a model is not there or has changed, or torch is missing.
            PassError: the stitches or the router are not there, or others than the spec's.
        """
        torch = torch_of()
        if threads is not None:
            torch.set_num_threads(threads)
        sources = sources_of(bundle, base)

        from adaptc.compiler.stages import program_from_sources
        from adaptc.passes.base import Pipeline
        from adaptc.runtime.bundle.plan import Switch
        from adaptc.sources.calibration_text import calibration_text
        from adaptc.spec.passes import build_passes
        from adaptc.spec.reading import read_spec

        spec = read_spec(bundle.file(SPEC))
        program = program_from_sources(sources, calibration_text(spec.calibration, base), stage)
        for pass_ in (each.at(base) for each in build_passes(spec)):
            stage(pass_.name)
            program = Pipeline((pass_,)).run(program)
        [switch] = (step for step in program.plan if isinstance(step, Switch))
        return cls(program, dict(switch.routes))

    def route(self, name: str) -> RouteReference:
        """One route.

        Raises:
            RequestError: there is none of this name.
        """
        from adaptc.ir.fx_graph import FxGraph

        if name not in self.tails:
            raise RequestError(f"route: no route {name!r}; there are: {', '.join(self.tails)}")
        trunk = self.program.plan[0].graphs[0]
        return RouteReference(self.program.graph(trunk, FxGraph), self.program.graph(self.tails[name], FxGraph))


@dataclass(frozen=True, eq=False)
class RouteReference:
    """A trunk and a tail, one after the other; see `verify.Model`."""

    trunk: FxGraph
    tail: FxGraph

    def logits(self, ids: Ids) -> Logits:
        """int64 [tokens] -> float32 [tokens, vocab], at every position; no block is skipped."""
        feeds: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: ids[None],
            POSITION_IDS: np.arange(len(ids))[None],
            THRESHOLD: np.full((1, len(ids)), -np.inf, np.float32),
        }
        feeds |= self.trunk.run(feeds)
        logits: Logits = self.tail.run(feeds)[LOGITS][0]
        return logits

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation, all of it computed again for each token; an end token does not end it."""
        ids = list(prompt)
        for _ in range(new_tokens):
            ids.append(int(self.logits(np.array(ids, np.int64))[-1].argmax()))
        return ids[len(prompt) :]
