"""Does it pay? What a conditional costs and what a skipped block saves, on the machine that compiles."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.datafile import write_graphs
from adaptc.gates import Gates
from adaptc.graph import OnnxGraph, sizes
from adaptc.passes.branch import conditionals, run_always
from adaptc.program import Program, Tower
from adaptc.runtime.budget import DENSE
from adaptc.runtime.decoder import Decoder
from adaptc.runtime.manifest import DecoderSpec, GateSpec
from adaptc.runtime.ort import OrtEngine

STEPS = 32
"""Decode steps timed of each kind: turns of four, as a busy machine is busy for a while."""

TURNS = 8
"""Of each kind, one after the other; one more before them warms up."""

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
    """

    dense: float
    run: float
    skipped: float
    gates: int

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

    def verdict(self, gates: GateSpec) -> tuple[bool, str]:
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
        pays: Whether the gates were kept.
        why: A sentence.
    """

    payoff: Payoff
    pays: bool
    why: str

    def record(self) -> dict[str, Any]:
        """For `report` in the manifest; times in seconds."""
        times = asdict(self.payoff)
        even = self.payoff.break_even
        return times | {"break_even": even if math.isfinite(even) else None, "kept": self.pays, "why": self.why}


def paying(program: Program) -> tuple[Program, dict[str, Verdict]]:
    """Measure the gates of every graph and take those out that do not pay.

    Returns:
        The program; and by graph name what was found.
    """
    verdicts: dict[str, Verdict] = {}
    for name, gates in program.gates.items():
        graph = program.graph(name, OnnxGraph)
        decoder = decoder_spec(graph, program.towers[name])
        if decoder is None or not conditionals(graph):
            continue
        found = payoff(graph, decoder)
        verdicts[name] = Verdict(found, *found.verdict(gate_spec(gates)))
        if not verdicts[name].pays:
            left = {other: kept for other, kept in program.gates.items() if other != name}
            program = replace(program.with_graph(name, run_always(graph, range(found.gates))), gates=left)
    return program, verdicts


def gate_spec(gates: Gates) -> GateSpec:
    """Gates as the manifest keeps them."""
    table = tuple((share, level if math.isfinite(level) else None) for share, level in gates.thresholds)
    return GateSpec(gates.policy, gates.layers, gates.blocks, gates.warmup, gates.batch, table)


def decoder_spec(graph: OnnxGraph, tower: Tower) -> DecoderSpec | None:
    """How to generate with this graph, if it has a KV cache."""
    keys = [
        v for v in graph.model.graph.inputs if (v.name or "").startswith("past.") and (v.name or "").endswith(".key")
    ]
    shapes = [tuple(size for size in sizes(v)[1:] if isinstance(size, int)) for v in keys]
    if not shapes:
        return None
    return DecoderSpec(
        vocab_size=tower.vocab_size,
        max_tokens=shapes[0][1],
        kv=tuple((heads, width) for heads, _, width in shapes),
        bos_token_id=tower.bos_token_id,
        eos_token_ids=tower.eos_token_ids,
        pad_token_id=tower.pad_token_id,
    )


def payoff(graph: OnnxGraph, decoder: DecoderSpec, threads: int | None = None) -> Payoff:
    """Time a gated graph and its dense twin; some seconds.

    Args:
        graph: After `branch`, with at least one gate.
        decoder: What the graph expects.
        threads: Of the engine; None for the physical cores, as when it runs.
    """
    count = len(conditionals(graph))
    gates = GateSpec("", tuple(range(count)), count, 0, "any", ())
    graphs = {"gated": graph, "dense": run_always(graph, range(count))}
    with tempfile.TemporaryDirectory(prefix="adaptc-pays-") as folder:
        for name, content in write_graphs(graphs, Path(folder), "weights.data").items():
            (Path(folder) / f"{name}.onnx").write_bytes(content)
        gated, dense = (
            Decoder(OrtEngine(Path(folder) / f"{name}.onnx", threads), decoder, 1, decoder.max_tokens, given)
            for name, given in (("gated", gates), ("dense", None))
        )
        kinds = {
            "dense": _timed(dense, DENSE),
            "run": _timed(gated, DENSE),
            "skipped": _timed(gated, np.inf),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(1 + TURNS):
            for name, steps in kinds.items():
                found = steps()
                times[name] += found if turn else []  # the first turn warms up
        gated.close()
        dense.close()
    quick = {name: float(np.percentile(found, 20)) for name, found in times.items()}
    return Payoff(quick["dense"], quick["run"], quick["skipped"], count)


def _timed(decoder: Decoder, threshold: float) -> Callable[[], list[float]]:
    """A function that times a turn's steps, after one that is not counted."""
    steps = 1 + STEPS // TURNS
    context = decoder.blank(max(1, min(CONTEXT, decoder.spec.max_tokens - steps - 1)))

    def run() -> list[float]:
        decoder.prefill(0, context, threshold)
        marks = []
        for _ in range(min(steps, decoder.spec.max_tokens - len(context))):
            began = perf_counter()
            decoder.decode([0])
            marks.append(perf_counter() - began)
        return marks[1:] or marks

    return run
