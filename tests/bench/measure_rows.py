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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
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
from adaptc.runtime.model.budget import threshold_of
from adaptc.runtime.progress import SILENT
from adaptc.sources.calibration_text import calibration_text, prose
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec

CONTEXT, RANDOM_CONTEXT, STEPS = 48, 2, 8
"""Tokens in the cache before the steps that are timed, of a text or not, and how many these are in a turn."""

Ids = npt.NDArray[np.int64]
FORMS = ("dense", "rows", "any")
Clock = Callable[[], float]
Point = tuple[str, float]
"""What a threshold is called, and the threshold."""

Cell = tuple[int, str, str]
"""Rows, a threshold's name and a form."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured.

    Attributes:
        graph: Before `branch`.
        spec: What it expects.
        gates: Its gates.
        points: What gates are compared with.
        ids: int64 [rows, tokens]: what each row reads.
    """

    graph: OnnxGraph
    spec: DecoderSpec
    gates: SkipGates
    points: tuple[Point, ...]
    ids: Ids


def measure(model: Model, sizes: Sequence[int], turns: int, threads: int, clock: Clock) -> None:
    """Print a line for each number of rows and each threshold.

    Where an engine's weights happen to lie is worth several percent for as long as it is open. So all are opened three
    times, each of them once as the first; what was found so far is printed each time.
    """
    seconds: dict[tuple[int, str], dict[str, list[float]]] = {}
    skipped: dict[Cell, float] = {}
    for turned in range(len(FORMS)):
        with ExitStack() as stack:
            order = FORMS[turned:] + FORMS[:turned]
            decoders = {name: _opened(model, name, max(sizes), threads, stack) for name in order}
            for rows in sizes:
                for point, level in model.points:
                    kinds = {
                        name: _timed(
                            each, level, model.ids[:rows], partial(skipped.__setitem__, (rows, point, name)), clock
                        )
                        for name, each in decoders.items()
                    }
                    into = seconds.setdefault((rows, point), {name: [] for name in FORMS})
                    for name, found in in_turns(kinds, turns).items():
                        into[name] += [float(np.median(steps)) for steps in found]
        print(f"{turned + 1} of {len(FORMS)} orders of opening")
        _print(seconds, skipped)


def _print(seconds: Mapping[tuple[int, str], Mapping[str, list[float]]], skipped: Mapping[Cell, float]) -> None:
    print("rows  threshold   dense: tokens/s [quartiles]; of the others: skipped, time of dense / theirs [quartiles]")
    for (rows, point), taken in seconds.items():
        line = [_quartiles([rows / step for step in taken["dense"]], ".1f")]
        for name in FORMS[1:]:
            ratios = np.divide(taken["dense"], taken[name]).tolist()
            line.append(f"{name} {skipped[rows, point, name]:.1%} x{_quartiles(ratios, '.3f')}")
        print(f"{rows:4}  {point:10}  {'   '.join(line)}", flush=True)


def _quartiles(values: Sequence[float], form: str) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:{form}} [{low:{form}} {high:{form}}]"


def _opened(model: Model, form: str, rows: int, threads: int, stack: ExitStack) -> HostDecoder:
    """The dense twin, or the graph in the form of a batch policy, which asks every gate at every step."""
    gates = replace(model.gates, batch=form, warmup=0)
    graph = run_always(model.graph, range(len(gates.layers))) if form == "dense" else model.graph
    [decoder] = stack.enter_context(running({"lm": graph}, model.spec, gates, rows, threads))
    return decoder


def _timed(
    decoder: HostDecoder, level: float, ids: Ids, tell: Callable[[float], None], clock: Clock
) -> Callable[[], list[float]]:
    """A function that reads the rows' contexts and times the steps after them; it tells the share that was skipped."""

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
            tell(skips.share)
        return marks

    return run


def of_spec(file: Path, text: Path, rows: int) -> Model:
    """A spec's graph with all its gates, paying or not, at four budgets."""
    spec, base = read_spec(file), file.parent
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    plan = plan_of(spec, base)
    hashes = {name: source.sha256() for name, source in sources.items()}
    measured = calibration_text(spec.calibration, base)
    program, _ = lowered(plan, sources, hashes, measured, versions(), Cache.default(), SILENT)
    program = Pipeline(plan.to_target).run(program)
    [(name, gates)] = program.gates.items()
    graph = program.graph(name, OnnxGraph)
    decoder = decoder_spec(graph, program.backbone(name))
    assert decoder is not None
    points = tuple((f"budget {budget:g}", threshold_of(gates, budget)) for budget in (1.0, 0.8, 0.5, 0.0))
    ids = prose(text.name, text.read_text(encoding="utf-8"), 40_000).ids(sources[name])
    starts = np.linspace(0, len(ids) - CONTEXT - STEPS, rows).astype(int)  # passages far from each other
    return Model(graph, decoder, gates, points, np.stack([ids[at : at + CONTEXT + STEPS] for at in starts]))


def of_random_weights(rank: int, rows: int) -> Model:
    """The geometry of Qwen2.5-1.5B, 24 of 28 blocks with a gate; random weights in 4 bits."""
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
    points = tuple((f"{share:.0%} of 24", NormalDist().inv_cdf(share)) for share in (0.3, 0.5))
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (rows, RANDOM_CONTEXT + STEPS))
    return Model(graph, spec, gates, points, ids)


def main() -> None:
    """Parse the command line and measure."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("spec", nargs="?", type=Path)
    arguments.add_argument("--text", type=Path)
    arguments.add_argument("--random", action="store_true")
    arguments.add_argument("--wall", action="store_true")
    arguments.add_argument("--rank", type=int, default=2048)
    arguments.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    arguments.add_argument("--turns", type=int, default=3)
    given = arguments.parse_args()
    most = max(given.rows)
    model = of_random_weights(given.rank, most) if given.random else of_spec(given.spec, given.text, most)
    threads, clock = (physical_cores(), perf_counter) if given.wall else (1, thread_time)
    measure(model, given.rows, given.turns, threads, clock)


if __name__ == "__main__":
    main()
