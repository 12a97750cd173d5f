"""The graphs of a stitched program: the trunk, and the tail of each route."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.stitch.plan import StitchPlan, tail_name
from adaptc.passes.stitch.rules import TRUNK
from adaptc.passes.stitch.seams import add_adapters, add_stitch
from adaptc.passes.stitch.slices import GraphAssembly


def stitched_graphs(plan: StitchPlan, weights: Mapping[str, torch.Tensor]) -> dict[str, FxGraph]:
    """Return the trunk and the tail of each route, by the graph's name.

    Args:
        plan: What is stitched.
        weights: Weights of stitches and adapters, by name.
    """
    tails = {tail_name(route): tail_graph(plan, route, weights) for route in plan.routes}
    return {TRUNK: trunk_graph(plan)} | tails


def trunk_graph(plan: StitchPlan) -> FxGraph:
    """Return the graph that every route begins with: token ids to hidden states."""
    assembly = GraphAssembly()
    assembly.append(plan.decoders[plan.trunk.model], plan.trunk.first, plan.trunk.end, head=False)
    return assembly.graph()


def tail_graph(plan: StitchPlan, route: str, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Return the graph that a route runs after the trunk: hidden states to logits.

    Args:
        plan: What is stitched.
        route: Name of the route.
        weights: Weights of stitches and adapters, by name; parameters stay parameters, so that they can be trained.
    """
    assembly, runs = GraphAssembly(), plan.routes[route]
    assembly.read(plan.decoders[runs[0].model], plan.width)
    for place, (run, seam) in enumerate(zip(runs, plan.seams(route), strict=True)):
        if seam is not None:
            assert assembly.state is not None
            assembly.state = add_stitch(assembly.module, assembly.state, seam, weights)
        assembly.append(plan.decoders[run.model], run.first, run.end, head=place == len(runs) - 1)
    graph = assembly.graph()
    join = plan.joins[route]
    if join is not None and join.adapters:
        add_adapters(graph, route, weights)
    return graph
