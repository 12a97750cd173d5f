"""Adapters as PEFT itself makes, saves and runs them, over tiny models."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from adaptc.sources.find import find_source
from adaptc.spec.schema import AdapterSpec, ModelSpec
from tests.models.tiny import COMMON, random_model
from tests.models.tiny_tokenizer import byte_level, save

IDS = torch.tensor([[5, 9, 40, 7, 60, 33], [1, 2, 3, 50, 20, 11]])


def base(folder: Path, model_type: str = "llama", **options: Any) -> Any:
    """Write a tiny base into a folder; returns the model."""
    tokenizer = byte_level()
    special = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1}
    model = random_model(model_type, {**COMMON, **special, **options}, spread=0.1)
    model.save_pretrained(folder)
    save(tokenizer, folder)
    return model


def adapter(folder: Path, of: Path, seed: int = 1, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Write an adapter of random weights into a folder; returns PEFT's model, which runs it beside the base."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(of, attn_implementation="eager", dtype=torch.float32)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "init_lora_weights": False, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config).eval()
    torch.manual_seed(seed)
    bias = options.get("bias", "none") != "none"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            trained = "lora_" in name or "modules_to_save" in name
            if trained or (bias and name.endswith("bias") and parameter.requires_grad):
                parameter.normal_(0.0, 0.2).copy_(parameter.to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.to(dtype).save_pretrained(str(folder))
    return wrapped.float()


def loaded(of: Path, folder: Path) -> Any:
    """PEFT's model of a saved adapter, beside the base."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(of, attn_implementation="eager", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits.float()
    return found


def ours(of: Path, *adapters: AdapterSpec | Path) -> Any:
    """transformers' model of what adaptc reads: the base with the adapters in its weights."""
    specs = tuple(each if isinstance(each, AdapterSpec) else AdapterSpec(source=str(each)) for each in adapters)
    source = find_source(ModelSpec(source=str(of), adapters=specs), Path.cwd())
    config = source.config()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tensors = dict(source.tensors())
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model


def names_of(files: Iterable[Path]) -> set[str]:
    return {path.name for path in files}
