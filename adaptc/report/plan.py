"""The plan of a bundle as a picture: graphs in the order in which they run, and what decides between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adaptc.report.drawing.layout import Bend, Node, place
from adaptc.report.drawing.shapes import Box, arrow, hexagon, picture, rectangle, shortened, text
from adaptc.report.drawing.units import megabytes, percent
from adaptc.runtime.bundle.manifest import Manifest, ModalSpec
from adaptc.runtime.bundle.plan import Run, Switch

WIDTH, NARROW, HEAD, LINE, PAD = 186.0, 150.0, 18.0, 15.0, 9.0
"""Width of a box, and where more than `MANY` stand side by side; heights of its title and of a line in it; the space
around them, in pixels."""

MANY = 4

STEP, GAP, MARGIN = 34.0, 16.0, 4.0
"""Between two rows, where arrows run; between two boxes of a row; around the picture."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A box of the picture.

    Attributes:
        title: Its first line.
        lines: What stands below.
        style: "ends" for what goes in and comes out, "graph", or "decides".
    """

    title: str
    lines: tuple[str, ...] = ()
    style: str = "graph"

    @property
    def height(self) -> float:
        """In pixels."""
        return 2 * PAD + HEAD + LINE * len(self.lines)


@dataclass(frozen=True, slots=True)
class Flow:
    """Boxes by name, and the arrows between them, in order."""

    stops: dict[str, Stop]
    arrows: list[tuple[str, str]]

    def join(self, befores: list[str], name: str, stop: Stop) -> list[str]:
        """Add a box after others; the names that the next one comes after."""
        self.stops[name] = stop
        self.arrows.extend((before, name) for before in befores)
        return [name]


def plan_of(manifest: Manifest, bytes_of: Mapping[str, int]) -> Flow:
    """The boxes of a bundle's plan.

    Args:
        manifest: The bundle's.
        bytes_of: By graph, weight bytes that a step reads; graphs that are left out have no figure.
    """
    flow = Flow({}, [])
    modal = {name for model in manifest.modal.values() for name in _modal_graphs(model)}
    last = flow.join([], "in", Stop(_fed(manifest), (), "ends")) if not _parted(manifest) else []
    for model in manifest.modal:
        last = _modal(flow, manifest, model, last, bytes_of)
    for step in manifest.plan:
        if set(step.graphs) <= modal:
            continue
        if isinstance(step, Switch):
            last = _switch(flow, manifest, step, last, bytes_of)
        else:
            last = _run(flow, manifest, step, last, bytes_of)
    flow.join(last, "out", Stop(_given(manifest), (), "ends"))
    return flow


def plan_picture(manifest: Manifest, bytes_of: Mapping[str, int]) -> str:
    """The plan as SVG."""
    flow = plan_of(manifest, bytes_of)
    side_by_side = max(len({end for start, end in flow.arrows if start == name}) for name in flow.stops)
    box = NARROW if side_by_side > MANY else WIDTH
    layout = place(flow.stops, flow.arrows, None, box, 10.0, GAP)
    edges: dict[Node, tuple[float, float]] = {}
    boxes: list[str] = []
    y = MARGIN
    for row in layout.rows:
        height = max(flow.stops[node].height for node in row if not isinstance(node, Bend))
        for node in row:
            own = height if isinstance(node, Bend) else flow.stops[node].height
            edges[node] = y + (height - own) / 2, y + (height + own) / 2
            if not isinstance(node, Bend):
                x = MARGIN + layout.middles[node] - box / 2
                boxes += _box(flow.stops[node], Box(x, edges[node][0], box, own))
        y += height + STEP
    arrows = [arrow([(MARGIN + layout.middles[node], *edges[node]) for node in nodes]) for nodes in layout.arrows]
    said = "; ".join(_said(flow, name) for name in flow.stops if any(start == name for start, _ in flow.arrows))
    width = layout.width + 2 * MARGIN
    return picture(
        width,
        y - STEP + MARGIN,
        "How the bundle runs",
        said,
        [*arrows, *boxes],
        least=min(width, max(340, 0.75 * width)),
    )


def _said(flow: Flow, name: str) -> str:
    after = " or ".join(flow.stops[end].title for start, end in flow.arrows if start == name)
    about = f" ({', '.join(flow.stops[name].lines)})" if flow.stops[name].lines else ""
    return f"{flow.stops[name].title}{about}, then {after}"


def _box(stop: Stop, box: Box) -> Iterator[str]:
    yield hexagon(box, stop.style) if stop.style == "decides" else rectangle(box, stop.style)
    room = box.width - 2 * (14 if stop.style == "decides" else PAD)
    y = box.y + PAD + 13
    yield text(box.middle, y, shortened(stop.title, 13.5, room), "title", anchor="middle", size=13)
    for index, each in enumerate(stop.lines, 1):
        yield text(box.middle, y + index * LINE + 2, shortened(each, 11.5, room), "quiet", anchor="middle", size=11.5)


def _fed(manifest: Manifest) -> str:
    return "token ids" if manifest.graphs[manifest.reader].decoder is not None else "inputs"


def _given(manifest: Manifest) -> str:
    writes = any(graph.decoder is not None for graph in manifest.graphs.values())
    return "logits of the next token" if writes else "outputs"


def _parted(manifest: Manifest) -> bool:
    """Whether what goes in is named by modality."""
    return bool(manifest.modal)


def _about(manifest: Manifest, name: str, bytes_of: Mapping[str, int]) -> tuple[str, ...]:
    """What there is to say of a graph: its layers and the bytes of a step, or its nodes."""
    graph = manifest.graphs[name]
    found = []
    if graph.decoder is not None and graph.decoder.kv:
        found.append(f"{len(graph.decoder.kv)} layers")
    if name in bytes_of:
        found.append(f"{megabytes(bytes_of[name])} {'a token' if graph.decoder is not None else 'of weights'}")
    return tuple(found) or (f"{graph.nodes} nodes",)


def _run(flow: Flow, manifest: Manifest, step: Run, last: list[str], bytes_of: Mapping[str, int]) -> list[str]:
    name = step.graph
    if name not in manifest.gates:
        return flow.join(last, name, Stop(name, _about(manifest, name, bytes_of)))
    return _gated(flow, manifest, name, name, last, bytes_of)


def _gated(
    flow: Flow, manifest: Manifest, name: str, title: str, last: list[str], bytes_of: Mapping[str, int]
) -> list[str]:
    """A graph with gates: the twin without them, and in each layer with a gate the block or what stands in for it."""
    gates = manifest.gates[name]
    ends: list[str] = []
    if gates.dense:
        last = flow.join(last, f"{name}?", Stop("budget below 1?", ("by request",), "decides"))
        ends = flow.join(last, gates.dense, Stop("dense twin", ("no gates: every block runs",)))
    last = flow.join(last, name, Stop(title, _about(manifest, name, bytes_of)))
    own = {each.leader for v in manifest.gate_verdicts.values() for each in v.each if each.leader is not None}
    count = len(own) if own else len(gates.layers)
    most = percent(gates.thresholds[-1][0]) if gates.thresholds else "0 %"
    about = (f"in {len(gates.layers)} of {gates.blocks} layers", f"skip up to {most} of blocks")
    gate = flow.join(last, f"{name} gates", Stop(f"{count} {gates.policy} gates", about, "decides"))
    runs = flow.join(gate, f"{name} block", Stop("feed-forward block", ("where the gate says so",)))
    cheap = flow.join(gate, f"{name} skip", Stop("what stands in for it", ("cheap path, or nothing",)))
    return [*runs, *cheap, *ends]


def _switch(flow: Flow, manifest: Manifest, step: Switch, last: list[str], bytes_of: Mapping[str, int]) -> list[str]:
    how = "by the prompt's states" if step.router is not None else "named by the request"
    name = step.gate if "router" in step.gate else f"router {step.gate}"
    last = flow.join(last, f"switch {step.gate}", Stop(name, (how,), "decides"))
    ends: list[str] = []
    for each, graph in step.routes.items():
        if graph in flow.stops:  # two routes over one graph
            flow.arrows.append((last[0], graph))
            continue
        if graph in manifest.gates:
            ends += _gated(flow, manifest, graph, f"route {each}", last, bytes_of)
        else:
            ends += flow.join(last, graph, Stop(f"route {each}", _about(manifest, graph, bytes_of)))
    return ends


def _modal_graphs(model: ModalSpec) -> set[str]:
    encoders = {each.encoder for each in model.modalities.values() if each.encoder is not None}
    return encoders | {subset.graph for subset in model.subsets}


def _modal(flow: Flow, manifest: Manifest, model: str, last: list[str], bytes_of: Mapping[str, int]) -> list[str]:
    """A model with modalities: an encoder for each, and a graph for each subset of them."""
    spec = manifest.modal[model]
    ends: dict[str, str] = {}
    for name, modality in spec.modalities.items():
        [ends[name]] = flow.join([], f"in {name}", Stop(name, (), "ends"))
        if modality.encoder is not None:
            about = _about(manifest, modality.encoder, bytes_of)
            [ends[name]] = flow.join([ends[name]], modality.encoder, Stop(f"encoder of {name}", about))
    gate = flow.join(
        [*last, *ends.values()], f"{model} subsets", Stop("modalities?", ("by request or by gate",), "decides")
    )
    made: list[str] = []
    for subset in spec.subsets:
        title = " + ".join(subset.modalities)
        if subset.graph in flow.stops:
            continue
        made += flow.join(gate, subset.graph, Stop(title, _about(manifest, subset.graph, bytes_of)))
    return made
