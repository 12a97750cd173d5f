"""What the page says of skip gates: what each costs and saves, what skipping costs, and which blocks are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.report.drawing.charts import Axis, curves
from adaptc.report.drawing.figures import Bar, BarPart, Chart, Table, table
from adaptc.report.drawing.units import percent, seconds
from adaptc.report.record import Record, SkipMap
from adaptc.runtime.bundle.gate_verdict import GateDecision, GateVerdict
from adaptc.runtime.bundle.manifest import Manifest
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import CHEAPEST, share_of

WORST = 2.0
"""Perplexities above so many times the dense one are not drawn: nobody would run them."""

POLICIES = {
    "learned": "learned gates",
    "cosine": "cosine",
    "static": "static",
    "random": "random",
    "random+": "random, cheap paths",
    "layers": "whole layers",
}


@dataclass(frozen=True, slots=True)
class GatesView:
    """What became of a graph's gates.

    Attributes:
        graph: Its name.
        pays: Whether gates were kept.
        why: A sentence.
        chart: What each gate saves and costs, if they were judged one by one.
        rows: Steps of several rows, if they were timed.
    """

    graph: str
    pays: bool
    why: str
    chart: Chart | None
    rows: Table | None


@dataclass(frozen=True, slots=True)
class CurveView:
    """Curves with their names, for a legend, and what they show as a table."""

    title: str
    picture: str
    names: tuple[str, ...]
    table: Table
    note: str


@dataclass(frozen=True, slots=True)
class MapRow:
    """A layer of a skip map: for each column a share, or None where nothing can be skipped."""

    name: str
    cells: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class MapView:
    """A skip map."""

    title: str
    over: str
    columns: tuple[str, ...]
    rows: tuple[MapRow, ...]
    note: str


def gates_views(manifest: Manifest) -> Iterator[GatesView]:
    """What was decided of every graph's gates."""
    for name, verdict in manifest.gate_verdicts.items():
        apart = name in manifest.gates and manifest.gates[name].batch == "rows"
        rows = _by_rows(verdict, apart) if verdict.rows else None
        each = _each(verdict) if verdict.each else None
        yield GatesView(name, verdict.pays, _sentence(verdict.why), each, rows)


def _by_rows(verdict: GateVerdict, apart: bool) -> Table:
    """What steps of several sequences take; the ratio is of how the bundle decides."""

    def shown(time: float) -> str:
        return seconds(time) if time else "–"

    rows = []
    for each in verdict.rows:
        used = each.apart if apart else each.adaptive
        ratio = f"{each.dense / used:.2f} ×" if used else "–"
        rows.append((str(each.rows), shown(each.apart), shown(each.adaptive), shown(each.dense), ratio))
    return table(("sequences", "each for itself", "together", "without gates", "ratio"), rows, words=0)


def outcomes(verdict: GateVerdict) -> str:
    """How many gates decide, follow another or are gone, as a sentence's part."""
    own = sum(each.leader == each.layer for each in verdict.each)
    gone = sum(each.leader is None for each in verdict.each)
    shared = len(verdict.each) - own - gone
    return f"{own} decide for themselves, {shared} follow a neighbour's gate, {gone} were removed"


def gate_figures(verdict: GateVerdict, gate: GateDecision) -> tuple[str, float, float]:
    """What became of a gate, in words; seconds a token that it saves, and that it costs."""
    times = verdict.payoff
    saves = gate.rate * times.gain
    if gate.leader is None:
        return "removed", saves, times.cost
    if gate.leader != gate.layer:
        return f"follows layer {gate.leader}", saves, times.branch
    return "decides", saves, times.cost


def gates_table(verdict: GateVerdict) -> Table:
    """A row for each gate that was judged by itself."""
    rows = []
    for gate in verdict.each:
        outcome, saves, costs = gate_figures(verdict, gate)
        rows.append(
            (str(gate.layer), outcome, percent(gate.rate), seconds(saves), seconds(costs), _signed(saves - costs))
        )
    return table(("layer", "outcome", "skips", "saves a token", "costs a token", "together"), rows, words=2)


