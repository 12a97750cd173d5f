"""Keys of a GGUF file: read, neutral, refused by name, or a remark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from adaptc.checks.check import check
from adaptc.errors import LoadError
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec, Spec, TargetSpec
from tests.models.gguf_file import tiny_model, write
from tests.sources.gguf.vocabularies import byte_level

TOKENS = byte_level("qwen2")


def source(path: Path, keys: dict[str, Any], architecture: str = "llama") -> Source:
    model_type = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    model = tiny_model(model_type, len(TOKENS.texts), num_hidden_layers=2, hidden_size=32, intermediate_size=32)
    write(path, model, architecture, TOKENS, keys)
    return find_source(ModelSpec(source=str(path)), path.parent)


REFUSED = [
    ("llama.attention.causal", False),
    ("llama.attention.scale", 0.5),
    ("llama.attention.clamp_kqv", 8.0),
    ("llama.attention.max_alibi_bias", 8.0),
    ("llama.attention.temperature_length", 8192),
    ("llama.attn_logit_softcapping", 50.0),
    ("llama.final_logit_softcapping", 30.0),
    ("llama.logit_scale", 0.0625),
    ("llama.residual_scale", 0.22),
    ("llama.embedding_scale", 12.0),
    ("llama.nextn_predict_layers", 1),
    ("llama.attention.key_length", 8),
    ("llama.attention.value_length", 8),
    ("llama.attention.key_length_swa", 8),
    ("llama.rope.dimension_count", 8),
    ("llama.rope.scaling.type", "longrope"),
    ("llama.rope.scaling.attn_factor", 1.2),
    ("llama.rope.scaling.yarn_beta_fast", 16.0),
    ("llama.rope.scaling.yarn_ext_factor", 0.0),
    ("llama.rope.scaling.yarn_log_multiplier", 0.1),
    ("llama.attention.head_count_kv", [2, 4]),
    ("llama.feed_forward_length", [32, 64]),
    ("gemma2.rope.freq_base_swa", 5000.0),
    ("gemma2.attn_logit_softcapping", 0.0),
    ("gemma2.final_logit_softcapping", math.nan),
    ("gemma2.attention.sliding_window_pattern", [True]),
    ("gemma3.attn_logit_softcapping", 50.0),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_keys_that_make_another_model_are_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    architecture = key.partition(".")[0]
    with pytest.raises(LoadError) as caught:
        source(tmp_path / "m.gguf", {key: value}, architecture).config()
    said = str(caught.value)
    assert "\n" not in said
    assert key in said or ("experts" in said and "expert" in key) or ("scaling" in said and "scaling" in key)


def test_neutral_values_and_keys_without_effect_are_taken_in_silence(tmp_path: Path) -> None:
    neutral = {
        "llama.attention.causal": True,
        "llama.attention.scale": 0.0,
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
        "llama.vocab_size": 5,
        "llama.tensor_data_layout": "Meta AI original pth",
        "llama.rope.scaling.finetuned": True,
        "llama.pooling_type": 3,
        "llama.attention.layer_norm_epsilon": 1e-5,
        "llama.attention.head_count": [4, 4],
    }
    found = source(tmp_path / "m.gguf", neutral)
    assert (found.config().num_attention_heads, found.config().vocab_size) == (4, len(TOKENS.texts))
    assert found.remarks() == ()


def test_a_key_that_nobody_knows_is_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    found = source(path, {"llama.attention.tomorrow": 3, "llama.new": "x", "general.other": 1})
    [remark] = found.remarks()
    assert "llama.attention.tomorrow, llama.new" in remark
    spec = Spec(version=1, models={"lm": ModelSpec(source="m.gguf")}, target=TargetSpec(max_tokens=64))
    assert ("lm", "warn", remark) in [(each.about, each.level, each.text) for each in check(spec, tmp_path).findings]


def test_a_window_that_llama_cpp_has_not_is_a_remark(tmp_path: Path) -> None:
    found = source(tmp_path / "m.gguf", {"llama.attention.sliding_window": 16})
    assert "attention is over the whole text" in found.remarks()[0]
    assert getattr(found.config(), "sliding_window", None) is None
