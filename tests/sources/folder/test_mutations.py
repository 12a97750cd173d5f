"""Configs and tokenizers with anything in them: a folder is read, or refused in one line; nothing else is raised.

ADAPTC_EXAMPLES=500 python -m pytest tests/sources/folder/test_mutations.py draws 500 of each.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptc.checks.check import check
from adaptc.errors import AdaptcError
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec, Spec, TargetSpec
from tests.models import folder
from tests.models.tokenizer_kinds import KINDS

EXAMPLES = int(os.environ.get("ADAPTC_EXAMPLES", "25"))  # of each of the three tests below
TOKENIZERS = ("llama2", "llama3", "gemma", "unigram", "gpt2")
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**32 - 1, 2**63, 10**30, 1.5, -0.0, 1e308, 1e-30]),
    st.sampled_from(["", "x", "32", "../x", "\ud800", "\0", "a\nb", "default", "dynamic", "yarn", "silu", "relu"]),
    st.sampled_from([[], {}, [1], ["a"], {"a": 1}, [[]], {"rope_type": "dynamic"}, {"content": "x"}, [None] * 3]),
)
RAW = st.sampled_from(
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"hidden_size": NaN}',
        b'{"hidden_size": 1e999}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"hidden_size": 32, "hidden_size": "x"}',
        b"{}",
        b"\0",
    ]
)
CONFIG_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "rope_scaling"),
    *("rope_theta", "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "model_type"),
    *("architectures", "dtype", "torch_dtype", "quantization_config", "auto_map", "text_config", "attention_bias"),
    *("mlp_bias", "attention_dropout", "layer_types", "sliding_window", "id2label", "num_labels", "use_cache"),
    *("attn_implementation", "_attn_implementation", "partial_rotary_factor", "is_causal", "transformers_version"),
    *("per_layer_config", "initializer_range", "pretraining_tp", "_name_or_path", "trust_remote_code", "odd"),
)
ROPE_KEYS = ("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor")
ROPE = st.fixed_dictionaries({}, optional=dict.fromkeys(ROPE_KEYS, ODD))
FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "model.safetensors.index.json", "model.safetensors", "preprocessor_config.json"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    folder.write(path)
    return path


def look_at(path: Path) -> None:
    """Do what `check` and the first stages of a compile do; a refusal is one line."""
    spec = Spec(version=1, models={"lm": ModelSpec(source="model")}, target=TargetSpec(max_tokens=64, weights="fp32"))
    for finding in check(spec, path).findings:
        assert "\n" not in finding.text
    source = find_source(spec.models["lm"], path)
    asked = (source.config, source.token_ids, source.tokenizer_files, source.sha256, source.remarks, source.tensors)
    for ask in (*asked, source.licence, source.image_processor):
        assert "\n" not in refusal(ask)


def refusal(ask: Callable[[], object]) -> str:
    """The message of a refusal; empty if there is none."""
    try:
        ask()
    except AdaptcError as error:
        return str(error)
    return ""


@SETTINGS
@given(changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), ODD | ROPE, min_size=1, max_size=3))
def test_configs(changes: dict[str, Any], model: Path) -> None:
    file = model / "model" / "config.json"
    whole = file.read_bytes()
    try:
        file.write_text(json.dumps(json.loads(whole) | changes))
        look_at(model)
    finally:
        file.write_bytes(whole)


@SETTINGS
@given(name=st.sampled_from(FILES), content=RAW | st.binary(max_size=64))
def test_files(name: str, content: bytes, model: Path) -> None:
    file = model / "model" / name
    whole = file.read_bytes() if file.exists() else None
    try:
        file.write_bytes(content)
        look_at(model)
    finally:
        file.unlink() if whole is None else file.write_bytes(whole)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in JSON; of long lists and objects only a few."""
    found = [path] if path else []
    inner = list(value.items())[:12] if isinstance(value, dict) else list(enumerate(value))[:3]
    for key, each in inner:
        found.append((*path, key))
        if isinstance(each, dict | list):
            found += places(each, (*path, key))
    return found


@pytest.fixture(scope="module")
def tokenizers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of some kinds of tokenizers, with the config and weights of `model`."""
    path = tmp_path_factory.mktemp("tokenizers")
    for kind in TOKENIZERS:
        KINDS[kind](path / kind / "model")
        for file in ("config.json", "model.safetensors"):
            shutil.copy(model / "model" / file, path / kind / "model")
    return path


@SETTINGS
@given(data=st.data())
def test_tokenizers(data: st.DataObject, tokenizers: Path) -> None:
    path = tokenizers / data.draw(st.sampled_from(TOKENIZERS))
    file = path / "model" / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    whole = file.read_bytes()
    values = json.loads(whole)
    at = data.draw(st.sampled_from(places(values)))
    holder = values
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = data.draw(ODD)
    try:
        file.write_text(json.dumps(values))
        look_at(path)
    finally:
        file.write_bytes(whole)
