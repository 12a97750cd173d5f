"""Values of config keys that change the arithmetic: what capture makes of them is what transformers computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adaptc.capture.text import capture
from adaptc.errors import LoadError
from tests.close import ENGINE, assert_close
from tests.models import tiny

GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 16}
UPPER = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
PHI: dict[str, Any] = {"pad_token_id": None, "head_dim": 8, "original_max_position_embeddings": 64}
LONG_ROPE = {**tiny.LONG, "attention_factor": 1.3}
SLIDING = {"use_sliding_window": True, "sliding_window": 3}
FALCON: dict[str, Any] = {"head_dim": None, "ffn_hidden_size": 48}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
BASE = {"rope_theta": 1e4}
DYNAMIC = {**BASE, "rope_type": "dynamic", "factor": 3.0}
TWO_KINDS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"sliding_attention": {**BASE, "rope_type": "linear", "factor": 2.0}, "full_attention": DYNAMIC},
}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {**YARN, "attention_factor": 0.7, "truncate": False}}),
        ("llama", {"rope_parameters": {**BASE, "rope_type": "linear", "factor": 3.0}}),
        ("llama", {"rope_parameters": {**BASE, "rope_type": "proportional", "partial_rotary_factor": 0.5}}),
        ("llama", {"max_position_embeddings": 8, "rope_parameters": DYNAMIC}),
        ("llama", {"max_position_embeddings": 64, "rope_parameters": DYNAMIC}),
        ("gemma3_text", {**GEMMA, **TWO_KINDS, "max_position_embeddings": 8}),
        ("qwen2", UPPER),
        ("qwen3", {**UPPER, "attention_bias": True}),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
        ("gemma3_text", {**GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 2, "sliding_window": 3}),
        ("phi3", {**PHI, "rope_parameters": LONG_ROPE}),
        ("phi3", {**PHI, "rope_parameters": LONG_ROPE | {"original_max_position_embeddings": 8}}),
        ("smollm3", {"pad_token_id": None, "num_hidden_layers": 3, "no_rope_layers": [1, 0, 0], **SLIDING}),
        ("cohere", {"head_dim": None, "use_qk_norm": True, "attention_bias": True, "logit_scale": 2.0}),
        ("cohere2", {"num_hidden_layers": 3, "sliding_window_pattern": 2, "sliding_window": 3, "attention_bias": True}),
        ("stablelm", {"head_dim": None, "qk_layernorm": True, "partial_rotary_factor": 0.5}),
        ("gpt2", {"head_dim": None, "n_inner": 48, "activation_function": "relu", "reorder_and_upcast_attn": True}),
        ("gpt_neox", {"head_dim": None, "rotary_pct": 1.0, "hidden_act": "gelu_fast"}),
        ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
        ("falcon", {**FALCON, "multi_query": False, "parallel_attn": True, "bias": True}),
        ("falcon", {**FALCON, "apply_residual_connection_post_layernorm": True, "parallel_attn": False}),
    ],
)
def test_capture_follows_the_value(family: str, options: dict[str, Any]) -> None:
    model = tiny.random_model(family, {**tiny.COMMON, "num_hidden_layers": 1, **options})
    feeds = tiny.feeds(2, 12)
    graph = capture(model.config, dict(model.named_parameters(remove_duplicate=False)))
    logits = graph.run(feeds)["logits"].astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(feeds["input_ids"]), use_cache=False).logits.numpy()
    assert_close(logits, expected, **ENGINE)


def test_falcon_in_a_form_that_transformers_does_not_run_is_refused() -> None:
    model = tiny.random_model("falcon", {**tiny.COMMON, **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2})
    model.config.parallel_attn = False
    with pytest.raises(LoadError, match=r"^falcon: new_decoder_architecture with parallel_attn false: "):
        capture(model.config, dict(model.named_parameters(remove_duplicate=False)))
