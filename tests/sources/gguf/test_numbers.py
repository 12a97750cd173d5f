"""What a compiled GGUF file computes is what llama.cpp computes from it: families, keys, biases, ggml types.

llama.cpp keeps float32 throughout, so only the order of sums differs: log probabilities were measured to differ by less
than 1e-4. For Gemma, GPT-2, GPT-NeoX and Falcon it looks GELU up in a table of float16, which was measured to cost up
to 2.1e-3. A wrong window, scale, cap or bias costs 0.02 and more, as the test of a wrong window shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models.gguf_file import tiny_model, write
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.vocabularies import byte_level

TOKENS = byte_level("qwen2")
COUNT = len(TOKENS.texts)
PROMPTS = [np.random.default_rng(length).integers(0, COUNT, length).tolist() for length in (1, 9, 33, 60)]


def model_of(source: Source) -> Any:
    """transformers' model of what adaptc reads."""
    import transformers

    config = source.config()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(dict(source.tensors()), strict=False)
    model.tie_weights()
    return model


def largest_difference(path: Path, reference: LlamaCpp | list[dict[int, float]]) -> float:
    """Of the log probabilities after each of `PROMPTS`, over all tokens that llama.cpp tells."""
    model = model_of(find_source(ModelSpec(source=str(path)), path.parent))
    told = reference if isinstance(reference, list) else reference.log_probabilities(path, PROMPTS, COUNT)
    worst = 0.0
    for prompt, wanted in zip(PROMPTS, told, strict=True):
        with torch.no_grad():
            found = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].log_softmax(-1).tolist()
        assert len(wanted) > COUNT // 2
        worst = max(worst, *(abs(found[token] - value) for token, value in wanted.items()))
    return worst


WINDOW = {"sliding_window": 7}
FOUR_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SCALES = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
LLAMA4 = {"num_local_experts": 4, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_hidden_layers": 5}
NO_PAD: dict[str, Any] = {"pad_token_id": None}
FALCON = {"head_dim": None, "ffn_hidden_size": 96}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0, 2.0, 4.0, 8.0, 9.0, 10.0, 11.0, 12.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "attention_factor": 1.2,
    "factor": 4.0,
}


def long_rope(original: int) -> dict[str, Any]:
    """Short factors for texts of so many tokens. llama.cpp goes by its context of 512, transformers by the text."""
    return {"rope_parameters": {**LONG, "original_max_position_embeddings": original}}


FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "llama", {}, {}),
    "llama tied": ("llama", "llama", {"tie_word_embeddings": True}, {}),
    "llama, all biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "mistral as llama": ("mistral", "llama", {"sliding_window": None}, {}),
    "a window that llama has not": ("llama", "llama", {}, {"llama.attention.sliding_window": 5}),
    "linear": ("llama", "llama", {}, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
    "a factor without a kind": ("llama", "llama", {}, {"llama.rope.scaling.factor": 4.0}),
    "the old key": ("llama", "llama", {}, {"llama.rope.scale_linear": 4.0}),
    "none": ("llama", "llama", {}, {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}),
    "yarn": (
        "llama",
        "llama",
        {},
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
        },
    ),
    "yarn of the context": (
        "qwen2",
        "qwen2",
        {},
        {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 8.0, "qwen2.rope.scaling.attn_factor": 1.5},
    ),
    "no base": ("llama", "llama", {}, {"llama.rope.freq_base": None}),
    "lists": ("llama", "llama", {}, {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [96, 96]}),
    "qwen2": ("qwen2", "qwen2", {}, {}),
    "qwen3": ("qwen3", "qwen3", {}, {}),
    "gemma": ("gemma", "gemma", {}, {}),
    "gemma2": ("gemma2", "gemma2", {**WINDOW, "query_pre_attn_scalar": 16}, {}),
    "gemma2, other caps": (
        "gemma2",
        "gemma2",
        {**WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
        {},
    ),
    "gemma2 without keys": (
        "gemma2",
        "gemma2",
        {**WINDOW, "query_pre_attn_scalar": 16},
        {
            f"gemma2.{key}": None
            for key in ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
        },
    ),
    "gemma2, windows in a period of 3": (
        "gemma2",
        "gemma2",
        {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 4},
        {"gemma2.attention.sliding_window_pattern": 3},
    ),
    "gemma3": ("gemma3_text", "gemma3", {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}, {}),
    "gemma3, listed windows": (
        "gemma3_text",
        "gemma3",
        {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 3},
        {"gemma3.attention.sliding_window_pattern": [True, False, True]},
    ),
    "gemma3, another sliding base, scaled": (
        "gemma3_text",
        "gemma3",
        {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
        {
            "gemma3.rope.freq_base_swa": 500.0,
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": 8.0,
            "gemma3.final_logit_softcapping": 4.0,
        },
    ),
    "gemma3 without a window": (
        "gemma3_text",
        "gemma3",
        {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
        {"gemma3.attention.sliding_window": None},
    ),
    "mixtral as llama": ("mixtral", "llama", {"num_local_experts": 5, "num_experts_per_tok": 2}, {}),
    "qwen2 with experts": (
        "qwen2_moe",
        "qwen2moe",
        {**FOUR_EXPERTS, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
        {},
    ),
    "qwen2 with experts of unstated widths": (
        "qwen2_moe",
        "qwen2moe",
        {**FOUR_EXPERTS, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 96},
        {"qwen2moe.expert_feed_forward_length": None, "qwen2moe.expert_shared_feed_forward_length": None},
    ),
    "qwen3 with experts": (
        "qwen3_moe",
        "qwen3moe",
        {**FOUR_EXPERTS, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {},
    ),
    "granite with experts": (
        "granitemoe",
        "granitemoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, **SCALES},
        {},
    ),
    "llama 4": ("llama4_text", "llama4", LLAMA4, {}),
    "llama 4, every second layer with experts": (
        "llama4_text",
        "llama4",
        {**LLAMA4, "interleave_moe_layer_step": 2},
        {},
    ),
    "olmoe": ("olmoe", "olmoe", {**FOUR_EXPERTS, "num_key_value_heads": 4, "eos_token_id": None}, {}),
    "phi3": ("phi3", "phi3", NO_PAD, {}),
    "phi3, a part of each head, a window that llama.cpp has not": (
        "phi3",
        "phi3",
        {**NO_PAD, "partial_rotary_factor": 0.5},
        {"phi3.attention.sliding_window": 5},
    ),
    "phi3, long factors": ("phi3", "phi3", {**NO_PAD, **long_rope(1)}, {}),
    "phi3, short factors": ("phi3", "phi3", {**NO_PAD, **long_rope(512)}, {}),
    "olmo2": ("olmo2", "olmo2", NO_PAD, {}),
    "granite": ("granite", "granite", {**SCALES, "tie_word_embeddings": True}, {}),
    "granite without keys": (
        "granite",
        "granite",
        {"attention_multiplier": 0.25, "attention_bias": True, "mlp_bias": True},
        {f"granite.{key}": None for key in ("embedding_scale", "residual_scale", "attention.scale")},
    ),
    "smollm3": ("smollm3", "smollm3", {**NO_PAD, "num_hidden_layers": 5}, {}),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True}, {}),
    "stablelm, side by side, norms of heads": (
        "stablelm",
        "stablelm",
        {"use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 0.5},
        {},
    ),
    "cohere": ("cohere", "command-r", {"logit_scale": 0.25, "tie_word_embeddings": True}, {}),
    "cohere with norms of heads": (  # which llama.cpp expects of so deep a model
        "cohere",
        "command-r",
        {"use_qk_norm": True, "tie_word_embeddings": True, "num_hidden_layers": 64},
        {},
    ),
    "cohere2": ("cohere2", "cohere2", {**WINDOW, "tie_word_embeddings": True, "num_hidden_layers": 5}, {}),
    "gpt2": ("gpt2", "gpt2", {"n_inner": 96, "tie_word_embeddings": True}, {}),
    "gpt2, another head": ("gpt2", "gpt2", {"n_inner": 64}, {}),
    "gpt_neox": ("gpt_neox", "gptneox", {"hidden_act": "gelu"}, {}),
    "gpt_neox, one block after the other": (
        "gpt_neox",
        "gptneox",
        {"use_parallel_residual": False, "rotary_pct": 0.5},
        {},
    ),
    "falcon": ("falcon", "falcon", {**FALCON, "tie_word_embeddings": True}, {}),
    "falcon, two norms": ("falcon", "falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, {}),
    "falcon, one norm": (
        "falcon",
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {},
    ),
}


def limit(architecture: str) -> float:
    return 5e-3 if architecture.startswith(("gemma", "gpt", "falcon")) else 1e-4


@needs_llama_cpp
@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_are_llama_cpp_s(name: str, tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    model_type, architecture, options, keys = FAMILIES[name]
    path = write(tmp_path / "m.gguf", tiny_model(model_type, COUNT, **options), architecture, TOKENS, keys)
    assert largest_difference(path, llama_cpp) < limit(architecture)


@needs_llama_cpp
def test_a_wrong_window_is_seen(tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    model = tiny_model("gemma2", COUNT, sliding_window=7, query_pre_attn_scalar=16)
    path = write(tmp_path / "m.gguf", model, "gemma2", TOKENS)
    wanted = llama_cpp.log_probabilities(path, PROMPTS, COUNT)
    write(path, model, "gemma2", TOKENS, {"gemma2.attention.sliding_window": 8})
    assert largest_difference(path, wanted) > 4 * limit("gemma2")


ATTENTION = ("attn_q", "attn_k", "attn_v")


@needs_llama_cpp
@pytest.mark.parametrize(
    ("model_type", "options", "biased"),
    [
        ("llama", {"attention_bias": True}, ATTENTION),
        ("llama", {"attention_bias": True}, ("attn_v",)),
        ("llama", {"mlp_bias": True}, ("ffn_up", "ffn_down")),
        ("llama", {"attention_bias": True, "mlp_bias": True}, ("attn_output", "ffn_gate")),
        ("qwen2", {}, ()),
        ("qwen2", {}, ("attn_k",)),
        ("qwen3", {"attention_bias": True}, ATTENTION),
        ("gemma", {"attention_bias": True}, ATTENTION),
    ],
    ids=str,
)
def test_a_bias_that_the_file_lacks_is_zero(
    model_type: str, options: dict[str, Any], biased: tuple[str, ...], tmp_path: Path, llama_cpp: LlamaCpp
) -> None:
    model = tiny_model(model_type, COUNT, **options)
    names = (*ATTENTION, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    without = {f"blk.{layer}.{name}.bias" for layer in range(2) for name in names if name not in biased}
    path = write(tmp_path / "m.gguf", model, model_type, TOKENS, without=without)
    assert largest_difference(path, llama_cpp) < limit(model_type)
