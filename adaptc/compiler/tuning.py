"""Does it pay? What a conditional costs and what a skipped block saves, on the machine that compiles.

Everything is decided on the graph whose gates are Skip nodes. What is timed is derived from it: the graph with all its
gates, with some grouped or taken out, or with none, each in the form that `branch` gives it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from adaptc.compiler import stage_names
from adaptc.compiler.tuning_each import Ids, decide, remeasured, stepwise, with_fewer_gates
from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import EMPTY, Program
from adaptc.machine.turns import agree, in_turns, in_turns_until, paired
from adaptc.passes.skip_ffn.branch import emitted
from adaptc.passes.skip_ffn.skips import grouped, run_always, skips
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.gate_verdict import GateVerdict, Payoff, RowTimes
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.progress import SILENT, Progress, counted

STEPS = 4
"""Decode steps that are timed of each kind in a turn, after one that is not: it finds another graph's weights in the
processor's cache."""

TURNS = 16
"""Turns of a round in which each kind is timed once; one more before them warms up."""

MOST_TURNS = 96
"""A verdict that is still not clear after so many turns is close: then gates that pay gain as little as others lose."""

TURNS_BY_ROWS = 8
"""Turns for each number of rows that a step may have."""

TOKENS = 224
"""Tokens of the calibration text on which gates are judged one by one."""

WORTH = 0.97
"""What takes at most this share of another's time is quicker: what is saved must be more than what timing can tell
apart."""

OPEN: Mapping[str, tuple[str, ...]] = {"auto": ("rows", "any"), "off": ()}
"""What is timed for batch policies that are no form of a graph."""

MUCH = 0.9
"""What takes at most this share of another's time is so much quicker that rows do not decide apart for it: where the
weights of an engine happen to lie in memory is worth nearly as much (docs/results/batched-gates.md)."""

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
        times = payoff(graph, decoder, gates, None, progress)
        verdict = GateVerdict(times, *times.verdict(gates))
        if verdict.pays and len(text := ids.get(name, NO_IDS)[: min(TOKENS, decoder.max_tokens)]) > gates.warmup + 1:
            graph, gates, verdict = _one_by_one(graph, decoder, gates, verdict, text, progress)
        if verdict.pays:
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
    return graph, with_fewer_gates(gates, table), replace(verdict, each=each)


def _by_rows(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, verdict: GateVerdict, batch: int, progress: Progress
) -> tuple[SkipGates, GateVerdict]:
    """Choose how the rows of a step decide, if that is open, and up to how many of them skip blocks.

    Rows that decide together go skipping where that is quicker than running every block. Rows that decide apart do so
    unless it is much slower, as a row's answer then does not depend on how many there are.
    """
    policies = OPEN.get(gates.batch, (gates.batch,))
    sizes = sorted({*(2**n for n in range(11) if 2**n < batch), batch})
    times: list[RowTimes] = []
    if policies and (batch > 1 or len(policies) > 1):
        progress.stage(stage_names.ROWS)
        for rows, seconds in _seconds_by_rows(graph, decoder, gates, policies, sizes, progress):
            apart, together = seconds.get("rows", 0.0), seconds.get("group", seconds.get("any", 0.0))
            times.append(RowTimes(rows, together, seconds["dense"], apart))
            if rows > 1 and not apart and together > WORTH * seconds["dense"]:
                break
    if gates.batch == "auto":
        last = times[-1]
        quicker = last.adaptive < (MUCH if batch > 1 else WORTH) * last.apart  # who is alone depends on nobody
        gates = replace(gates, batch="any" if quicker else "rows")
    return replace(gates, rows=_most(gates, times)), replace(verdict, rows=tuple(times))


def _most(gates: SkipGates, times: Sequence[RowTimes]) -> int:
    """Up to how many rows of a step skip blocks; of rows that decide apart any number, unless one was much slower."""
    apart = gates.batch == "rows"
    several = [each for each in times if each.rows > 1]
    if not several:
        return gates.rows
    most = 1
    for each in several:
        if (MUCH * each.apart if apart else each.adaptive / WORTH) > each.dense:
            return most
        most = each.rows
    return gates.rows if apart else most


