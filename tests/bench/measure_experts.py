"""Time decode steps of a model with experts: against dense forms of it, and against transformers, in turns.

usage: python -m tests.bench.measure_experts --weights int4|fp32 [--wall]

The geometry is Qwen3's with experts: width 1024, 8 layers, 8 experts of 1536 inner neurons, 2 of them for a token;
weights are random. It takes turns with

- `all`: the same weights, every token to all 8 experts, which is what a step reads if nobody chooses;
- `block`: a dense Qwen3 whose blocks are as wide as the experts of one token together, which computes as much;
- `transformers`: the same weights in float32, with its own KV cache.

By default engines have one thread, and its processor time counts: so figures stand on a machine that others use. With
--wall a step takes all physical cores, and the clock counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.compiler.tuning import running
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.machine.turns import in_turns
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.report.parts import weights_read
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates

EXPERTS, CHOSEN, INNER, WIDTH, LAYERS, VOCAB = 8, 2, 1536, 1024, 8, 32000
CONTEXT, STEPS = 16, 16
"""Tokens in the cache before the steps that are timed, and how many these are in a turn."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
WEIGHTS: Mapping[str, Pass] = {"int4": Quantize("int4", 32), "fp32": FloatWeights("fp32")}

Ids = npt.NDArray[np.int64]
Clock = Callable[[], float]
Timed = Callable[[], list[float]]


def config_of(form: str) -> Any:
    """transformers' config of a form of the model."""
    if form == "block":
        return transformers.Qwen3Config(**COMMON, intermediate_size=CHOSEN * INNER)
    return transformers.Qwen3MoeConfig(
        **COMMON,
        intermediate_size=INNER,
        moe_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=EXPERTS if form == "all" else CHOSEN,
        norm_topk_prob=True,
    )


def random_weights(config: Any) -> dict[str, torch.Tensor]:
    """Weights of a model, the same for the same config."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.AutoModelForCausalLM.from_config(config).named_parameters()}
    random = torch.Generator().manual_seed(1)
    norms = {name: torch.ones(shape) for name, shape in shapes.items() if name.endswith("norm.weight")}
    return norms | {n: torch.randn(s, generator=random) * 0.02 for n, s in shapes.items() if n not in norms}


def program_of(config: Any, weights: Mapping[str, torch.Tensor], stored: str) -> OnnxGraph:
    """The graph that a bundle would hold."""
    program = Program({"lm": capture(config, weights)}, (Run("lm"),))
    passes = Lower(), KvCache(max_tokens=256), LogitsFrom(), FuseNorms(), FuseProjections(), WEIGHTS[stored]
    return Pipeline(passes).run(program).graph("lm", OnnxGraph)


def of_bundle(graph: OnnxGraph, kind: str, threads: int, clock: Clock, ids: Ids, stack: ExitStack) -> Timed:
    """A function that reads the context and times the steps after it."""
    spec = decoder_spec(graph, Backbone("random", kind, VOCAB, None, (), None, 256))
    assert spec is not None
    gates = SkipGates("learned", (), LAYERS, 0, "rows", ())
    [decoder] = stack.enter_context(running({"lm": graph}, spec, gates, 1, threads))

    def run() -> list[float]:
        decoder.prefill(0, ids[:CONTEXT])
        return [_clocked(decoder, clock, ids[at : at + 1]) for at in range(CONTEXT, CONTEXT + STEPS)]

    return run


def _clocked(decoder: HostDecoder, clock: Clock, token: Ids) -> float:
    began = clock()
    decoder.decode(token)
    return clock() - began


def of_transformers(config: Any, weights: Mapping[str, torch.Tensor], clock: Clock, ids: Ids) -> Timed:
    """The same for transformers' model."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(weights, assign=True, strict=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its angles are no weights
    given = torch.from_numpy(ids)[None]

    @torch.no_grad()
    def run() -> list[float]:
        cache = model(given[:, :CONTEXT], use_cache=True).past_key_values
        marks = []
        for at in range(CONTEXT, CONTEXT + STEPS):
            began = clock()
            model(given[:, at : at + 1], past_key_values=cache, use_cache=True)
            marks.append(clock() - began)
        return marks

    return run


def measure(stored: str, threads: int, clock: Clock, turns: int) -> None:
    """Print what a step of each form reads and takes, and its ratio to the model's with experts."""
    ids = np.random.default_rng(3).integers(0, VOCAB, CONTEXT + STEPS)
    torch.set_num_threads(threads)
    read: dict[str, int] = {}
    with ExitStack() as stack:
        forms: dict[str, Timed] = {}
        mixture = random_weights(config_of("experts"))
        for form in ("experts", "all", "block"):
            config = config_of(form)
            weights = random_weights(config) if form == "block" else mixture
            graph = program_of(config, weights, stored)
            read[form] = sum(size for _, _, size in weights_read(graph))
            forms[form] = of_bundle(graph, config.model_type, threads, clock, ids, stack)
            if form == "experts":
                forms["transformers"] = of_transformers(config, weights, clock, ids)
        taken = {name: [float(np.median(steps)) for steps in found] for name, found in in_turns(forms, turns).items()}
    print(f"{stored}, {threads} threads, {turns} turns of {STEPS} steps")
    print("form           MB read   ms a step [quartiles]   time / time with experts [quartiles]")
    for name, times in taken.items():
        ratios = np.divide(times, taken["experts"]).tolist()
        size = f"{read[name] / 1e6:7.1f}" if name in read else "      -"
        milliseconds = _quartiles([1e3 * each for each in times], ".2f")
        print(f"{name:12} {size}   {milliseconds:20}   x{_quartiles(ratios, '.2f')}", flush=True)


def _quartiles(values: list[float], form: str) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:{form}} [{low:{form}} {high:{form}}]"


def main() -> None:
    """Parse the command line and measure."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--weights", choices=WEIGHTS, default="int4")
    arguments.add_argument("--wall", action="store_true")
    arguments.add_argument("--turns", type=int, default=21)
    given = arguments.parse_args()
    threads, clock = (physical_cores(), perf_counter) if given.wall else (1, thread_time)
    measure(given.weights, threads, clock, given.turns)


if __name__ == "__main__":
    main()
