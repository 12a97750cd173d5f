"""Does it pay? What a conditional costs and what a skipped block saves, on the machine that compiles."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.compiler.tuning_each import Decided, Ids, decide, remeasured, stepwise
from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.graph import OnnxGraph, sizes
from adaptc.ir.program import EMPTY, Backbone, Program
from adaptc.passes.skip_ffn.conditionals import conditionals, grouped, run_always
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE

STEPS = 32
"""Decode steps timed of each kind: turns of four, as a busy machine is busy for a while."""

TURNS = 8
"""Of each kind, one after the other; one more before them warms up."""

TOKENS = 224
"""Tokens of the calibration text on which gates are judged one by one."""

WORTH = 0.97
"""Several rows of a step go skipping only where that takes at most this share of the time: what is saved must be more
than what timing can tell apart."""

CHUNK = 64
NO_IDS: Ids = np.zeros(0, np.int64)

CONTEXT = 64
"""Tokens in the cache while it is timed, or as many as leave room for the steps."""


@dataclass(frozen=True, slots=True)
class Payoff:
    """Times of a decode step, in seconds, batch 1: the 20th percentile, as other programs only ever slow a step.

    Attributes:
        dense: Of the same graph without gates.
        run: With gates, when every block runs.
        skipped: With gates, when every block with a gate is skipped.
        gates: Number of gates.
        shared: With all blocks under the first gate's decision, when every block runs; 0 if it was not timed.
    """

    dense: float
    run: float
    skipped: float
    gates: int
    shared: float = 0.0

    @property
    def branch(self) -> float:
        """Seconds of a conditional without a gate of its own; never more than one with it."""
        if self.gates < 2 or not self.shared:
            return self.cost
        return min(self.cost, max(0.0, self.shared - self.dense - self.cost) / (self.gates - 1))

    @property
    def cost(self) -> float:
        """Seconds a gate and its conditional take; 0 if it cannot be told from the noise."""
        return max(0.0, self.run - self.dense) / self.gates

    @property
    def gain(self) -> float:
        """Seconds that a skipped block saves, its gate's cost not counted."""
        return (self.run - self.skipped) / self.gates

    @property
    def break_even(self) -> float:
        """Share of tokens for which a gate must skip its block to pay for itself; above 1 it never does."""
        return self.cost / self.gain if self.gain > 0 else float("inf")

    def verdict(self, gates: SkipGates) -> tuple[bool, str]:
        """Whether these gates pay at their smallest budget, and a sentence that says why."""
        most = gates.thresholds[-1][0] * gates.blocks / len(gates.layers) if gates.thresholds else 0.0
        micro = f"a gate costs {self.cost * 1e6:.1f} µs a token, a skipped block saves {self.gain * 1e6:.1f} µs"
        if most > self.break_even:
            return True, f"{micro}: it pays above {self.break_even:.0%} skipped, and up to {most:.0%} are"
        needed = f"above {self.break_even:.0%} skipped" if self.break_even <= 1 else "never"
        return False, f"{micro}: it pays {needed}, and at most {most:.0%} are"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured of a graph's gates, and what came of it.

    Attributes:
        payoff: The times.
        pays: Whether gates were kept.
        why: A sentence.
        each: What became of each gate, if they were judged one by one.
        rows: By rows of a step, its seconds at half the budget and with every block run; as far as it was timed.
    """

    payoff: Payoff
    pays: bool
    why: str
    each: tuple[Decided, ...] = ()
    rows: tuple[tuple[int, float, float], ...] = ()

    def record(self) -> dict[str, Any]:
        """For `report` in the manifest; times in seconds."""
        times = asdict(self.payoff)
        even = self.payoff.break_even
        return times | {
            "break_even": even if math.isfinite(even) else None,
            "kept": self.pays,
            "why": self.why,
            "each": [decided.record() for decided in self.each],
            "rows": [{"rows": rows, "adaptive": given, "dense": dense} for rows, given, dense in self.rows],
        }


def paying(program: Program, ids: Mapping[str, Ids] = EMPTY, batch: int = 1) -> tuple[Program, dict[str, Verdict]]:
    """Measure the gates of every graph; group or take out those that do not pay.

    Args:
        program: After `branch`.
        ids: By graph name, int64 [tokens] of the calibration text; without it gates are kept or removed together.
        batch: Most rows of a step.

    Returns:
        The program; and by graph name what was found.
    """
    verdicts: dict[str, Verdict] = {}
    for name, gates in program.gates.items():
        graph = program.graph(name, OnnxGraph)
        decoder = decoder_spec(graph, program.backbones[name])
        if decoder is None or not conditionals(graph):
            continue
        found = payoff(graph, decoder)
        verdict = Verdict(found, *found.verdict(gates))
        if verdict.pays and len(text := ids.get(name, NO_IDS)[: min(TOKENS, decoder.max_tokens)]) > gates.warmup + 1:
            graph, gates, verdict = _one_by_one(graph, decoder, gates, verdict, text)
        if verdict.pays and batch > 1:
            gates, verdict = _by_rows(graph, decoder, gates, verdict, batch)
        verdicts[name] = verdict
        kept = {**program.gates, name: gates}
        if not verdict.pays:
            del kept[name]
            graph = run_always(graph, range(found.gates))
        program = replace(program.with_graph(name, graph), gates=kept)
    return program, verdicts


def _one_by_one(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, verdict: Verdict, ids: Ids
) -> tuple[OnnxGraph, SkipGates, Verdict]:
    """Keep, group or remove each gate; thresholds of what is left are measured again."""
    times = verdict.payoff
    with running({"gated": graph}, decoder, gates) as [gated]:
        ran = stepwise(gated, ids, gates.thresholds[-1][1])
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
        table = tuple(remeasured(gated, ids, gates.blocks, gates.thresholds))
    if len(table) < 2:
        return graph, gates, replace(verdict, pays=False, why=f"{verdict.why}; what is left skips nothing", each=each)
    return graph, replace(gates, thresholds=table), replace(verdict, each=each)


def _by_rows(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, verdict: Verdict, batch: int
) -> tuple[SkipGates, Verdict]:
    """Find up to how many rows of a step skipping is quicker than running every block of the same graph."""
    level = gates.thresholds[len(gates.thresholds) // 2][1]
    found: list[tuple[int, float, float]] = []
    most = 1
    with running({"gated": graph}, decoder, replace(gates, warmup=0), batch) as [gated]:
        for rows in sorted({*(2**n for n in range(1, 11) if 2**n < batch), batch}):
            kinds = {value: _timed(gated, value, rows) for value in (level, DENSE)}
            times: dict[float, list[float]] = {value: [] for value in kinds}
            for turn in range(4):
                for value, steps in kinds.items():
                    taken = steps()
                    times[value] += taken if turn else []  # the first turn warms up
            found.append((rows, low(times[level]), low(times[DENSE])))
            if found[-1][1] > WORTH * found[-1][2]:
                break
            most = rows
    return replace(gates, rows=most), replace(verdict, rows=tuple(found))


def decoder_spec(graph: OnnxGraph, backbone: Backbone) -> DecoderSpec | None:
    """How to generate with this graph, if it has a KV cache."""
    keys = [
        v for v in graph.model.graph.inputs if (v.name or "").startswith("past.") and (v.name or "").endswith(".key")
    ]
    shapes = [tuple(size for size in sizes(v)[1:] if isinstance(size, int)) for v in keys]
    if not shapes:
        return None
    return DecoderSpec(
        vocab_size=backbone.vocab_size,
        max_tokens=shapes[0][1],
        kv=tuple((heads, width) for heads, _, width in shapes),
        bos_token_id=backbone.bos_token_id,
        eos_token_ids=backbone.eos_token_ids,
        pad_token_id=backbone.pad_token_id,
    )


def payoff(graph: OnnxGraph, decoder: DecoderSpec, threads: int | None = None) -> Payoff:
    """Time a gated graph and its dense twin; some seconds.

    Args:
        graph: After `branch`, with at least one gate.
        decoder: What the graph expects.
        threads: Of the engine; None for the physical cores, as when it runs.
    """
    count = len(conditionals(graph))
    spec = SkipGates("", tuple(range(count)), count, 0, "any", ())
    graphs = {"gated": graph, "shared": grouped(graph, [0] * count), "dense": run_always(graph, range(count))}
    with running(graphs, decoder, spec, threads=threads) as [gated, shared, dense]:
        kinds = {
            "dense": _timed(dense, DENSE),
            "run": _timed(gated, DENSE),
            "shared": _timed(shared, DENSE),
            "skipped": _timed(gated, np.inf),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(1 + TURNS):
            for name, steps in kinds.items():
                found = steps()
                times[name] += found if turn else []  # the first turn warms up
    quick = {name: low(taken) for name, taken in times.items()}
    return Payoff(quick["dense"], quick["run"], quick["skipped"], count, quick["shared"])


@contextmanager
def running(
    graphs: Mapping[str, OnnxGraph], decoder: DecoderSpec, gates: SkipGates, rows: int = 1, threads: int | None = None
) -> Iterator[list[HostDecoder]]:
    """Decoders of some graphs, for as long as the context lasts; those without gates are told so."""
    with tempfile.TemporaryDirectory(prefix="adaptc-pays-") as folder:
        for name, content in write_graphs(graphs, Path(folder), "weights.data").items():
            (Path(folder) / f"{name}.onnx").write_bytes(content)
        made: list[HostDecoder] = []
        try:
            for name, graph in graphs.items():
                engine = OrtEngine(Path(folder) / f"{name}.onnx", threads)
                given = gates if conditionals(graph) else None
                made.append(HostDecoder(engine, decoder, rows, min(CHUNK, decoder.max_tokens), given))
            yield made
        finally:
            for each in made:
                each.close()


def low(seconds: Sequence[float]) -> float:
    """The lower fifth of some times: what else the machine does makes steps longer, never shorter."""
    return float(np.quantile(np.array(seconds), 0.2))


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
