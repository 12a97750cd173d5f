"""Programs as text, as differences between passes, and as a page."""

from __future__ import annotations

import difflib
import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from adaptc.compiler.pipeline import plan_of
from adaptc.compiler.report import STYLE
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import RequestError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pipeline
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.progress import Progress
from adaptc.sources.calibration_text import calibration_text
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
    """

    after: str
    text: str
    changed: bool
    seconds: float

    @property
    def operations(self) -> int:
        """How many operations it has."""
        return sum(" = " in line and not line.endswith("= input") for line in self.text.splitlines())


def snapshots(spec: Spec, base: Path, until: str | None, progress: Progress, store: Store = PROCESS) -> list[Snapshot]:
    """Run the compiler's passes and keep the program's text after each.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.
        until: Stop after this pass, or `capture`; None runs all.
        progress: Told of stages and steps.
        store: Where passes keep pieces of their work.

    Raises:
        RequestError: no such pass in this spec's pipeline.
        AdaptcError: a model or a pass fails.
    """
    passes = plan_of(spec, base).passes
    names = ["capture", *(pass_.name for pass_ in passes)]
    if until is not None and until not in names:
        raise RequestError(f"--after {until}: no such pass here; there are: {', '.join(names)}")
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    program = program_from_sources(sources, calibration_text(spec.calibration, base), progress)
    taken = [Snapshot("capture", str(program), True, 0.0)]
    last = len(passes) if until is None else names.index(until)
    Pipeline(passes[:last], store).run(
        program,
        lambda step: taken.append(Snapshot(step.pass_.name, str(step.after), step.changed, step.seconds)),
        progress=progress,
    )
    return taken


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


def bundle_text(path: Path) -> str:
    """The graphs of a bundle, one operation a line.

    Raises:
        BundleError: it cannot be opened.
    """
    manifest = open_bundle(path).manifest
    graphs = {name: OnnxGraph(ir.load(path / spec.file)) for name, spec in manifest.graphs.items()}
    return str(Program(graphs, manifest.plan))


def page(title: str, taken: Sequence[Snapshot]) -> str:
    """A page that shows what each pass did: operations gained and lost, and the program after it."""
    sections = []
    for before, after in zip([None, *taken], taken, strict=False):
        gained = _operators(after.text)
        if before is not None:
            gained.subtract(_operators(before.text))
        rows = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td class=number>{count:+d}</td></tr>"
            for name, count in sorted(gained.items(), key=lambda item: item[1])
            if count
        )
        sections.append(
            f"<h2>{html.escape(after.after)} <span class=none>{after.operations} operations, {after.seconds:.2f} s"
            f"</span></h2><table>{rows}</table>"
            f"<details><summary>the program</summary><pre>{html.escape(after.text)}</pre></details>"
        )
    style = STYLE + "pre { font-size: 12px; overflow-x: auto; background: #f6f8fb; padding: 1rem }"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
        f"<h1>{html.escape(title)}</h1><p class=lead>What each pass gained and lost, by operator.</p>"
        + "".join(sections)
        + "</html>\n"
    )


def _operators(text: str) -> Counter[str]:
    calls = (line.split(" = ", 1)[1] for line in text.splitlines() if " = " in line)
    return Counter(call.split("(", 1)[0] for call in calls if "(" in call)
