"""Time decode steps of several rows: each for itself, together, and without gates, in turns in one process.

usage: python -m tests.bench.measure_rows SPEC --text FILE    all gates of a spec, whether they pay or not
       python -m tests.bench.measure_rows --random            the geometry of Qwen2.5-1.5B with random weights

Rows go on from other passages of the text. By default an engine has one thread, and its processor time counts: so
figures stand on a machine that others use. With --wall a step takes all physical cores, and the clock counts.

With random weights a gate's value is a random number for each
token, so a threshold is a share of blocks skipped, and which blocks a row skips says nothing of the other rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from time import perf_counter, thread_time

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.compiler.cache import Cache
from adaptc.compiler.pipeline import plan_of
from adaptc.compiler.stages import lowered
from adaptc.compiler.tuning import running
from adaptc.compiler.versions import versions
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.machine.turns import in_turns
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.skips import run_always
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE, threshold_of
from adaptc.runtime.progress import SILENT
from adaptc.sources.calibration_text import CalibrationText
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec

CONTEXT, RANDOM_CONTEXT, STEPS = 48, 8, 8
"""Tokens in the cache before the steps that are timed, of a text or not, and how many these are in a turn."""

Ids = npt.NDArray[np.int64]
Clock = Callable[[], float]
Point = tuple[str, float]
"""What a threshold is called, and the threshold."""


def measure(
    decoders: Mapping[str, HostDecoder],
    points: Sequence[Point],
    ids: Ids,
    sizes: Sequence[int],
    turns: int,
    clock: Clock,
) -> None:
    """Print a line for each number of rows and each threshold.

    Args:
        decoders: By name; "dense" has no gates.
        points: What gates are compared with.
        ids: int64 [rows, tokens]: what each row reads.
        sizes: Numbers of rows.
        turns: Turns in which each is timed once; one more before them warms up.
        clock: Seconds.
    """
    print(
        "rows  point       " + "".join(f"{name:>28}" for name in decoders) + "   skipped, dense / each [quartiles]",
        flush=True,
    )
    for rows in sizes:
        for point, level in points:
            skipped: dict[str, float] = {}
            kinds = {name: _timed(name, each, level, ids[:rows], skipped, clock) for name, each in decoders.items()}
            found = in_turns(kinds, turns)
            seconds = {name: [float(np.median(turn)) for turn in each] for name, each in found.items()}
            shown, ratios = [], []
            for name, each in seconds.items():
                low, middle, high = np.quantile([rows / step for step in each], (0.25, 0.5, 0.75))
                shown.append(f"{middle:10.1f} [{low:6.1f} {high:6.1f}]/s")
                low, middle, high = np.quantile(np.divide(seconds["dense"], each), (0.25, 0.5, 0.75))
                if name != "dense":
                    ratios.append(f"{name} {skipped[name]:5.1%} x{middle:.3f} [{low:.3f} {high:.3f}]")
            print(
                f"{rows:4}  {point:10}" + "".join(f"{each:>28}" for each in shown) + "   " + ", ".join(ratios),
                flush=True,
            )


def _timed(
    name: str, decoder: HostDecoder, level: float, ids: Ids, skipped: dict[str, float], clock: Clock
) -> Callable[[], list[float]]:
    """A function that reads the rows' contexts and times the steps after them; it notes what was skipped."""

    def run() -> list[float]:
        for row, text in enumerate(ids):
            decoder.prefill(row, text[:-STEPS], level)
        marks, ran = [], []
        for at in range(ids.shape[1] - STEPS, ids.shape[1]):
            began = clock()
            decoder.decode(ids[:, at])
            marks.append(clock() - began)
            ran += [told for row in range(len(ids)) if (told := decoder.ran(row)) is not None]
        if (skips := decoder.skips(ran)) is not None:
            skipped[name] = skips.share
        return marks

    return run


def of_spec(spec_file: Path, rows: int, threads: int, stack: ExitStack) -> tuple[dict[str, HostDecoder], list[Point]]:
    """Decoders of a spec's graph with all its gates, paying or not, and the thresholds of budgets."""
    spec, base = read_spec(spec_file), spec_file.parent
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    plan = plan_of(spec, base)
    program, _ = lowered(spec, base, plan, sources, versions(), Cache.default(), SILENT)
    program = Pipeline(plan.to_target).run(program)
    [(name, gates)] = program.gates.items()
    graph = program.graph(name, OnnxGraph)
    decoder = decoder_spec(graph, program.backbone(name))
    assert decoder is not None
    points = [(f"budget {budget:g}", threshold_of(gates, budget)) for budget in (1.0, 0.8, 0.5, 0.0)]
    return decoders_of(graph, decoder, gates, rows, threads, stack), points


