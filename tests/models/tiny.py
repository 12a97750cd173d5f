"""Tiny random models of every supported family: real architectures, milliseconds to run, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.passes.emit import FLOAT
from adaptc.runtime.bundle.plan import Run

VOCAB = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-rope3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "sliding_window": 5, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        {"tie_word_embeddings": True, "sliding_window": 5, "num_hidden_layers": 7, "query_pre_attn_scalar": 16},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3-moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "granite-moe": (
        "granitemoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "olmoe": ("olmoe", {**EXPERTS, "head_dim": 8, "eos_token_id": None, "norm_topk_prob": True}),
}
"""By the names that tests call them: transformers' `model_type`, and what differs from `COMMON`."""
WITH_EXPERTS = tuple(
    name for name, (_, options) in FAMILIES.items() if {"num_experts", "num_local_experts"} & options.keys()
)
"""Those of `FAMILIES` whose feed-forward blocks are mixtures of experts."""
DENSE = tuple(name for name in FAMILIES if name not in WITH_EXPERTS)


def random_model(model_type: str, options: Mapping[str, Any], spread: float = 0.3, seed: int = 0) -> Any:
    """A language model with random weights, as transformers runs it.

    Args:
        model_type: transformers' name.
        options: All of its config.
        spread: Standard deviation of the weights; larger than the usual start, so that differences show, and norms'
            weights are not all one.
        seed: Of the weights.
    """
    config = transformers.CONFIG_MAPPING[model_type](**options)
    torch.manual_seed(seed)
    built = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, spread)
    return built


@cache
def model(family: str) -> Any:
    """The family's model with random weights, as transformers runs it."""
    model_type, options = FAMILIES[family]
    return random_model(model_type, {**COMMON, **options})


@cache
def fx(family: str) -> FxGraph:
    """The family's model as adaptc captures it."""
    built = model(family)
    return capture(built.config, dict(built.named_parameters(remove_duplicate=False)))


def program(family: str) -> Program:
    """A program of this one model."""
    return Program({"lm": fx(family)}, (Run("lm"),))


def feeds(batch: int = 2, tokens: int = 11, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random token ids and their positions."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, (batch, tokens))
    return {"input_ids": ids, "position_ids": np.tile(np.arange(tokens), (batch, 1))}


def eager(family: str, given: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """transformers' own logits, float32[batch, tokens, vocab]."""
    with torch.no_grad():
        logits = model(family)(torch.from_numpy(given["input_ids"]), use_cache=False).logits
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result


@cache
def lowered(family: str) -> Program:
    """The family's program after `lower`; passes fork it, so tests may share it."""
    from adaptc.passes import Pipeline
    from adaptc.passes.lower.lower import Lower

    return Pipeline((Lower(),)).run(program(family))


@cache
def cached(family: str, max_tokens: int = 64) -> Program:
    """The family's program after `lower`, `kv_cache` and `logits_from`."""
    from adaptc.passes import Pipeline
    from adaptc.passes.decoder.kv_cache import KvCache
    from adaptc.passes.decoder.logits_from import LogitsFrom

    return Pipeline((KvCache(max_tokens=max_tokens), LogitsFrom())).run(lowered(family))


def onnx(program: Program) -> OnnxGraph:
    """The one graph of a lowered program."""
    return program.graph("lm", OnnxGraph)


def empty_cache(graph: OnnxGraph, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Zeros for the cache that a decoder graph reads."""
    return {
        str(value.name): np.zeros(
            [batch, *(size for size in sizes(value)[1:] if isinstance(size, int))], (value.dtype or FLOAT).numpy()
        )
        for value in graph.model.graph.inputs
        if str(value.name).startswith("past.")
    }


def step(
    graph: OnnxGraph, ids: npt.NDArray[Any], past: dict[str, npt.NDArray[Any]] | None = None, before: int = 0
) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[Any]]]:
    """Run one step of a decoder graph: logits for its tokens, and the cache after it."""
    batch, tokens = ids.shape
    past = empty_cache(graph, batch) if past is None else past
    outputs = graph.run(
        {
            "input_ids": ids,
            "seqlens_k": np.full(batch, before + tokens - 1, np.int32),
            "total_sequence_length": np.array(before + tokens, np.int32),
            "logits_from": np.array([0]),
            **past,
        }
    )
    return outputs["logits"].astype(np.float32), {name: outputs[name.replace("past", "present")] for name in past}
