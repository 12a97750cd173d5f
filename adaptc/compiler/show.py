"""Programs between passes: as text, as differences, and as a page."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptc.compiler.pipeline import CompilePlan, plan_of
from adaptc.compiler.stages import program_from_sources, with_checkpoint
from adaptc.errors import RequestError
from adaptc.passes.base import Pipeline, Step
from adaptc.passes.store import PROCESS, Store
from adaptc.report.block import block_pictures
from adaptc.report.graphs import section
from adaptc.report.template import render
from adaptc.runtime.progress import Progress
from adaptc.sources.calibration_text import CalibrationText, calibration_text
from adaptc.sources.default_weights import with_default_weights
from adaptc.sources.find import find_source
from adaptc.spec.schema import Spec


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A program's text after a pass.

    Attributes:
        after: The pass; `capture` before any.
        text: The program, one operation a line.
        changed: Whether the pass rewrote anything.
        seconds: How long it took.
        blocks: A layer of each graph as SVG, by what it shows.
    """

    after: str
    text: str
    changed: bool
    seconds: float
    blocks: Mapping[str, str] = field(default_factory=dict)

    @property
    def operations(self) -> int:
        """How many operations it has."""
        return sum(" = " in line and not line.endswith("= input") for line in self.text.splitlines())


def passes_shown(spec: Spec, base: Path, until: str | None) -> list[str]:
    """Return the names of what can be shown, `capture` and then the spec's passes; no model and no text is read.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.
        until: The last one to show; None for all.

    Raises:
        RequestError: no such pass in this spec's pipeline.
    """
    return _names(plan_of(with_default_weights(spec, base), base), until)


def _names(plan: CompilePlan, until: str | None) -> list[str]:
    names = ["capture", *(pass_.name for pass_ in plan.passes)]
    if until is not None and until not in names:
        raise RequestError(f"--after {until}: no such pass here; there are: {', '.join(names)}")
    return names


def snapshots(
    spec: Spec,
    base: Path,
    until: str | None,
    progress: Progress,
    store: Store = PROCESS,
    text: CalibrationText | None = None,
) -> list[Snapshot]:
    """Run the compiler's passes and keep the program's text after each.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.
        until: Stop after this pass, or `capture`; None runs all.
        progress: Told of stages and steps.
        store: Where passes keep pieces of their work.
        text: What passes measure on; None for the spec's files, or our own text.

    Raises:
        RequestError: no such pass in this spec's pipeline.
        AdaptcError: a model or a pass fails.
    """
    spec = with_default_weights(spec, base)
    plan = plan_of(spec, base)
    passes, names = plan.passes, _names(plan, until)
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    program = program_from_sources(sources, text or calibration_text(spec.calibration, base), progress)
    taken = [Snapshot("capture", str(program), True, 0.0, block_pictures(program.graphs))]
    last = len(passes) if until is None else names.index(until)

    def observe(step: Step) -> None:
        taken.append(_snapshot(step))

    lowered = min(last, len(plan.to_onnx))
    program = Pipeline(passes[:lowered], store).run(program, observe, progress=progress)
    if spec.target.weights == "source":
        program = with_checkpoint(program, sources)
    Pipeline(passes[lowered:last], store).run(program, observe, progress=progress)
    return taken


def _snapshot(step: Step) -> Snapshot:
    # What verifies drafts has the layers of the graph that it does so for.
    graphs = {name: graph for name, graph in step.after.graphs.items() if name not in step.after.verifying}
    blocks = block_pictures(graphs) if step.changed else {}
    return Snapshot(step.pass_.name, str(step.after), step.changed, step.seconds, blocks)


def difference(taken: Sequence[Snapshot]) -> str:
    """The last pass's rewrite as a unified diff; empty if it changed nothing."""
    before, after = taken[-2] if len(taken) > 1 else Snapshot("nothing", "", False, 0.0), taken[-1]
    lines = difflib.unified_diff(
        before.text.splitlines(),
        after.text.splitlines(),
        f"after {before.after}",
        f"after {after.after}",
        lineterm="",
        n=1,
    )
    return "\n".join(lines)


def page(title: str, taken: Sequence[Snapshot]) -> str:
    """A page that shows what each pass did: operators gained and lost, a layer as a picture, and the program."""
    sections = []
    for before, after in zip([None, *taken], taken, strict=False):
        gained = _operators(after.text)
        if before is not None:
            gained.subtract(_operators(before.text))
        counts = sorted(((name, count) for name, count in gained.items() if count), key=lambda item: item[1])
        about = f"{after.operations} operations, {after.seconds:.2f} s" if after.changed else "nothing to do"
        blocks = after.blocks if after.changed else {}
        sections.append(section(after.after, about, counts, blocks, after.text, is_open=after is taken[-1]))
    lead = "What each pass gained and lost, by operator, and what it made of a layer."
    return render("show.html", {"title": title, "what": "passes", "lead": lead, "plan": "", "sections": sections})


def _operators(text: str) -> Counter[str]:
    calls = (line.split(" = ", 1)[1] for line in text.splitlines() if " = " in line)
    return Counter(call.split("(", 1)[0] for call in calls if "(" in call)
