"""draft_with: a smaller model of the same vocabulary goes into the bundle, to draft tokens for the one that answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from adaptc.errors import PassError
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.runtime.bundle.plan import Run


@dataclass(frozen=True, slots=True)
class DraftWith(Pass):
    """Take a model out of the plan, and let it draft for what is left.

    Before:  plan: run large; run small
    After:   plan: run large; small drafts

    A session that speculates has the small model guess tokens and the large one verify several at once. What is written
    is what the large one writes by itself (`verify_drafts`).

    Needs: two models, or a model and a stitched program; their token ids must mean the same.
    Shapes: unchanged.
    Cost: the weights and the KV cache of the small model, where a session speculates with it.

    Attributes:
        model: Name of the model that drafts.

    Raises:
        PassError: there is no such model, nothing is left to draft for, or the vocabularies differ.

    Reference: Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding".
    """

    name: ClassVar[str] = "draft_with"
    model: str = ""

    def apply(self, program: Program) -> Program:
        if program.draft == self.model and program.draft:
            return program
        runs = [step for step in program.plan if isinstance(step, Run) and step.graph == self.model]
        if not runs:
            there = ", ".join(name for step in program.plan for name in step.graphs)
            raise PassError(f"model: no model '{self.model}' is run by itself; there are: {there}")
        rest = tuple(step for step in program.plan if step not in runs)
        if not rest:
            raise PassError(f"model: '{self.model}' is the only one; another one, which it drafts for, is needed")
        answers = program.backbone(rest[0].graphs[0])
        drafts = program.backbone(self.model)
        if answers.vocabulary != drafts.vocabulary:
            raise PassError(
                f"model: '{self.model}' has other tokens than {program.model(rest[0].graphs[0])!r}; "
                "a model of the same family, whose token ids mean the same, is needed"
            )
        return replace(program, plan=rest, draft=self.model)
