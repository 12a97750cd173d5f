"""A bundle of a tiny model for TensorRT, with gates or without, and its program."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from adaptc.compiler.publish.partitions import partition_files
from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.partitions import Split
from adaptc.ir.program import Backbone, Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.lower.lower import Lower
from adaptc.passes.targets.legalize import Legalize
from adaptc.passes.targets.partition import Partition
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import GraphSpec, Manifest, ModelRecord, TargetRecord
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates
from tests.models import skipping, tiny

TOKENS = 64
GATES = SkipGates("learned", skipping.GATED, 3, 4, "any", ((0.0, -math.inf), (0.1, -0.4), (0.5, 0.6)))
BACKBONE = Backbone("lm.gguf", "llama", tiny.VOCAB, 0, (), None, 128)


def program_of(graph: FxGraph, half: str = "fp16") -> Program:
    """All passes of a TensorRT target over a captured graph."""
    passes = (Lower(), KvCache(max_tokens=TOKENS), FuseProjections(), Legalize(half), Partition())  # type: ignore[arg-type]
    return Pipeline(passes).run(Program({"lm": graph}, (Run("lm"),)))


@cache
def program(family: str, gated: bool = False, low_rank: bool = True, half: str = "fp16") -> Program:
    """A family's program after all passes of a TensorRT target."""
    return program_of(skipping.gated(family, low_rank=low_rank) if gated else tiny.fx(family), half)


def split_of(made: Program) -> Split:
    """The pieces of a program's one graph."""
    return made.partitions["lm"]


def write(
    into: Path, made: Program, gates: SkipGates | None = None, batch: int = 2, backend: str = "tensorrt-rtx"
) -> Bundle:
    """Write a program as a bundle; `into`'s folder must be there."""
    graph, split = made.graph("lm", OnnxGraph), split_of(made)
    scratch = into.parent / f"{into.name}.weights"
    scratch.mkdir()
    content = write_graphs({"lm": graph}, scratch, "lm.data", swappable=False)["lm"]
    partitions = partition_files("lm", split, content, scratch / "lm.data", "graphs/lm.data")
    manifest = Manifest(
        adaptc="0",
        models={"lm": ModelRecord("lm.gguf", None, None, "llama", "0" * 64)},
        passes=(),
        plan=(Run("lm"),),
        graphs={"lm": GraphSpec("graphs/lm.onnx", (), (), ("graphs/lm.data",), decoder_spec(graph, BACKBONE, split))},
        gates={} if gates is None else {"lm": gates},
        target=TargetRecord(backend, "fp16", TOKENS, batch),
        versions={},
        bytes_per_token=0,
    )
    files: dict[str, Path | bytes] = {"graphs/lm.onnx": content, "graphs/lm.data": scratch / "lm.data", **partitions}
    return write_bundle(into, files, manifest)
