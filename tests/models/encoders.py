"""Tiny random encoders of every supported family, as Hugging Face folders, and what transformers computes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.models.word_tokenizer import SPECIAL, WORDS, tokenizer

Floats = npt.NDArray[np.float32]

COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
}
MODERN: dict[str, Any] = {
    "local_attention": 6,
    "num_hidden_layers": 5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert-one-type": ("bert", {"type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "modernbert": ("modernbert", MODERN),
    "modernbert-biased": ("modernbert", MODERN | {"norm_bias": True, "attention_bias": True, "mlp_bias": True}),
}
"""Encoders of texts by the names that tests call them: transformers' `model_type`, and what differs from `COMMON`."""

WHISPER: dict[str, Any] = {
    "vocab_size": 32,
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
"""Of a second of sound."""

TEXTS = (
    "the cat sat on the mat",
    "a dog",
    "red " * 30 + "cat",
    "",
    "it was very very quick and it ran under the tree",
    "blue blue tree",
)
"""Texts of several lengths."""


def random_model(kind: Any, config: Any, spread: float = 0.2, seed: int = 0) -> Any:
    """A model with random weights; norms' weights are near one, so that states stay of usual sizes."""
    torch.manual_seed(seed)
    built = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, spread)
    return built


def write(
    folder: Path, family: str, kind: Any = transformers.AutoModel, weights: str = "fp32", **options: Any
) -> tuple[Path, Any]:
    """Write folder/model and folder/model.yaml; returns the spec's path and the model."""
    model_type, own = FAMILIES[family]
    config = transformers.CONFIG_MAPPING[model_type](**(COMMON | own | options))
    model = random_model(kind, config)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model", config.pad_token_id)
    spec = folder / "model.yaml"
    spec.write_text(f"version: 1\nmodels:\n  e: {{source: model}}\ntarget: {{weights: {weights}}}\n")
    return spec, model


def save_tokenizer(folder: Path, pad: int = 0) -> None:
    """Write the tokenizer's files."""
    (folder / "tokenizer.json").write_text(tokenizer(pad).to_str())
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48} | named
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def sentence_files(folder: Path, *modes: str, normalize: bool = False, longest: int | None = None, **more: Any) -> None:
    """Write sentence-transformers' files; `more` is config_sentence_transformers.json."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{mode}": True for mode in modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(more))


def compiled(folder: Path, *settings: str) -> Bundle:
    """The bundle of folder/model.yaml."""
    spec = read_spec(folder / "model.yaml", settings)
    return compile_spec(spec, folder, folder / "bundle", Cache(folder / "cache")).bundle


def ids_of(texts: Sequence[Any], pad: int = 0, most: int | None = None) -> list[Any]:
    """What the tokenizers library makes of texts or pairs, without padding."""
    own = tokenizer(pad)
    own.no_padding()
    own.no_truncation()
    if most is not None:
        own.enable_truncation(most)
    return own.encode_batch(list(texts))


def states_alone(model: Any, encoded: Any) -> torch.Tensor:
    """transformers' states of one text by itself, without padding: float32 [tokens, width]."""
    with torch.no_grad():
        states: torch.Tensor = model(**_feeds(model, encoded)).last_hidden_state[0]
    return states


def logits_alone(model: Any, encoded: Any) -> Floats:
    """transformers' logits of one text by itself, float32 [labels]."""
    with torch.no_grad():
        found: Floats = model(**_feeds(model, encoded)).logits[0].numpy()
    return found


def _feeds(model: Any, encoded: Any) -> Mapping[str, torch.Tensor]:
    given = {"input_ids": torch.tensor([encoded.ids])}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = torch.tensor([encoded.type_ids])
    return given


def means(model: Any, texts: Sequence[str], pad: int = 0) -> Floats:
    """The mean of each text's states, as transformers computes them: float32 [texts, width]."""
    return np.stack([states_alone(model, each).mean(0).numpy() for each in ids_of(texts, pad)])


def write_whisper(folder: Path, **options: Any) -> tuple[Path, Any]:
    """Write folder/model, of a whole Whisper, and folder/model.yaml; returns the spec's path and the model."""
    config = transformers.WhisperConfig(**(WHISPER | options))
    model = random_model(transformers.AutoModelForSpeechSeq2Seq, config)
    model.save_pretrained(folder / "model")
    extractor(config).save_pretrained(folder / "model")
    spec = folder / "model.yaml"
    spec.write_text("version: 1\nmodels:\n  e: {source: model}\ntarget: {weights: fp32}\n")
    return spec, model


def extractor(config: Any) -> Any:
    """transformers' feature extractor, for sounds of the model's length."""
    return transformers.WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=config.max_source_positions // 50
    )


def sound(seconds: float, seed: int = 0) -> Floats:
    """Tones and noise, float32 [samples] of 16 kHz."""
    time = np.arange(int(seconds * 16000)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return (0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time) + noise).astype(np.float32)
