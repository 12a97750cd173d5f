"""A bundle of a tiny model for ONNX Runtime whose long prompts a GPU reads layer by layer."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from adaptc.compiler.publish.prompts import prompt_files
from adaptc.compiler.weights_file import data_files_of, placed_step, write_graph
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.device.device_steps import DeviceSteps
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import GraphSpec, Manifest, ModelRecord, TargetRecord
from adaptc.runtime.bundle.names import graph_file, step_file
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.bundle.strict_json import dumps
from tests.models import skipping, tiny

TOKENS = 192
"""Positions of the cache: three times what our own kernels read at once."""

GATES = SkipGates("learned", skipping.GATED, 3, 4, "rows", ((0.0, -math.inf), (0.1, -0.4), (0.5, 0.6)))
BACKBONE = Backbone("lm.gguf", "llama", tiny.VOCAB, 0, (), None, 128)


@cache
def program(family: str, weights: str, *, gated: bool = False) -> Program:
    """All passes up to `device_steps`: int4, int8, fp16 or fp32 weights."""
    quantized = weights in ("int4", "int8")
    stored: Pass = Quantize(weights, block_size=16) if quantized else FloatWeights(weights)  # type: ignore[arg-type]
    whole = tiny.lowered(family)
    if gated:
        whole = Pipeline((Lower(),)).run(tiny.program(family).with_graph("lm", skipping.gated(family)))
    before = (KvCache(max_tokens=TOKENS), LogitsFrom(), FuseNorms(), FuseProjections())
    return Pipeline((*before, stored, DeviceSteps(required=True))).run(whole)


def write(into: Path, made: Program, gates: SkipGates | None = None, *, prompts: bool = True) -> Bundle:
    """Write a program as a bundle, without what reads its prompts unless `prompts`; `into`'s folder must be there."""
    graph, step = made.graph("lm", OnnxGraph), made.steps["lm"]
    scratch = into.parent / f"{into.name}.weights"
    scratch.mkdir()
    with data_files_of({"lm": graph}, scratch, "lm.data", swappable=False) as data:
        content = write_graph(graph, data)
        placed = placed_step(step, data)
    manifest = Manifest(
        adaptc="0",
        models={"lm": ModelRecord("lm.gguf", None, None, "llama", "0" * 64)},
        passes=(),
        plan=(Run("lm"),),
        graphs={"lm": GraphSpec(graph_file("lm"), (), (), ("graphs/lm.data",), decoder_spec(graph, BACKBONE, None))},
        gates={} if gates is None else {"lm": gates},
        target=TargetRecord("onnxruntime", "int4", TOKENS, 2),
        versions={},
        bytes_per_token=0,
    )
    files: dict[str, Path | bytes] = {graph_file("lm"): content, "graphs/lm.data": scratch / "lm.data"}
    files[step_file("lm")] = dumps(placed).encode()
    if prompts:
        assert step.prompt is not None
        files |= prompt_files("lm", step.prompt)
    return write_bundle(into, files, manifest)