def decoders_of(
    graph: OnnxGraph, decoder: DecoderSpec, gates: SkipGates, rows: int, threads: int, stack: ExitStack
) -> dict[str, HostDecoder]:
    """The dense twin, and the graph in the form of both batch policies; the last ones ask every gate at every step."""
    forms = {"dense": run_always(graph, range(len(gates.layers))), "rows": graph, "any": graph}
    made = {}
    for policy, form in forms.items():
        own = replace(gates, batch=policy, warmup=0)
        [made[policy]] = stack.enter_context(running({"lm": form}, decoder, own, rows, threads))
    return made


def texts(spec_file: Path, file: Path, rows: int) -> Ids:
    """Passages of a text, far from each other."""
    spec = read_spec(spec_file)
    source = find_source(next(iter(spec.models.values())), spec_file.parent)
    ids = CalibrationText(file.name, file.read_text(encoding="utf-8"), 40_000).ids(source)
    starts = np.linspace(0, len(ids) - CONTEXT - STEPS, rows).astype(int)
    return np.stack([ids[start : start + CONTEXT + STEPS] for start in starts])


def random_decoders(rank: int, rows: int, threads: int, stack: ExitStack) -> dict[str, HostDecoder]:
    """Decoders of the geometry of Qwen2.5-1.5B, 24 of 28 blocks with a gate; random weights in 4 bits."""
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.AutoModelForCausalLM.from_config(config).named_parameters()}
    random = torch.Generator().manual_seed(1)
    drawn: dict[torch.Size, torch.Tensor] = {}  # layers share what they have; engines pack each of them anew
    for shape in shapes.values():
        if shape not in drawn:
            drawn[shape] = torch.randn(shape, generator=random) * 0.02
    weights = {n: torch.ones(s) if n.endswith("norm.weight") else drawn[s] for n, s in shapes.items()}
    whole = capture(config, weights)
    layers = tuple(range(1, 25))
    blocks = gating.ffn_blocks(whole)
    own: dict[str, torch.Tensor] = {}
    for layer in layers:
        for name, shape in gating.parameters(blocks[layer], rank).items():
            scale = config.hidden_size**-0.5 if name.endswith("gate.weight") else 0.02
            own[name] = torch.zeros(shape) if name.endswith("bias") else torch.randn(shape, generator=random) * scale
    program = Program({"lm": gating.learned(whole, layers, own)}, (Run("lm"),))
    passes = (Lower(), KvCache(max_tokens=256), LogitsFrom(), FuseNorms(), FuseProjections(), Quantize("int4", 32))
    graph = Pipeline(passes).run(program).graph("lm", OnnxGraph)
    spec = decoder_spec(graph, Backbone("random", "qwen2", config.vocab_size, None, (), None, 256))
    assert spec is not None
    gates = SkipGates("learned", layers, config.num_hidden_layers, 0, "rows", ())
    return decoders_of(graph, spec, gates, rows, threads, stack)


def shares() -> Iterator[Point]:
    """Shares of the gated blocks that tokens skip, as thresholds of a normal random number."""
    yield "0 %", DENSE
    for share in (0.15, 0.3, 0.5):
        yield f"{share:.0%} of 24", NormalDist().inv_cdf(share)


def main() -> None:
    """Parse the command line and measure."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("spec", nargs="?", type=Path)
    arguments.add_argument("--text", type=Path)
    arguments.add_argument("--random", action="store_true")
    arguments.add_argument("--wall", action="store_true")
    arguments.add_argument("--rank", type=int, default=2048)
    arguments.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    arguments.add_argument("--turns", type=int, default=8)
    given = arguments.parse_args()
    most, threads = max(given.rows), physical_cores() if given.wall else 1
    with ExitStack() as stack:
        if given.random:
            decoders, points = random_decoders(given.rank, most, threads, stack), list(shares())
            ids = np.random.default_rng(3).integers(0, 151936, (most, RANDOM_CONTEXT + STEPS))
        else:
            decoders, points = of_spec(given.spec, most, threads, stack)
            ids = texts(given.spec, given.text, most)
        measure(decoders, points, ids, given.rows, given.turns, perf_counter if given.wall else thread_time)


if __name__ == "__main__":
    main()
