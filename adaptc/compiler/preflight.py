"""What is found before a compile: whether the spec fits its models and this machine, and which passes would run."""

from __future__ import annotations

from pathlib import Path

from adaptc.checks.check import CheckReport, check
from adaptc.checks.finding import Finding
from adaptc.compiler.pipeline import plan_of
from adaptc.errors import SpecError
from adaptc.sources.default_weights import with_default_weights
from adaptc.spec.schema import Spec


def preflight(spec: Spec, base: Path, *, explained: bool = False) -> CheckReport:
    """Check a spec against its models, this machine and the list of passes, without reading a weight.

    Args:
        spec: What would be compiled.
        base: Folder that relative paths start from: the spec's.
        explained: As for `check`.

    Returns:
        The findings of `check`, and one that names the passes in order. A spec that cannot work raises nothing: it has
        findings of level `error`.
    """
    spec = with_default_weights(spec, base)
    return CheckReport((*check(spec, base, explained=explained).findings, _passes(spec, base)))


def refuse_faults(spec: Spec, base: Path) -> tuple[str, ...]:
    """Refuse to compile what `preflight` finds an error in, with the same sentence.

    Returns:
        Its warnings, a line each, which begin with the part of the spec that they are about.

    Raises:
        SpecError: a line for each error, which begins likewise.
    """
    found = preflight(spec, base).findings
    if errors := [_line(spec, finding) for finding in found if finding.level == "error"]:
        raise SpecError("\n".join(errors))
    return tuple(_line(spec, finding) for finding in found if finding.level == "warn")


def _line(spec: Spec, finding: Finding) -> str:
    return f"{'models.' if finding.about in spec.models else ''}{finding.about}: {finding.text}"


def _passes(spec: Spec, base: Path) -> Finding:
    try:
        return Finding("passes", "ok", ", ".join(pass_.name for pass_ in plan_of(spec, base).passes))
    except SpecError as error:
        return Finding("passes", "error", str(error))
