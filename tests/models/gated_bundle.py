"""A bundle of a tiny model with gates, and its dense twin: the same weights in the same blocks, without gates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers.models import WordLevel

from adaptc.compiler.weights_file import data_files, read_bytes_per_token, skippable_bytes, write_graphs
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, GraphSpec, Manifest, ModelRecord, TargetRecord
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates
from tests.models import skipping, tiny, tiny_tokenizer

GATES = SkipGates("learned", skipping.GATED, 3, 4, "any", ((0.0, -math.inf), (0.1, -0.4), (0.5, 0.6)))
BACKBONE = Backbone("lm.gguf", "llama", tiny.VOCAB, 0, (), None, 128)
DECODER = DecoderSpec(tiny.VOCAB, 64, ((2, 16),) * 3, 0, (), None)


def program(*, gated: bool, emitted: bool = True) -> Program:
    """All passes of an int4 target, with gates or without; unless `emitted`, all but `branch`."""
    if gated:
        passes = (Quantize(block_size=16), Branch()) if emitted else (Quantize(block_size=16),)
        gates = Pipeline(passes).run(skipping.lowered("llama", low_rank=True))
        return replace(gates, backbones={"lm": BACKBONE})
    return Pipeline((FuseNorms(), FuseProjections(), Quantize(block_size=16))).run(tiny.cached("llama"))


def words() -> dict[str, bytes]:
    """The files of a tokenizer whose tokens are words, as many as the tiny models have."""
    known = ["<unk>", "Question", "Answer", ":", "?", *(f"w{number}" for number in range(tiny.VOCAB - 5))]
    made = tokenizers.Tokenizer(WordLevel({word: place for place, word in enumerate(known)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tiny_tokenizer.files(made, None)


def write(into: Path, *, gated: bool = True, tokenizer: bool = False, dense: bool = False) -> Bundle:
    """Write it, with its dense twin too if `dense`; `into`'s folder must be there."""
    whole = program(gated=gated)
    graphs = {name: whole.graph(name, OnnxGraph) for name in ("lm", *(("lm.dense",) if dense else ()))}
    scratch = into.parent / f"{into.name}.weights"
    scratch.mkdir()
    written = write_graphs(graphs, scratch, "lm.data")
    reads = {name: tuple(f"graphs/{file}" for file in data_files(graph, "lm.data")) for name, graph in graphs.items()}
    manifest = Manifest(
        adaptc="0",
        models={"lm": ModelRecord("lm.gguf", None, None, "llama", "0" * 64)},
        passes=(),
        plan=(Run("lm"),),
        graphs={
            name: GraphSpec(
                f"graphs/{name}.onnx", (), (), reads[name], DECODER, skippable_bytes=tuple(skippable_bytes(graph))
            )
            for name, graph in graphs.items()
        },
        gates={"lm": replace(GATES, dense="lm.dense" if dense else "")} if gated else {},
        target=TargetRecord("onnxruntime", "int4", 64, 2),
        versions={},
        bytes_per_token=read_bytes_per_token(graphs["lm"]),
    )
    files: dict[str, Path | bytes] = {f"graphs/{name}.onnx": content for name, content in written.items()}
    files |= {file: scratch / Path(file).name for each in reads.values() for file in each}
    files |= {f"tokenizer/{name}": text for name, text in (words() if tokenizer else {}).items()}
    return write_bundle(into, files, manifest)
