"""What `verify` says of one part of a bundle: what it was compared with, and how that came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "failed", "not compared"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a bundle, compared.

    Attributes:
        name: What was compared: "tokenizer", "lowering".
        reference: What it was compared with, with its version: "AutoTokenizer of transformers 5.23.0"; "" for nothing.
        verdict: How it came out.
        why: What is wrong, a phrase for each fault; for "not compared" the reason.
        figures: What was measured, as JSON holds it.
    """

    name: str
    reference: str
    verdict: Verdict
    why: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The part as `--json` prints it."""
        return {
            "part": self.name,
            "reference": self.reference or None,
            "verdict": self.verdict,
            "why": list(self.why),
            "figures": dict(self.figures),
        }


def judged(name: str, reference: str, faults: Sequence[str], figures: Mapping[str, Any] | None = None) -> Part:
    """A part that was compared: failed if there are faults."""
    return Part(name, reference, "failed" if faults else "passed", tuple(faults), figures or {})


def not_compared(name: str, why: str, reference: str = "") -> Part:
    """A part that could not be compared, and why."""
    return Part(name, reference, "not compared", (why,))
