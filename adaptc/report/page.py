"""`report.html`: one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from adaptc.report.drawing.figures import Chart, Table, chart, table
from adaptc.report.drawing.units import megabytes, percent, seconds, three
from adaptc.report.gates import gates_views, map_views, quality_views
from adaptc.report.places import KINDS
from adaptc.report.plan import plan_picture
from adaptc.report.record import MachineRecord, PartRecord, Record
from adaptc.report.routes import router_views
from adaptc.report.template import render
from adaptc.runtime.bundle.manifest import DecoderSpec, Manifest
from adaptc.runtime.model.decoder import cache_dtype
from adaptc.runtime.multimodal.profile import ModalProfile


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at the top of the page."""

    value: str
    name: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a chart, a table and a remark, each if it is there."""

    title: str
    chart: Chart | None = None
    table: Table | None = None
    note: str = ""


def report_html(manifest: Manifest, record: Record, profile: ModalProfile | None = None) -> str:
    """The page.

    Args:
        manifest: The bundle's; of a bundle that is being written, without its files.
        record: What is known beyond the manifest.
        profile: Of a bundle with modalities that was profiled.
    """
    sums = {name: sum(sum(part.bytes.values()) for part in parts) for name, parts in record.parts.items()}
    quality = [*quality_views(manifest, record), *router_views(manifest)]
    context: dict[str, Any] = {
        "what": "adaptc report",
        "title": record.title or "-".join(manifest.models),
        "lead": _lead(manifest, record),
        "tiles": list(_tiles(manifest)),
        "plan": plan_picture(manifest, sums),
        "reads": list(_reads(manifest, record, sums)),
        "times": list(_times(record)),
        "gates": list(gates_views(manifest)),
        "replaced": [
            {"graph": name, "file": each.file, "sha256": each.sha256[:16]}
            for name, each in manifest.replaced_gates.items()
        ],
        "quality": [
            {field: getattr(each, field) for field in ("title", "names", "table", "note")} | {"picture": each.picture}
            for each in quality
        ],
        "maps": list(map_views(manifest, record)),
        "tables": [*_routes(manifest), *_subsets(profile), *_added(record)],
        "models": list(_models(manifest)),
        "passes": _passes(manifest),
        "options": _options(manifest),
        "machine": list(_machine(manifest, record.machine)),
        "missing": list(_missing(manifest, record, profile)),
    }
    return render("page.html", context)


def _writes(manifest: Manifest) -> bool:
    return any(graph.decoder is not None for graph in manifest.graphs.values())


def _lead(manifest: Manifest, record: Record) -> str:
    kinds = ", ".join(dict.fromkeys(model.architecture for model in manifest.models.values()))
    target = manifest.target
    length = f", {target.max_tokens} tokens, batch {target.batch}" if _writes(manifest) else ""
    when = f" on {record.machine.date}" if record.machine is not None else ""
    return (
        f"{kinds}, {target.weights} weights for {target.backend}{length}. Compiled by adaptc {manifest.adaptc}{when}."
    )


def _tiles(manifest: Manifest) -> Iterator[Tile]:
    if _writes(manifest):
        name = "of weights read for a token" + (", at most" if manifest.switch is not None else "")
        yield Tile(megabytes(manifest.bytes_per_token), name)
        yield Tile(megabytes(kv_bytes(manifest)), "of KV cache for a sequence")
    if manifest.switch is not None and not manifest.modal:
        yield Tile(str(len(manifest.switch.routes)), "routes")
    for gates in manifest.gates.values():
        most = gates.thresholds[-1][0] if gates.thresholds else 0.0
        yield Tile(percent(most), "of feed-forward blocks skipped, at most")
        yield Tile(f"{len(gates.layers)} / {gates.blocks}", "blocks can be skipped")
    for modal in manifest.modal.values():
        yield Tile(str(len(modal.subsets)), f"subsets of {len(modal.modalities)} modalities")
    graphs = manifest.graphs.keys() - manifest.verifying.keys()
    if len(graphs) > 1:
        yield Tile(str(len(graphs)), "graphs")


def kv_bytes(manifest: Manifest) -> int:
    """Bytes of the KV caches of a sequence, of all graphs that have one of their own."""
    forms = manifest.forms  # they share their graphs' caches
    graphs = [graph for name, graph in manifest.graphs.items() if name not in forms]
    return sum(_cache_bytes(graph.decoder, cache_dtype(graph.inputs)) for graph in graphs if graph.decoder is not None)


def _cache_bytes(decoder: DecoderSpec, dtype: str) -> int:
    return decoder.cache_entries() * np.dtype(dtype).itemsize


def _reads(manifest: Manifest, record: Record, sums: Mapping[str, int]) -> Iterator[Chart]:
    """A chart of layers for each graph that writes, and one of graphs for all others."""
    layered = {name: parts for name, parts in record.parts.items() if len(parts) > 2}
    for name, parts in layered.items():
        of = "" if len(layered) == 1 else f" of {name}"
        yield chart(
            f"What a step{of} reads, by layer",
            _alike(parts),
            megabytes,
            of="layer",
            unit="weights",
            order=KINDS,
            note=f"Weights of a decode step when every block runs: {megabytes(sums[name])} together.",
        )
    rest = [(name, {"other": float(size)}) for name, size in sums.items() if name not in layered and size]
    if len(rest) > 1:
        yield chart("What graphs read", rest, megabytes, of="graph", unit="weights", order=KINDS)


def _alike(parts: Sequence[PartRecord]) -> list[tuple[str, dict[str, float]]]:
    """A row for each part; one for all of a run of layers that read the same, with their sum."""
    rows: list[tuple[str, dict[str, float]]] = []
    for bytes_, run in groupby(parts, lambda part: part.bytes):
        names = [part.name for part in run]
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} alike"
        rows.append((name, {kind: float(size * len(names)) for kind, size in bytes_.items()}))
    return rows


def _times(record: Record) -> Iterator[Chart]:
    for name, times in record.layer_times.items():
        of = "" if len(record.layer_times) == 1 else f" of {name}"
        whole = sum(sum(kinds.values()) for _, kinds in times.parts)
        machine = times.machine
        yield chart(
            f"Where the time of a step{of} goes, by layer",
            times.parts,
            seconds,
            of="layer",
            unit="a step",
            order=KINDS,
            note=f"{seconds(whole)} in kernels, mean of {times.steps} steps of one sequence, {times.context} tokens "
            f"in the cache, every block run; {machine.cpu}, {machine.threads} threads, {machine.date}.",
        )


def _routes(manifest: Manifest) -> Iterator[Section]:
    """What each route reads."""
    for costs in manifest.route_bytes.values() if not manifest.modal else ():
        rows = [(route, {"other": float(size)}) for route, size in costs.items()]
        router = manifest.switch.router if manifest.switch is not None else None
        withheld = router.withheld.items() if router is not None else ()
        note = " ".join(f"The router never takes {route}: {reason}." for route, reason in withheld)
        drawn = chart("Bytes of routes", rows, megabytes, of="route", unit="a token", order=KINDS, note=note)
        yield Section("Routes", drawn)


def _subsets(profile: ModalProfile | None) -> Iterator[Section]:
    if profile is None:
        return
    last = profile.batches[-1]
    heads = ("subset", "accuracy", "95 % interval", "one row", f"{last} rows")
    rows = [
        (
            " + ".join(each.modalities),
            f"{each.accuracy:.3f}",
            f"{each.low:.3f} to {each.high:.3f}",
            seconds(each.seconds[0]),
            seconds(each.seconds[-1]),
        )
        for each in profile.subsets
    ]
    bars = [(" + ".join(each.modalities), {"time": each.seconds[0]}) for each in profile.subsets]
    shown = chart("Time of subsets", bars, seconds, of="subset", unit="one row", order=("time",))
    note = f"{profile.rows} labelled rows; {profile.cpu}, {profile.threads} threads."
    yield Section("Subsets of modalities", shown, table(heads, rows), note)
    if profile.gate is not None:
        names = [" + ".join(each) for each in profile.gate.subsets]
        levels = [
            (f"{level.accuracy:.3f}", *(percent(share) for share in level.shares)) for level in profile.gate.levels
        ]
        note = f"Shares of rows by setting of the gate; its calibration error is {profile.gate.error:.3f}."
        yield Section("Modality gate", None, table(("accuracy", *names), levels, words=0), note)


def _added(record: Record) -> Iterator[Section]:
    """What other commands measured."""
    bench: Mapping[str, Any] | None = record.added.get("bench")
    if bench is not None:
        rows = [
            (
                name,
                f"{each['decode_tokens_per_second']:.1f}",
                f"{each['prefill_tokens_per_second']:.0f}",
                seconds(each["time_to_first_token_seconds"]),
                megabytes(each["peak_rss_bytes"]),
            )
            for name, each in bench["results"].items()
        ]
        bars = [(name, {"time": each["decode_tokens_per_second"]}) for name, each in bench["results"].items()]
        shown = chart("Speed", bars, three, of="engine", unit="tokens a second", order=("time",))
        heads = ("engine", "decode, tokens a second", "prompt, tokens a second", "first token", "memory")
        machine, settings = bench["machine"], bench["settings"]
        note = f"Medians; {machine['cpu']}, {settings['threads']} threads."
        yield Section("Speed", shown, table(heads, rows), note)
    quality: Mapping[str, Any] | None = record.added.get("quality")
    if quality is not None:
        names = list(
            dict.fromkeys(name for row in quality.values() for name, value in row.items() if _is_score(name, value))
        )
        scores = [
            (
                route or "bundle",
                megabytes(row["bytes_per_token"]) if row.get("bytes_per_token") else "",
                *(_score(row.get(name)) for name in names),
            )
            for route, row in quality.items()
        ]
        yield Section("Quality", None, table(("route", "bytes a token", *names), scores))
    measured: Mapping[str, Any] | None = record.added.get("eval")
    if measured is not None:
        shares = [(key.replace("_", " "), _plain(value)) for key, value in measured.items() if value]
        yield Section("Perplexity", None, table(("figure", "value"), shares))


def _is_score(name: str, value: Any) -> bool:
    """Whether `adaptc quality` says a figure of a bundle under this name."""
    return name == "perplexity" or (isinstance(value, dict) and "low" in value)


def _score(value: float | Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.3f}"
    shown = percent if all(each in (0, 1) for each in value["each"]) else three
    return f"{shown(value['value'])} ({shown(value['low'])} to {shown(value['high'])})"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _models(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for name, model in manifest.models.items():
        licence = f", {model.licence}" if model.licence else ""
        revision = f", revision {model.revision}" if model.revision else ""
        yield name, f"{model.source} ({model.architecture}{licence}{revision}), sha256 {model.sha256[:16]}"


def _passes(manifest: Manifest) -> Chart:
    rows = [
        (each.name if each.changed else f"{each.name} (nothing to do)", {"time": each.seconds})
        for each in manifest.passes
    ]
    return chart("Passes", rows, seconds, of="pass", unit="", order=("time",))


def _options(manifest: Manifest) -> Table:
    rows = [
        (each.name, ", ".join(f"{key}: {value}" for key, value in each.options.items()) or "none")
        for each in manifest.passes
    ]
    return table(("pass", "options"), rows, words=2)


def _machine(manifest: Manifest, machine: MachineRecord | None) -> Iterator[tuple[str, str]]:
    if machine is not None:
        yield "processor", f"{machine.cpu}, {machine.threads} cores"
        yield "instruction sets", ", ".join(machine.flags) or "none that matter"
        if machine.memory_bytes:
            yield "memory", megabytes(machine.memory_bytes)
        yield "system", f"{machine.system}, Python {machine.python}"
        yield "date", machine.date
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _missing(manifest: Manifest, record: Record, profile: ModalProfile | None) -> Iterator[tuple[str, str]]:
    """What nobody has measured, and the command that does."""
    on_cpu = manifest.target.backend == "onnxruntime"
    if _writes(manifest) and on_cpu and not record.layer_times:
        about = "time by layer, and which blocks are skipped" if manifest.gates else "time by layer"
        yield about, "adaptc report BUNDLE --measure"
    if manifest.gates and on_cpu and "sweep" not in record.added:
        yield (
            "quality and speed under budgets",
            ("adaptc eval BUNDLE --text FILE --sweep --json > sweep.json; adaptc report BUNDLE --with sweep.json"),
        )
    if manifest.switch is not None and "quality" not in record.added:
        yield (
            "quality of routes",
            ("adaptc quality BUNDLE --text FILE --json > quality.json; adaptc report BUNDLE --with quality.json"),
        )
    if manifest.modal and not _writes(manifest) and profile is None:
        yield "accuracy and time of subsets", "adaptc profile BUNDLE --data FILE"
    if _writes(manifest) and "bench" not in record.added:
        yield "speed", "adaptc bench BUNDLE --json > bench.json; adaptc report BUNDLE --with bench.json"
