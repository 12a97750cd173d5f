"""adapter_places: find the products that kept adapters add to, while each weight still has its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from adaptc.errors import PassError
from adaptc.ir.low_rank import AdaptedProduct, KeptAdapter
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.match import Projection, parts_of, projections


@dataclass(frozen=True, slots=True)
class AdapterPlaces(Pass):
    """Note which products adapters add to; the graphs stay as they are.

    Before:  y = MatMul(x, Transpose(W)) [+ b]
    After:   the same; and x, y and the names of the weights that W was joined from are known to `switch_adapters`

    Weights become codes then, under other names and in other operators; x and y keep theirs.

    Needs: ONNX level, after fuse_projections, before the pass that stores weights.
    Shapes: unchanged.
    Cost: nothing.

    Raises:
        PassError: an adapter changes what is no product of its model's graph.
    """

    name: ClassVar[str] = "adapter_places"

    def apply(self, program: Program) -> Program:
        found: dict[str, tuple[AdaptedProduct, ...]] = {}
        for name, graph in program.at_level(OnnxGraph).items():
            kept = program.kept_adapters.get(program.model(name), ())
            if name not in program.adapted_products and (products := _places(graph, kept)):
                found[name] = products
        for model, kept in program.kept_adapters.items():
            own = [products for name, products in found.items() if program.model(name) == model]
            if own or not any(program.model(name) == model for name in program.adapted_products):
                _refuse_unplaced(kept, [each for products in own for each in products])
        return replace(program, adapted_products={**program.adapted_products, **found}) if found else program


def _places(graph: OnnxGraph, kept: Sequence[KeptAdapter]) -> tuple[AdaptedProduct, ...]:
    """The products of a graph that one of the adapters adds to, in order."""
    changed = {weight for adapter in kept for weight in adapter.changes}
    products = (_product(each) for each in projections(graph.model.graph) if changed)
    return tuple(each for each in products if any(weight in changed for weight, _ in each.parts))


def _product(projection: Projection) -> AdaptedProduct:
    names = projection.x.name or "", projection.result.name or ""
    return AdaptedProduct(*names, parts_of(projection.weight), fixed(projection.weight)[1])


def _refuse_unplaced(kept: Sequence[KeptAdapter], products: Sequence[AdaptedProduct]) -> None:
    """Refuse adapters that change what none of these products multiplies by."""
    placed = {weight for product in products for weight, _ in product.parts}
    for adapter in kept:
        missing = sorted(adapter.changes.keys() - placed)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise PassError(
                f"adapter '{adapter.name}' changes {missing[0].removesuffix('.weight')}{more}, which is no product of "
                "a decoder's graph; merge it, without a name"
            )
