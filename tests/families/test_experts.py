"""What configs of models with experts may say, against transformers: which layers, how many, how much each counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adaptc.capture.text import capture
from tests.close import FLOAT32, assert_close
from tests.models import tiny

WINDOWED = {"use_sliding_window": True, "sliding_window": 4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral in a window": ("mixtral", {"sliding_window": 4}),
    "mixtral of one expert": ("mixtral", {"num_experts_per_tok": 1}),
    "qwen2 in windows": ("qwen2-moe", {**WINDOWED, "max_window_layers": 2}),
    "qwen2 that norms": ("qwen2-moe", {"norm_topk_prob": True, "num_experts_per_tok": 3}),
    "qwen2 with dense layers": ("qwen2-moe", {"mlp_only_layers": [0, 2]}),
    "qwen2 without biases": ("qwen2-moe", {"qkv_bias": False}),
    "qwen3 in a window": ("qwen3-moe", WINDOWED),
    "qwen3 that does not norm": ("qwen3-moe", {"norm_topk_prob": False}),
    "qwen3 of all experts": ("qwen3-moe", {"num_experts_per_tok": 4}),
    "qwen3 with every second layer": ("qwen3-moe", {"decoder_sparse_step": 2, "num_hidden_layers": 4}),
    "qwen3 with dense layers": ("qwen3-moe", {"mlp_only_layers": [1]}),
    "granite of one expert": ("granite-moe", {"num_experts_per_tok": 1}),
    "olmoe that clips": ("olmoe", {"clip_qkv": 0.4, "norm_topk_prob": False}),
    "olmoe with a key that it does not read": ("olmoe", {"sliding_window": 4}),
    "llama 4 of chunks that hold the text": ("llama4", {"attention_chunk_size": 64}),
    "llama 4 without chunks": ("llama4", {"layer_types": ["full_attention"] * 3}),
    "llama 4 that is not tuned": ("llama4", {"attn_temperature_tuning": False}),
    "llama 4 with RoPE everywhere": ("llama4", {"no_rope_layers": [1, 1, 1]}),
    "llama 4 without experts": ("llama4", {"moe_layers": []}),
    "llama 4 with biases": ("llama4", {"attention_bias": True}),
    "llama 4, norms of heads beside YaRN's factor": ("llama4", {"rope_parameters": YARN}),
    "llama 4, RoPE of Llama 3": ("llama4", {"rope_parameters": LLAMA3}),
    "one that tells its router's logits": ("mixtral", {"output_router_logits": True}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_logits_are_transformers(name: str) -> None:
    family, changed = CONFIGS[name]
    model_type, options = tiny.FAMILIES[family]
    model = tiny.random_model(model_type, {**tiny.COMMON, **options, **changed})
    graph = capture(model.config, dict(model.named_parameters(remove_duplicate=False)))
    feeds = tiny.feeds(2, 12)
    with torch.no_grad():
        expected = model(torch.from_numpy(feeds["input_ids"]), use_cache=False).logits.numpy()
    assert_close(graph.run(feeds)["logits"].astype(np.float32), expected, FLOAT32["rtol"], 1e-4)
