"""Small tokenizers of the two kinds pretrained LLMs have."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = ["the cat sat on the mat", "héllo wörld", "日本語のテキスト", "👩‍👩‍👧 family 👍🏽", "naïve café"] * 3
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("⟨tool⟩ é", normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral and Gemma have it: words begin with ▁, unknown characters are spelled in bytes."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<s>", "</s>", *spelled, *"▁abcdefghijklmnoprstuvwxyz", "▁t", "th"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "t"), ("t", "h")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def files(tokenizer: Tokenizer, template: str | None = TEMPLATE) -> dict[str, bytes]:
    """The files of a bundle's tokenizer folder."""
    bos = {"__type": "AddedToken", "content": "<|start|>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # else a llama's is taken for one of SentencePiece
        "bos_token": bos,
        "eos_token": "<|end|>",
        "model_max_length": 1e30,
    }
    found = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    if template is not None:
        found["chat_template.jinja"] = template.encode()
    return found


def save(tokenizer: Tokenizer, folder: Path, template: str | None = TEMPLATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(tokenizer, template).items():
        (folder / name).write_bytes(content)
    return folder
