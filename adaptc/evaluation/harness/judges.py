"""Whether an answer is right: what tasks say of each, as lm-evaluation-harness calls it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adaptc.evaluation.harness.checked import checkers
from adaptc.evaluation.harness.sandbox import passes
from adaptc.evaluation.questions import is_right


def answer_judged(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer's first line begins with a right answer."""
    return {"right": float(is_right(results[0], doc["answers"]))}


def instructions_judged(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """IFEval's four figures: all instructions of a prompt or each by itself, strict or after its loosening."""
    judged: dict[str, Any] = checkers().process_results(doc, list(results))
    return {name: float(value) if isinstance(value, bool) else value for name, value in judged.items()}


def instructions_share(items: Sequence[Sequence[bool]]) -> float:
    """The share of all instructions that were followed."""
    return float(checkers().agg_inst_level_acc(items))


def code_judged(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a function passes its tests, run in a process of its own."""
    body = re.split(r"\n?```", results[0], maxsplit=1)[0]
    return {"pass@1": float(passes(dict(doc), body))}
