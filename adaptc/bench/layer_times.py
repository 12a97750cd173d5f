"""Where the time of a step goes, layer by layer, and what gates skip by budget: `adaptc report --measure`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.report.places import AFTER, BEFORE, KINDS, place_of
from adaptc.report.record import LayerTimes, MachineRecord, Record, SkipColumn, SkipMap
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import tokenizer_of
from adaptc.runtime.model.budget import DENSE, threshold_of
from adaptc.runtime.progress import Progress, counted
from adaptc.sources.calibration_text import OWN

CONTEXT, STEPS, WARM = 64, 64, 4
"""Tokens in the cache; steps that are timed; steps before them."""

BUDGETS = tuple(round(1 - 0.1 * n, 1) for n in range(11))
TOKENS = 192
"""Tokens of adaptc's calibration text that go one by one through a graph with gates, under each of `BUDGETS`."""


def measured(bundle: Bundle, record: Record, threads: int | None, progress: Progress) -> Record:
    """A record with the times of layers, and what gates skip, as they are on this machine.

    Args:
        bundle: An opened bundle for ONNX Runtime that writes tokens.
        record: What is known of it.
        threads: Threads of the engine; None for the physical cores.
        progress: Told of graphs and steps.

    Raises:
        RequestError: the bundle is for another engine, or writes no tokens.
    """
    manifest = bundle.manifest
    forms = manifest.forms
    names = [name for name, graph in manifest.graphs.items() if graph.decoder is not None and name not in forms]
    if manifest.target.backend != "onnxruntime" or not names:
        raise RequestError(f"{bundle.path}: layers are timed of models that write tokens by onnxruntime")
    times, maps = dict(record.layer_times), dict(record.skip_maps)
    for name in names:
        progress.stage(f"time of layers of {name}")
        times[name] = layer_times(bundle, name, threads, progress)
        if name in manifest.gates and name == manifest.reader and (tokenizer := tokenizer_of(bundle)) is not None:
            progress.stage(f"skips of {name}")
            ids = np.array(tokenizer.encode(OWN.read_text("utf-8")), np.int64)
            maps[name] = skip_map(bundle, name, ids, threads, progress)
    return replace(record, layer_times=times, skip_maps=maps)


def layer_times(bundle: Bundle, name: str, threads: int | None, progress: Progress) -> LayerTimes:
    """Seconds of each layer of a graph in a step of one sequence, every block run, by the engine's own profile."""
    graph = bundle.manifest.graphs[name]
    spec = graph.decoder
    assert spec is not None
    with tempfile.TemporaryDirectory(prefix="adaptc-layers-") as folder:
        engine = OrtEngine(bundle.onnx(graph.file), threads, profile=Path(folder) / "steps")
        decoder = HostDecoder(engine, spec, 1, CONTEXT, bundle.manifest.gates.get(name))
        count = min(STEPS + WARM, spec.max_tokens - 2)
        context = max(1, min(CONTEXT, spec.max_tokens - count - 1))
        decoder.prefill(0, decoder.blank(context), DENSE)
        states = decoder.blank(count)
        tokens = [place * 97 % spec.vocab_size for place in range(count)] if states.ndim == 1 else states
        for step in counted(range(count), progress):
            decoder.decode(tokens[step : step + 1])
        decoder.close()
        [trace] = Path(folder).glob("steps*.json")
        steps = max(1, count - WARM)
        parts = _parts(json.loads(trace.read_text(encoding="utf-8")), steps)
    machine = replace(MachineRecord.here(), threads=threads or physical_cores())
    return LayerTimes(name, parts, context, steps, machine)


def _parts(events: list[Mapping[str, Any]], steps: int) -> tuple[tuple[str, dict[str, float]], ...]:
    """Mean seconds of each part and kind over the last steps of a profile.

    A conditional's own time holds that of the nodes in it, which have events too: it does not count.
    """
    runs = sorted(float(each["ts"]) for each in events if each.get("name") == "model_run")
    since = runs[-steps] if len(runs) >= steps else 0.0
    sums: dict[str, dict[str, float]] = {}
    head = False  # what belongs to no layer stands before the first or after the last
    for each in sorted(events, key=lambda each: float(each.get("ts", 0))):
        name, operator = str(each.get("name", "")), each.get("args", {}).get("op_name")
        if name == "model_run":
            head = False
        if not name.endswith("_kernel_time") or float(each["ts"]) < since or operator == "If":
            continue
        # Nodes are named after their modules; what the engine fused keeps the name of one of them.
        part, kind = place_of(name.removesuffix("_kernel_time"), head=head)
        head = head or part != BEFORE
        kinds = sums.setdefault(part, {})
        kinds[kind] = kinds.get(kind, 0.0) + float(each["dur"]) * 1e-6 / steps
    layers = sorted((part for part in sums if part not in (BEFORE, AFTER)), key=lambda part: int(part.split()[-1]))
    several = len({part.rpartition(" ")[0] for part in layers}) > 1
    order = [part for part in (BEFORE, *layers, AFTER) if part in sums]
    return tuple(
        (
            part if several or part in (BEFORE, AFTER) else part.split()[-1],
            {kind: sums[part][kind] for kind in KINDS if kind in sums[part]},
        )
        for part in order
    )


def skip_map(bundle: Bundle, name: str, ids: npt.NDArray[np.int64], threads: int | None, progress: Progress) -> SkipMap:
    """Which blocks tokens of adaptc's calibration text, int64 [tokens], skip under each budget."""
    graph, gates = bundle.manifest.graphs[name], bundle.manifest.gates[name]
    spec = graph.decoder
    assert spec is not None
    ids = ids[: min(TOKENS + gates.warmup, spec.max_tokens)]
    decoder = HostDecoder(OrtEngine(bundle.onnx(graph.file), threads), spec, 1, CONTEXT, gates)
    columns = []
    try:
        for budget in counted(BUDGETS, progress):
            decoder.prefill(0, ids[:1], threshold_of(gates, budget))
            ran = []
            for token in ids[1:].tolist():
                decoder.decode([token])
                if (now := decoder.ran(0)) is not None:
                    ran.append(now)
            skips = decoder.skips(ran)
            rates = (~skips.ran).mean(0) if skips is not None and len(skips.ran) else np.zeros(len(gates.layers))
            columns.append(SkipColumn(budget, tuple(round(float(rate), 4) for rate in rates)))
    finally:
        decoder.close()
    return SkipMap(tuple(columns), len(ran), "adaptc's calibration text")
