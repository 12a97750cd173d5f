"""Keys of config.json: real configs pass in silence, another model is refused by key, unknown keys are remarks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from adaptc.errors import LoadError
from adaptc.families.table import DECODERS
from adaptc.sources.find import find_source
from adaptc.sources.folder import config_keys
from adaptc.sources.folder.config_keys import refuse_keys, unknown_keys
from adaptc.spec.schema import ModelSpec
from tests.models import folder, vlm

# What config.json files on the hub hold beside the fields of today's config classes.
OLD_RELEASES: dict[str, Any] = {
    "_name_or_path": "meta/x",
    "add_cross_attention": False,
    "architectures": ["LlamaForCausalLM"],
    "attn_implementation": "flash_attention_2",
    "bad_words_ids": None,
    "do_sample": False,
    "gradient_checkpointing": False,
    "is_decoder": False,
    "max_length": 20,
    "num_beams": 1,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "quantization_config": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "transformers_version": "4.40.0",
    "unsloth_version": "2025.1",
    "use_bfloat16": False,
    "use_cache": True,
}


def write(path: Path, **values: Any) -> Any:
    path.mkdir(exist_ok=True)
    small = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    (path / "config.json").write_text(json.dumps(small | values))
    return find_source(ModelSpec(source="m"), path.parent)


@pytest.mark.parametrize("family", DECODERS)
def test_keys_of_real_configs_pass_in_silence(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family]()
    for values in (config.to_dict(), config.to_diff_dict(), config.to_dict() | OLD_RELEASES):
        refuse_keys("m", values)
        assert unknown_keys(config, values) == []


@pytest.mark.parametrize("family", ["llava", "idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "gemma3"])
def test_keys_of_parts_pass_in_silence(family: str) -> None:
    config = vlm.config(family)
    values = config.to_dict()
    refuse_keys("m", values)
    assert unknown_keys(config, values) == []
    values["text_config"]["odd"] = 1
    [remark] = unknown_keys(config, values)
    assert remark.startswith("config.json: text_config.odd: no key of transformers'")


@pytest.mark.parametrize("family", DECODERS)
def test_every_field_of_todays_config_classes_is_known(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family]()
    assert unknown_keys(config, dict.fromkeys((each.name for each in dataclasses.fields(config)), "another")) == []


def test_a_field_of_tomorrows_config_class_is_a_remark_where_a_file_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_keys, "_CAPTURED", config_keys._CAPTURED - {"mlp_bias"})
    config = transformers.LlamaConfig()
    assert unknown_keys(config, {"mlp_bias": False}) == []
    [remark] = unknown_keys(config, {"mlp_bias": True})
    assert remark.startswith("config.json: mlp_bias: transformers reads it, adaptc was not tried with it")


def test_an_unknown_key_is_a_remark(tmp_path: Path) -> None:
    found = write(tmp_path / "m", logit_scale=0.5, residual_multiplier=0.2)
    assert found.config().hidden_size == 32
    assert found.remarks()[0] == (
        "config.json: logit_scale, residual_multiplier: no key of transformers' llama; it is not read, nor by "
        "transformers"
    )


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("llama", {"is_causal": False}, "config.json: is_causal is False, which makes another model than adaptc"),
        ("gemma", {"use_bidirectional_attention": True}, "config.json: use_bidirectional_attention is True, which"),
        (
            "gemma3_text",
            {"use_bidirectional_attention": "all"},
            "config.json: use_bidirectional_attention is all, which",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "config.json: partial_rotary_factor is 0.5, which makes another"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "config.json: partial_rotary_factor is 0.5"),
        ("llama", {"per_layer_config": {"0": {}}}, "config.json: per_layer_config is {'0': {}}, which makes another"),
        ("llama", {"transformers_weights": "x.safetensors"}, "config.json: transformers_weights is x.safetensors"),
        ("llama", {"quantization_config": {"quant_method": "aqlm"}}, "its weights are quantized by aqlm; gptq, awq"),
        ("llama", {"quantization_config": {}}, "its weights are quantized by an unnamed method; gptq, awq, compr"),
        ("llama", {"quantization_config": 5}, "its weights are quantized by an unnamed method; gptq, awq, compr"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_attention'; ada"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is ['full_attention']; a list with a val"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; null or a whole number of positions is right"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0; a whole number from 1 to 2,147,483,648 is"),
        ("llama", {"vocab_size": -1}, "vocab_size is -1; a whole number from 1 to 2,147,483,648 is right"),
        (
            "llama",
            {"head_dim": 7},
            "transformers refuses this llama config: Class validation error for validator 'validate_rope': ",
        ),
        ("llama", {"hidden_size": 2**63}, "hidden_size is 9223372036854775808; a whole number from 1 to 2,147,483,"),
        ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0; a number from 0 to 1 is right"),
        ("llama", {"partial_rotary_factor": "a\nb"}, "config.json: partial_rotary_factor is a b, which makes another"),
        (
            "llama",
            {"quantization_config": {"quant_method": "a\nb"}},
            "its weights are quantized by a b; gptq, awq",
        ),
        ("llama", {"num_labels": 10**9}, "num_labels is 1000000000; at most 1,000,000 is right"),
        ("llama", {"num_labels": -1}, "num_labels is -1; at most 1,000,000 is right"),
        ("llama", {"text_config": 5}, "text_config is 5; an object is right"),
        ("llama", {"rope_scaling": {"partial_rotary_factor": 0.5}}, "config.json: partial_rotary_factor is 0.5, which"),
        (
            "falcon",
            {"alibi": True},
            "config.json: alibi is True, which makes another model than adaptc captures; false",
        ),
        ("gpt2", {"scale_attn_weights": False}, "config.json: scale_attn_weights is False, which makes another model"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "config.json: scale_attn_by_inverse_layer_idx is True, "),
        ("gpt2", {"add_cross_attention": True}, "config.json: add_cross_attention is True, which makes another model"),
        ("gpt2", {"n_head": 0}, "n_head is 0; a whole number from 1 to 2,147,483,648 is right"),
        ("gpt2", {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon is -1.0; a number from 0 to 1 is right"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is [1]; a list with a value for each of 2 layers is ri"),
        ("granite", {"partial_rotary_factor": 0.5}, "config.json: partial_rotary_factor is 0.5, which makes another"),
    ],
)
def test_another_model_is_refused_by_key(family: str, change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as refused:
        write(tmp_path / "m", model_type=family, **change).config()
    assert str(refused.value).startswith(f"m: {expected}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ['{"a": NaN}', '{"a": 1e999, "b": Infinity}', "[" * 100_000, "5", "\xff", "{"])
def test_what_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    found = write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(LoadError, match=r"m: config.json is not (JSON: |a JSON object)"):
        found.config()


def test_quantization_of_null_is_none(tmp_path: Path) -> None:
    assert write(tmp_path / "m", quantization_config=None).config().model_type == "llama"


@pytest.mark.parametrize("eos", ["x", 1.5, [1, "a"], True, {"a": 1}])
def test_special_tokens_are_whole_numbers(eos: Any, tmp_path: Path) -> None:
    folder.write(tmp_path)
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(LoadError, match=r"model: eos_token_id is .*; a token's id, or a list of these, is right"):
        find_source(ModelSpec(source="model"), tmp_path).token_ids()
