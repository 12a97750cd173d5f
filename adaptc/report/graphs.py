"""The graphs of a bundle as text, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptc.ir.onnx_graph import graph_text
from adaptc.ir.program import graphs_text, plan_text
from adaptc.ir.stored.onnx_file import StoredGraph, read_graph
from adaptc.report.block import block_pictures
from adaptc.report.files import record_of
from adaptc.report.plan import plan_picture
from adaptc.report.template import render
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import BundleError


def bundle_text(bundle: Bundle) -> str:
    """The graphs of a bundle, one operation a line.

    Raises:
        BundleError: a graph's file cannot be read.
    """
    texts = {name: graph_text(graph) for name, graph in _graphs(bundle).items()}
    return plan_text(bundle.manifest.plan) + adapters_text(bundle) + graphs_text(texts)


def adapters_text(bundle: Bundle) -> str:
    """The adapters that requests choose among, a line each; "" for a bundle that keeps none."""
    return "".join(
        f"\n# adapter {index} of {name}: {each.name}, rank {each.rank}, {each.bytes / 1e6:,.1f} MB, from {each.source}"
        for name, form in bundle.manifest.adapters.items()
        for index, each in enumerate(form.adapters, 1)
    )


def bundle_page(bundle: Bundle) -> str:
    """A page that shows a bundle's plan, a layer of each of its graphs, and the graphs' text.

    Raises:
        BundleError: a graph's file, or the report, cannot be read.
    """
    sections = []
    for name, graph in _graphs(bundle).items():
        nodes, steps = f"{bundle.manifest.graphs[name].nodes} nodes", bundle.manifest.verifying.get(name)
        about = nodes if steps is None else f"{nodes}; the layers of {steps}, for several tokens of one sequence"
        blocks = block_pictures({name: graph}) if steps is None else {}  # a layer of them is a layer of the other's
        sections.append(section(name, about, [], blocks, graph_text(graph), is_open=steps is None))
    title = record_of(bundle).title or "-".join(bundle.manifest.models)
    lead = f"Compiled for {bundle.manifest.target.backend} in {bundle.manifest.target.weights}."
    plan = plan_picture(bundle.manifest, {})
    return render("show.html", {"title": title, "what": "graphs", "lead": lead, "plan": plan, "sections": sections})


def _graphs(bundle: Bundle) -> dict[str, StoredGraph]:
    return {name: stored_graph(bundle, spec.file) for name, spec in bundle.manifest.graphs.items()}


def stored_graph(bundle: Bundle, file: str) -> StoredGraph:
    """The graph of a bundle's ONNX file.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        return read_graph(bundle.read(file))
    except ValueError as error:
        raise BundleError(f"{bundle.path / file}: not an ONNX file: {error}; compile again") from error


def section(
    title: str,
    about: str,
    gained: Sequence[tuple[str, int]],
    blocks: Mapping[str, str],
    text: str,
    *,
    is_open: bool,
) -> dict[str, Any]:
    """What a page of `show.html` says after a pass, or of a graph."""
    pictures = [{"title": name, "picture": picture} for name, picture in blocks.items()]
    return {"title": title, "about": about, "gained": gained, "blocks": pictures, "text": text, "open": is_open}
