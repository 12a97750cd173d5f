"""draft_with: a smaller model of the same vocabulary goes into the bundle, to draft tokens for the one that answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import UNUSED, FxGraph, assign
from adaptc.ir.marks import path_of
from adaptc.ir.program import Program
from adaptc.ir.weight_names import named_after
from adaptc.passes.base import Pass
from adaptc.runtime.bundle.plan import Run


@dataclass(frozen=True, slots=True)
class DraftWith(Pass):
    """Take a model out of the plan, and let it draft for what is left.

    Before:  plan: run large; run small
    After:   plan: run large; small drafts

    A session that speculates has the small model guess tokens and the large one verify several at once. What is written
    is what the large one writes by itself (`verify_drafts`).

    Needs: FX level, before gptq and lower; two models, or a model and a stitched program, with one vocabulary.
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
        graph = called_after(self.model, program.graph(self.model, FxGraph))
        joined = program.joined | {self.model}
        return replace(program.with_graph(self.model, graph), plan=rest, draft=self.model, joined=joined)


def called_after(model: str, graph: FxGraph) -> FxGraph:
    """A graph whose weights and modules are called after their model, as another one's have the same names."""
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            copy = new.get_attr(named_after(model, str(node.target)))
        else:
            copy = new.node_copy(node, copies.__getitem__)
        path = path_of(node)
        copy.meta = {**node.meta, "path": named_after(model, path) if path else ""}
        copies[node] = copy
    root = torch.nn.Module()
    weights = graph.module.named_parameters(remove_duplicate=False), graph.module.named_buffers(remove_duplicate=False)
    for name, value in chain(*weights):
        assign(root, named_after(model, name), value)
    module = fx.GraphModule(root, new)
    module.meta = {key: value for key, value in graph.module.meta.items() if key != UNUSED}
    return FxGraph(module, graph.dims)
