"""A tiny source and what makes another model of it: each fault is one that compilers of models have made.

A bundle is compiled from the source as it is. Then the folder is changed, so that transformers reads another model: the
bundle is now what a compiler would have written that had overlooked what was changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny_tokenizer
from tests.models.tiny import COMMON, random_model

SPEC = "version: 1\nmodels: {{lm: {{source: model}}}}\ntarget: {{weights: {weights}, max_tokens: 96}}\n"
TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"


def write(folder: Path) -> Path:
    """Write a Gemma 3 of two layers, one of them with a window, as folder/model."""
    tokenizer = tiny_tokenizer.byte_level()
    options: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    model = random_model("gemma3_text", {**COMMON, **options})
    model.save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def changed(source: Path, into: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a source's folder with a change; returns the folder that the spec's paths start from."""
    shutil.copytree(source / "model", into / "model")
    change(into / "model")
    return into


def config(**values: Any) -> Callable[[Path], None]:
    """A change of keys of config.json."""

    def change(folder: Path) -> None:
        _edit(folder / "config.json", values)

    return change


def _edit(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _theta(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())["rope_parameters"]
    _edit(folder / "config.json", {"rope_parameters": {n: each | {"rope_theta": 500.0} for n, each in values.items()}})


def _weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def _offset(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name] + 1


def _head(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(1))]

    _edit(folder / "config.json", {"tie_word_embeddings": False})
    _weights(add)(folder)


MODELS: Mapping[str, Callable[[Path], None]] = {
    "causal mask in the place of none": config(use_bidirectional_attention=True),
    "window ignored": config(sliding_window=4),
    "window on another layer": config(layer_types=["full_attention", "sliding_attention"]),
    "other base of RoPE": _theta,
    "other scale of attention": config(query_pre_attn_scalar=20),
    "soft cap ignored": config(final_logit_softcapping=4.0),
    "other epsilon of norms": config(rms_norm_eps=1e-2),
    "other activation": config(hidden_activation="silu"),
    "head dropped": _head,
    "norms without their offset": _weights(_offset),
}
"""Faults of a model, by what a compiler would have done."""


def _tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        file = folder / "tokenizer.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return rewrite


def _begin(values: dict[str, Any]) -> None:
    begin, text = {"SpecialToken": {"id": "<|start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [0], "tokens": ["<|start|>"]}},
    }


def _space(values: dict[str, Any]) -> None:
    values["pre_tokenizer"]["add_prefix_space"] = True


def _normalized(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "NFC"}


def _added(values: Path) -> None:
    tokens = {"321": {"content": "<|tool|>", "special": True}}
    _edit(values / "tokenizer_config.json", {"added_tokens_decoder": tokens})


def changed_template(folder: Path) -> None:
    """Another chat template."""
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|end|>", " <|end|>").replace("<|im_end|>", " <|im_end|>"))


def changed_end(folder: Path) -> None:
    """One more end of answers."""
    _edit(folder / "generation_config.json", {"eos_token_id": [1, 7]})


def pieces_of_digits(folder: Path) -> None:
    """Digits are cut as letters are, and not one by one, which the first of the tokenizer's steps does."""

    def change(values: dict[str, Any]) -> None:
        first, *steps = values["pre_tokenizer"]["pretokenizers"]
        assert "N" in first["pattern"]["Regex"]
        values["pre_tokenizer"]["pretokenizers"] = steps

    _tokenizer(change)(folder)


TEXTS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "no BOS": ("tokenizer", _tokenizer(_begin)),
    "an added token is ordinary text": ("tokenizer", _added),
    "no space before the text": ("tokenizer", _tokenizer(_space)),
    "not normalized": ("tokenizer", _tokenizer(_normalized)),
    "another template": ("chat template", changed_template),
    "an end of answers missing": ("ends of answers", changed_end),
    "no template": ("chat template", lambda folder: (folder / "chat_template.jinja").unlink()),
}
"""Faults of text, by what a compiler would have done; and the part that must see each."""
