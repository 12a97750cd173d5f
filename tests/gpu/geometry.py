"""Steps of a decoder of a given geometry, without weights: those are drawn where they run.

python -m tests.gpu.geometry OUT writes OUT/NAME.json (a `DeviceStep`) and OUT/NAME.about.json for Llama-3-8B's
geometry.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.compiler.pipeline import plan_of
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.onnx_graph import fixed
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.device.device_steps import DeviceSteps
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize import quantize
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.bundle.gpu_steps.device_step import StepWeight
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.strict_json import dumps
from adaptc.spec.reading import parse_spec

LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
}
"""Llama-3-8B's config, but for the number of its layers."""

QWEN = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
"""Qwen2.5-Coder-1.5B's config."""

MAX_TOKENS = 2048


def blank_blocks(weight: Any, bits: Bits, block_size: int, rows: int | None = None, rule: str = "nearest") -> Blocks:
    """Codes of zeros that take no memory, in the place of those that quantizing would choose."""
    results, columns = fixed(weight)
    results, blocks = rows or results, -(-columns // block_size)

    def blank(*shape: int, dtype: type = np.uint8) -> Any:
        return np.broadcast_to(np.zeros(1, dtype), shape)

    codes = blank(results, blocks, block_size * bits // 8)
    zeros = blank(results, -(-blocks * bits // 8))
    return Blocks(codes, blank(results, blocks, dtype=np.float32), zeros, columns, bits, block_size)


def write(
    into: Path, name: str, config: dict[str, Any], weights: str, gates: Sequence[int] = (), rank: int = 0
) -> None:
    """Write the step of a model of this config, with gates before some blocks; `rank` is that of their cheap paths."""
    made = transformers.CONFIG_MAPPING["qwen2" if name.startswith("qwen") else "llama"](**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made)
    named = model.named_parameters(remove_duplicate=False)
    graph = capture(made, {key: torch.zeros(1).expand(value.shape) for key, value in named})
    if gates:
        blocks = gating.ffn_blocks(graph)
        shapes = [gating.parameters(blocks[layer], rank) for layer in gates]
        parameters = {key: torch.zeros(1).expand(shape) for part in shapes for key, shape in part.items()}
        graph = gating.learned(graph, tuple(gates), parameters)
    text = f"target: {{weights: {weights}, max_tokens: {MAX_TOKENS}, device: cuda}}\n"
    plan = plan_of(parse_spec(f"version: 1\nmodels: {{lm: {{source: none}}}}\n{text}"), Path())
    passes = (Lower(), *plan.to_target, DeviceSteps(required=True))
    lowering = Pipeline(passes).run(Program({"lm": graph}, (Run("lm"),))).steps["lm"]
    places, offset = {}, 0
    for key, tensor in lowering.tensors.items():
        shape = tuple(int(str(size)) for size in tensor.shape)
        places[key] = StepWeight("drawn", str(tensor.dtype.numpy()), shape, offset, tensor.nbytes)
        offset += tensor.nbytes
    (into / f"{name}.json").write_text(dumps(replace(lowering.step, weights=places)))
    kv = [(layer.kv_heads, layer.width) for layer in lowering.step.attentions]
    about = {"vocab_size": made.vocab_size, "kv": kv, "max_tokens": MAX_TOKENS, "gates": len(gates)}
    (into / f"{name}.about.json").write_text(json.dumps(about))


def main(into: Path) -> None:
    """Write all geometries that `kernel_times` measures."""
    quantize._quantized = blank_blocks  # choosing codes would take hours, and nobody reads them
    into.mkdir(parents=True, exist_ok=True)
    for layers, weights, gated in ((8, "int4", True), (8, "fp16", True), (8, "int8", True), (32, "int4", False)):
        gates = tuple(range(layers)) if gated else ()
        write(into, f"llama-{layers}-{weights}", {**LLAMA, "num_hidden_layers": layers}, weights, gates)
        print(f"llama-{layers}-{weights} written", flush=True)
    write(into, "qwen-28-int4", QWEN, "int4", range(28))
    print("qwen-28-int4 written", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