def _seconds_by_rows(
    graph: OnnxGraph,
    decoder: DecoderSpec,
    gates: SkipGates,
    policies: Sequence[str],
    sizes: Sequence[int],
    progress: Progress,
) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Time steps of each number of rows, at half the budget in the form of each policy, and without gates."""
    level = gates.thresholds[len(gates.thresholds) // 2][1]
    dense = run_always(graph, range(len(skips(graph.model.graph))))
    with ExitStack() as stack:

        def decoder_of(form: OnnxGraph, policy: str) -> HostDecoder:
            own = replace(gates, batch=policy, warmup=0)
            [opened] = stack.enter_context(running({"gated": form}, decoder, own, sizes[-1]))
            return opened

        forms = {policy: (decoder_of(graph, policy), level) for policy in policies}
        forms["dense"] = decoder_of(dense, "off"), DENSE
        for rows in counted(sizes, progress):
            kinds = {name: _timed(opened, value, rows) for name, (opened, value) in forms.items()}
            yield rows, paired(in_turns(kinds, TURNS_BY_ROWS), "dense")


def payoff(
    graph: OnnxGraph,
    decoder: DecoderSpec,
    gates: SkipGates,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Payoff:
    """Time a gated graph and its dense twin; some seconds, and several times as many if the verdict is close.

    Args:
        graph: Before `branch`, with at least one gate.
        decoder: What the graph expects.
        gates: The graph's.
        threads: Threads of the engine; None takes the physical cores, as when it runs.
        progress: Told of each turn.
    """
    count = len(skips(graph.model.graph))
    spec = SkipGates("", tuple(range(count)), count, 0, gates.batch, ())
    graphs = {"gated": graph, "shared": grouped(graph, [0] * count), "dense": run_always(graph, range(count))}
    with running(graphs, decoder, spec, threads=threads) as [gated, shared, dense]:
        kinds = {
            "dense": _timed(dense, DENSE),
            "run": _timed(gated, DENSE),
            "shared": _timed(shared, DENSE),
            "skipped": _timed(gated, np.inf),
        }
        turns = in_turns_until(partial(_clear, gates.most), kinds, TURNS, MOST_TURNS, progress)
    seconds = paired(turns, "dense")
    return Payoff(seconds["dense"], seconds["run"], seconds["skipped"], count, seconds["shared"])


@contextmanager
def running(
    graphs: Mapping[str, OnnxGraph],
    decoder: DecoderSpec,
    gates: SkipGates,
    rows: int = 1,
    threads: int | None = None,
    adapters: tuple[str, ...] = (),
) -> Iterator[list[HostDecoder]]:
    """Decoders of graphs before `branch`, open as long as the context; `gates` go to those graphs that have any."""
    with tempfile.TemporaryDirectory(prefix="adaptc-pays-") as folder:
        forms = {name: emitted(graph, gates.batch) for name, graph in graphs.items()}
        for name, content in write_graphs(forms, Path(folder), "weights.data").items():
            (Path(folder) / f"{name}.onnx").write_bytes(content)
        decoders: list[HostDecoder] = []
        try:
            for name, graph in graphs.items():
                engine = OrtEngine(Path(folder) / f"{name}.onnx", threads)
                own_gates = gates if skips(graph.model.graph) else None
                sizes = rows, min(CHUNK, decoder.max_tokens)
                decoders.append(HostDecoder(engine, decoder, *sizes, own_gates, adapters=adapters))
            yield decoders
        finally:
            for running_decoder in decoders:
                running_decoder.close()


def _clear(most: float, turns: Mapping[str, Sequence[Sequence[float]]]) -> bool:
    """Whether turns agree on gates that skip their blocks for a share `most` of tokens: they pay, or they do not."""
    dense, run, skipped = (np.array([min(steps) for steps in turns[kind]]) for kind in ("dense", "run", "skipped"))
    return agree((most * (run - skipped) > run - dense).tolist())


def _timed(decoder: HostDecoder, threshold: float, rows: int = 1) -> Callable[[], list[float]]:
    """A function that times a turn's steps, after one that is not counted.

    Every turn begins after the same context. It is read once: reading takes longer than a turn's steps, and would put
    what is compared so much further apart.
    """
    steps = 1 + STEPS
    context = decoder.blank(max(1, min(CONTEXT, decoder.spec.max_tokens - steps)))
    states = decoder.blank(rows * steps)
    # Rows of different tokens, so that they want different blocks; the upper part of a model reads states instead.
    tokens = (
        [int(place * 97 % decoder.spec.vocab_size) for place in range(rows * steps)] if states.ndim == 1 else states
    )
    decoder.prefill(0, context, threshold)

    def run() -> list[float]:
        decoder.prefill(0, context[:1], threshold)  # as it was; several functions may share a decoder
        decoder.set_length(0, len(context))
        for row in range(1, rows):
            decoder.move(0, row)
        marks = []
        for step in range(min(steps, decoder.spec.max_tokens - len(context))):
            began = perf_counter()
            decoder.decode(tokens[step * rows : (step + 1) * rows])
            marks.append(perf_counter() - began)
        return marks[1:] or marks

    return run