def _each(verdict: GateVerdict) -> Chart:
    figures = [(gate, *gate_figures(verdict, gate)) for gate in verdict.each]
    most = max((max(saves, costs) for _, _, saves, costs in figures), default=0) or 1
    bars = []
    for gate, outcome, saves, costs in figures:
        parts = (BarPart("cost", 100 * costs / most), BarPart("won", 100 * max(0.0, saves - costs) / most))
        said = f"{outcome}; skips {percent(gate.rate)}, saves {seconds(saves)}, costs {seconds(costs)} a token"
        mark = "" if gate.leader == gate.layer else "removed, " if gate.leader is None else f"→ {gate.leader}, "
        bars.append(Bar(str(gate.layer), tuple(p for p in parts if p.percent), f"{mark}{_signed(saves - costs)}", said))
    note = (
        f"{_sentence(outcomes(verdict))} Of what a gate's skips save, its own cost (orange) is lost; green is what is "
        "won. At the smallest budget, on calibration text."
    )
    kinds = ("cost", "won")
    return Chart("What each gate saves", "layer", "won a token", kinds, tuple(bars), gates_table(verdict), note)


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{seconds(abs(value))}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def losses(gates: SkipGates) -> str:
    """What skipping costs what the model writes, at each share that was measured, as a sentence's part."""
    return ", ".join(f"{loss:.3g} at {percent(share)}" for share, loss in gates.written_loss if share > 0)


def _loss_views(manifest: Manifest) -> Iterator[CurveView]:
    """What skipping costs what the model writes."""
    for name, gates in manifest.gates.items():
        if not gates.written_loss or manifest.switch is not None:  # of routes no loss is known
            continue
        title = (
            "Loss against what is skipped" if len(manifest.gates) == 1 else f"Loss of {name} against what is skipped"
        )
        x = Axis.over("feed-forward blocks skipped, %", [100 * share for share, _ in gates.written_loss], low=0)
        y = Axis.over("nats a token", [loss for _, loss in gates.written_loss], low=0.0)
        shown = {"written answers": [(100 * share, loss) for share, loss in gates.written_loss]}
        budgets = [f"{1 - share / share_of(gates, CHEAPEST):.2f}" for share, _ in gates.written_loss]
        rows = [
            (budget, percent(share), f"{loss:.4f}")
            for budget, (share, loss) in zip(budgets, gates.written_loss, strict=True)
        ]
        yield CurveView(
            title,
            curves(title, x, y, shown),
            tuple(shown),
            table(("budget", "skipped", "KL(dense || gated), nats a token"), rows, words=0),
            "Of held-out answers that the model wrote, measured when the gates were trained, before weights were "
            "rounded. --max-loss picks the cheapest budget that keeps a loss.",
        )


def quality_views(manifest: Manifest, record: Record) -> Iterator[CurveView]:
    """Quality, and speed, against the share of blocks that is skipped."""
    yield from _loss_views(manifest)
    sweep: Mapping[str, Any] | None = record.added.get("sweep")
    if sweep is not None:
        yield from _sweep_views(sweep)
        return
    for name, points in record.trained.items():
        if name in manifest.gates and len(points) > 1:
            x = Axis.over("feed-forward blocks skipped, %", [100 * share for share, _ in points], low=0)
            y = Axis.over("perplexity ÷ dense", [ratio for _, ratio in points], low=1.0)
            shown = {"learned gates": [(100 * share, ratio) for share, ratio in points]}
            rows = [(percent(share), f"{ratio:.3f}") for share, ratio in points]
            yield CurveView(
                "Quality against what is skipped",
                curves("Quality against what is skipped", x, y, shown),
                tuple(shown),
                table(("skipped", "perplexity ÷ dense"), rows, words=0),
                "Measured when the gates were trained, on held-out text, before weights were rounded.",
            )


