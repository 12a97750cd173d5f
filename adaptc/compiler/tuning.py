"""Does it pay? What a conditional costs and what a skipped block saves, on the machine that compiles.

Everything is decided on the graph whose gates are Skip nodes. What is timed is derived from it: the graph with all its
gates, with some grouped or taken out, or with none, each in the form that `branch` gives it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from adaptc.compiler import stage_names
from adaptc.compiler.tuning_each import Ids, decide, remeasured, stepwise
from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import EMPTY, Program
from adaptc.machine.turns import in_turns
from adaptc.passes.skip_ffn.branch import branched
from adaptc.passes.skip_ffn.skips import grouped, run_always, skips
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.gate_verdict import GateVerdict, Payoff, RowTimes
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.progress import SILENT, Progress, counted

STEPS = 32
"""Decode steps that are timed of each kind, four in a turn, because a busy machine is busy for a while."""

TURNS = 8
"""Turns in which each kind is timed once; one more before them warms up."""

TURNS_BY_ROWS = 3
"""The same for each number of rows that a step may have."""

TOKENS = 224
"""Tokens of the calibration text on which gates are judged one by one."""

WORTH = 0.97
"""Several rows of a step go skipping only where that takes at most this share of the time: what is saved must be more
than what timing can tell apart."""

CHUNK = 64
NO_IDS: Ids = np.zeros(0, np.int64)

CONTEXT = 64
"""Tokens in the cache while it is timed, or as many as leave room for the steps."""


def paying(
    program: Program, ids: Mapping[str, Ids] = EMPTY, batch: int = 1, progress: Progress = SILENT
) -> tuple[Program, dict[str, GateVerdict]]:
    """Measure the gates of every graph; group or take out those that do not pay.

    Args:
        program: After all passes but `branch`, which emits what is decided here.
        ids: By graph name, int64 [tokens] of the calibration text; without it gates are kept or removed together.
        batch: Most rows of a step.
        progress: Told of what is timed.

    Returns:
        The program; and by graph name the verdict on its gates.
    """
    verdicts: dict[str, GateVerdict] = {}
    for name, gates in program.gates.items():
        graph = program.graph(name, OnnxGraph)
        decoder = decoder_spec(graph, program.backbone(name))
        if decoder is None or not skips(graph.model.graph):
            continue
        times = payoff(graph, decoder, gates.batch, None, progress)
        verdict = GateVerdict(times, *times.verdict(gates))
        if verdict.pays and len(text := ids.get(name, NO_IDS)[: min(TOKENS, decoder.max_tokens)]) > gates.warmup + 1:
            graph, gates, verdict = _one_by_one(graph, decoder, gates, verdict, text, progress)
        if verdict.pays and batch > 1:
            gates, verdict = _by_rows(graph, decoder, gates, verdict, batch, progress)
        verdicts[name] = verdict
        kept = {**program.gates, name: gates}
        if not verdict.pays:
            del kept[name]
            graph = run_always(graph, range(times.gates))
        program = replace(program.with_graph(name, graph), gates=kept)
    return program, verdicts


def _one_by_one(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, verdict: GateVerdict, ids: Ids, progress: Progress
) -> tuple[OnnxGraph, SkipGates, GateVerdict]:
    """Keep, group or remove each gate; thresholds of what is left are measured again."""
    times = verdict.payoff
    with running({"gated": graph}, decoder, gates) as [gated]:
        progress.stage(stage_names.EACH_GATE)
        ran = stepwise(gated, ids, gates.thresholds[-1][1], progress)
    each = tuple(decide(gates.layers, ran, times.cost, times.branch, times.gain))
    if all(decided.leader == decided.layer for decided in each):
        return graph, gates, replace(verdict, each=each)
    kept = tuple(decided.layer for decided in each if decided.leader is not None)
    if not kept:
        return graph, gates, replace(verdict, pays=False, why=f"{verdict.why}; no gate does so by itself", each=each)
    places = {layer: place for place, layer in enumerate(gates.layers)}
    leaders = [places[decided.layer if decided.leader is None else decided.leader] for decided in each]
    removed = [place for place, decided in enumerate(each) if decided.leader is None]
    graph = run_always(grouped(graph, leaders), removed)
    gates = replace(gates, layers=kept)
    with running({"gated": graph}, decoder, gates) as [gated]:
        progress.stage(stage_names.THRESHOLDS)
        table = tuple(remeasured(gated, ids, gates.blocks, gates.thresholds, progress))
    if len(table) < 2:
        return graph, gates, replace(verdict, pays=False, why=f"{verdict.why}; what is left skips nothing", each=each)
    return graph, replace(gates, thresholds=table), replace(verdict, each=each)


def _by_rows(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, verdict: GateVerdict, batch: int, progress: Progress
) -> tuple[SkipGates, GateVerdict]:
    """Find up to how many rows of a step skipping is quicker than running every block of the same graph."""
    level = gates.thresholds[len(gates.thresholds) // 2][1]
    times: list[RowTimes] = []
    most = 1
    with running({"gated": graph}, decoder, replace(gates, warmup=0), batch) as [gated]:
        progress.stage(stage_names.ROWS)
        for rows in counted(sorted({*(2**n for n in range(1, 11) if 2**n < batch), batch}), progress):
            kinds = {value: _timed(gated, value, rows) for value in (level, DENSE)}
            seconds = {value: low_of(turns) for value, turns in in_turns(kinds, TURNS_BY_ROWS).items()}
            times.append(RowTimes(rows, seconds[level], seconds[DENSE]))
            if seconds[level] > WORTH * seconds[DENSE]:
                break
            most = rows
    return replace(gates, rows=most), replace(verdict, rows=tuple(times))


def payoff(
    graph: OnnxGraph,
    decoder: DecoderSpec,
    batch: str = "any",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Payoff:
    """Time a gated graph and its dense twin; some seconds.

    Args:
        graph: Before `branch`, with at least one gate.
        decoder: What the graph expects.
        batch: How the rows of a step decide together: see `SkipGates`.
        threads: Threads of the engine; None takes the physical cores, as when it runs.
        progress: Told of each turn.
    """
    count = len(skips(graph.model.graph))
    spec = SkipGates("", tuple(range(count)), count, 0, batch, ())
    graphs = {"gated": graph, "shared": grouped(graph, [0] * count), "dense": run_always(graph, range(count))}
    with running(graphs, decoder, spec, threads=threads) as [gated, shared, dense]:
        kinds = {
            "dense": _timed(dense, DENSE),
            "run": _timed(gated, DENSE),
            "shared": _timed(shared, DENSE),
            "skipped": _timed(gated, np.inf),
        }
        seconds = {name: low_of(turns) for name, turns in in_turns(kinds, TURNS, progress).items()}
    return Payoff(seconds["dense"], seconds["run"], seconds["skipped"], count, seconds["shared"])


@contextmanager
def running(
    graphs: Mapping[str, OnnxGraph], decoder: DecoderSpec, gates: SkipGates, rows: int = 1, threads: int | None = None
) -> Iterator[list[HostDecoder]]:
    """Decoders of graphs before `branch`, open as long as the context; `gates` go to those graphs that have any."""
    together = gates.batch == "group"
    with tempfile.TemporaryDirectory(prefix="adaptc-pays-") as folder:
        emitted = {name: branched(graph, together=together) for name, graph in graphs.items()}
        for name, content in write_graphs(emitted, Path(folder), "weights.data").items():
            (Path(folder) / f"{name}.onnx").write_bytes(content)
        decoders: list[HostDecoder] = []
        try:
            for name, graph in graphs.items():
                engine = OrtEngine(Path(folder) / f"{name}.onnx", threads)
                own_gates = gates if skips(graph.model.graph) else None
                decoders.append(HostDecoder(engine, decoder, rows, min(CHUNK, decoder.max_tokens), own_gates))
            yield decoders
        finally:
            for running_decoder in decoders:
                running_decoder.close()


def low_of(turns: Sequence[Sequence[float]]) -> float:
    """The lower fifth of the steps of all turns, in seconds: other work makes steps longer, never shorter."""
    return float(np.quantile(np.concatenate([np.array(steps) for steps in turns]), 0.2))


def _timed(decoder: HostDecoder, threshold: float, rows: int = 1) -> Callable[[], list[float]]:
    """A function that times a turn's steps, after one that is not counted."""
    steps = 1 + STEPS // TURNS
    context = decoder.blank(max(1, min(CONTEXT, decoder.spec.max_tokens - steps - 1)))
    states = decoder.blank(rows * steps)
    # Rows of different tokens, so that they want different blocks; the upper part of a model reads states instead.
    tokens = (
        [int(place * 97 % decoder.spec.vocab_size) for place in range(rows * steps)] if states.ndim == 1 else states
    )

    def run() -> list[float]:
        for row in range(rows):
            decoder.prefill(row, context, threshold)
        marks = []
        for step in range(min(steps, decoder.spec.max_tokens - len(context))):
            began = perf_counter()
            decoder.decode(tokens[step * rows : (step + 1) * rows])
            marks.append(perf_counter() - began)
        return marks[1:] or marks

    return run
