"""Weights with an adapter in them compute what PEFT computes with the adapter beside the base.

PEFT's model is the one that reads the saved folder again, and runs A and B unmerged. Both sides are float32 and differ
in the order of sums: 3e-6 of logits of some 2 was the most that was seen.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptc.sources.find import find_source
from adaptc.spec.schema import AdapterSpec, ModelSpec
from tests.models import vlm
from tests.sources.adapters.made import adapter, base, loaded, logits, ours

peft = pytest.importorskip("peft")

QV = ["q_proj", "v_proj"]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a list": ("llama", {}, {"target_modules": QV}),
    "whole names": ("llama", {}, {"target_modules": ["model.layers.1.mlp.up_proj", "k_proj"]}),
    "a regular expression": ("llama", {}, {"target_modules": r".*\.(1|2)\..*(q|down)_proj"}),
    "all-linear": ("llama", {}, {"target_modules": "all-linear"}),
    "all-linear, excluded": ("llama", {}, {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "excluded by a regular expression": ("llama", {}, {"target_modules": QV, "exclude_modules": r".*layers\.0.*"}),
    "rank and alpha patterns": (
        "llama",
        {},
        {
            "target_modules": [*QV, "down_proj"],
            "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 7},
            "alpha_pattern": {"v_proj": 3, r"model\.layers\.2\..*q_proj": 40},
        },
    ),
    "rslora": ("llama", {}, {"target_modules": QV, "use_rslora": True, "r": 8}),
    "rslora with patterns": (
        "llama",
        {},
        {"target_modules": QV, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    ),
    "fan_in_fan_out, which is for other layers": ("llama", {}, {"target_modules": QV, "fan_in_fan_out": True}),
    "some layers": ("llama", {}, {"target_modules": QV, "layers_to_transform": [0, 2]}),
    "one layer": ("llama", {}, {"target_modules": QV, "layers_to_transform": 1}),
    "some layers of a pattern": (
        "llama",
        {},
        {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "a saved head": ("llama", {}, {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "a saved norm and a saved projection": (
        "llama",
        {},
        {"target_modules": [*QV, "o_proj"], "modules_to_save": ["norm", "o_proj"]},
    ),
    "a saved embedding": ("llama", {}, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "a saved head that was tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": QV, "modules_to_save": ["lm_head"]},
    ),
    "a saved embedding that was tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": QV, "modules_to_save": ["embed_tokens"]},
    ),
    "a saved embedding that stays tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "an embedding": ("llama", {}, {"target_modules": [*QV, "embed_tokens"]}),
    "an embedding that was tied": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens"]}),
    "a head that was tied": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["lm_head", "up_proj"]}),
    "an embedding that stays tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    ),
    "a scaled embedding": (
        "gemma3_text",
        {"tie_word_embeddings": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "tied and untouched": ("llama", {"tie_word_embeddings": True}, {"target_modules": QV}),
    "all biases": ("qwen2", {}, {"target_modules": QV, "bias": "all"}),
    "biases of LoRA's layers": ("qwen2", {}, {"target_modules": QV, "bias": "lora_only"}),
    "a bias beside B": ("qwen2", {}, {"target_modules": QV, "lora_bias": True, "use_rslora": True}),
    "qwen3": ("qwen3", {}, {"target_modules": "all-linear"}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_peft_does(case: str, tmp_path: Path) -> None:
    family, options, config = CASES[case]
    plain = logits(base(tmp_path / "base", family, **options))
    adapter(tmp_path / "lora", tmp_path / "base", **config)
    theirs = logits(loaded(tmp_path / "base", tmp_path / "lora"))
    assert (theirs - plain).abs().max() > 0.005  # the adapter changes something
    torch.testing.assert_close(logits(ours(tmp_path / "base", tmp_path / "lora")), theirs, rtol=0, atol=2e-5)


def test_weights_in_half_precision(tmp_path: Path) -> None:
    base(tmp_path / "base")
    adapter(tmp_path / "lora", tmp_path / "base", target_modules=QV, dtype=torch.bfloat16)
    theirs = logits(loaded(tmp_path / "base", tmp_path / "lora").float())
    torch.testing.assert_close(logits(ours(tmp_path / "base", tmp_path / "lora")), theirs, rtol=0, atol=2e-5)


def test_several_add_up_by_their_weights(tmp_path: Path) -> None:
    plain = base(tmp_path / "base")
    adapter(tmp_path / "one", tmp_path / "base", seed=1, target_modules=QV)
    adapter(tmp_path / "two", tmp_path / "base", seed=2, target_modules=["q_proj", "up_proj"], r=2, use_rslora=True)
    theirs = loaded(tmp_path / "base", tmp_path / "one")
    theirs.load_adapter(tmp_path / "two", adapter_name="two")
    theirs.base_model.set_adapter(["default", "two"])
    weights = {"default": 0.5, "two": -1.5}
    for module in theirs.modules():
        for name, weight in weights.items():
            if name in getattr(module, "lora_A", {}):
                module.scaling[name] *= weight
    found = ours(
        tmp_path / "base",
        AdapterSpec(source=str(tmp_path / "one"), weight=0.5),
        AdapterSpec(source=str(tmp_path / "two"), weight=-1.5),
    )
    torch.testing.assert_close(logits(found), logits(theirs), rtol=0, atol=2e-5)
    assert (logits(found) - logits(plain)).abs().max() > 0.05


def test_a_saved_module_counts_by_its_weight(tmp_path: Path) -> None:
    plain = base(tmp_path / "base")
    adapter(tmp_path / "lora", tmp_path / "base", target_modules=QV, modules_to_save=["lm_head"])
    whole, half = (
        ours(tmp_path / "base", AdapterSpec(source=str(tmp_path / "lora"), weight=weight)) for weight in (1.0, 0.5)
    )
    torch.testing.assert_close(
        half.lm_head.weight, (plain.lm_head.weight + whole.lm_head.weight) / 2, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("spelling", ["model.language_model.", "language_model.model."])
def test_a_model_that_takes_images(spelling: str, tmp_path: Path) -> None:
    """Vision and text have layers of the same names; older files have the names of their time."""
    plain = vlm.write(tmp_path, "llava", num_hidden_layers=2)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    theirs = peft.get_peft_model(
        copy.deepcopy(plain), peft.LoraConfig(r=4, target_modules=[*QV, "linear_1"], init_lora_weights=False)
    )
    theirs.save_pretrained(str(tmp_path / "lora"))
    file = tmp_path / "lora" / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({name.replace("model.language_model.", spelling): value for name, value in stored.items()}, file)
    merged = theirs.merge_and_unload().state_dict()
    specs = (AdapterSpec(source=str(tmp_path / "lora")),)
    found = find_source(ModelSpec(source=str(tmp_path / "model"), adapters=specs), Path.cwd()).tensors()
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert {name.split(".")[1] for name in changed} == {"language_model", "vision_tower", "multi_modal_projector"}
    for name in found:
        torch.testing.assert_close(found[name], merged[name], rtol=0, atol=1e-5)