def _sweep_views(sweep: Mapping[str, Any]) -> Iterator[CurveView]:
    by_name: dict[str, list[tuple[float, float]]] = {}
    for policy, rows in sweep["policies"].items():
        points = sorted((100 * float(row["ffn_skipped"]), float(row["ratio"])) for row in rows)
        by_name[POLICIES.get(policy, policy)] = [(0.0, 1.0), *points]
    drawn = {name: points for name, points in by_name.items() if any(x > 0 and y <= WORST for x, y in points)}
    ratios = [y for points in drawn.values() for _, y in points if y <= WORST]
    x = Axis.over("feed-forward blocks skipped, %", [x for points in by_name.values() for x, _ in points], low=0)
    cells = [(name, f"{x:.1f} %", f"{y:.3f}") for name, points in by_name.items() for x, y in points[1:]]
    yield CurveView(
        "Quality against what is skipped",
        curves("Quality against what is skipped", x, Axis.over("perplexity ÷ dense", ratios, low=1.0), drawn),
        tuple(drawn),
        table(("policy", "skipped", "perplexity ÷ dense"), cells),
        f"{sweep['tokens']} tokens of {sweep['text']}, dense perplexity {sweep['dense_perplexity']:.2f}; "
        f"{sweep['method']}.",
    )
    speed = sweep.get("speed")
    if speed is not None and speed["rows"]:
        rows = speed["rows"]
        measured = [(100 * float(row["ffn_skipped"]), float(row["ratio"])) for row in rows]
        ceiling = [(100 * float(row["ffn_skipped"]), float(row["ceiling"])) for row in rows]
        shown = {"measured": measured, "ceiling by bytes": ceiling}
        both = [y for _, y in (*measured, *ceiling)]
        y = Axis.over("speed ÷ dense", both, low=min(1.0, *both))
        yield CurveView(
            "Speed against what is skipped",
            curves("Speed against what is skipped", x, y, shown),
            tuple(shown),
            table(
                ("skipped", "tokens a second", "speed ÷ dense", "ceiling by bytes"),
                [
                    (f"{a:.1f} %", f"{row['tokens_per_second']:.1f}", f"{b:.3f}", f"{row['ceiling']:.3f}")
                    for (a, b), row in zip(measured, rows, strict=True)
                ],
                words=0,
            ),
            f"Batch 1, {speed['threads']} threads; dense {speed['dense_tokens_per_second']:.1f} tokens a second.",
        )


def map_views(manifest: Manifest, record: Record) -> Iterator[MapView]:
    """For each layer and budget the share of tokens that skip the layer's block."""
    for name, gates in manifest.gates.items():
        if (found := record.skip_maps.get(name)) is not None:
            yield _map(found, gates.layers, gates.blocks)
        elif (verdict := manifest.gate_verdicts.get(name)) is not None and verdict.each:
            rates = {each.layer: each.rate for each in verdict.each if each.leader is not None}
            rows = tuple(MapRow(str(layer), (rates.get(layer),)) for layer in range(gates.blocks))
            note = "Percent of tokens that skip a layer's feed-forward block at the smallest budget; a dot has no gate."
            yield MapView(f"Skip map of {name}", "budget", ("smallest",), rows, note)


def _map(found: SkipMap, layers: Sequence[int], blocks: int) -> MapView:
    places = {layer: place for place, layer in enumerate(layers)}
    rows = tuple(
        MapRow(str(layer), tuple(column.rates[places[layer]] if layer in places else None for column in found.columns))
        for layer in range(blocks)
    )
    note = (
        "Percent of tokens that skip a layer's feed-forward block, by budget (0 is cheapest); a dot has no gate. "
        f"{found.tokens} tokens of {found.text}."
    )
    return MapView("Skip map", "budget", tuple(f"{column.budget:g}" for column in found.columns), rows, note)
