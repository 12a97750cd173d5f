"""Folders with a tokenizer of each kind that pretrained models have, and texts to compare two tokenizers on.

Vocabularies are trained on the spot and small; normalizers, regular expressions and post-processing are those of the
models that a kind is named after.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.models.tiny_tokenizer import TEXT

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TRAINING = (*TEXT, "def f(x): return x[1:] + 10", "123 45 6.7", "मैं हूँ ไทย العربية", "don't we'll I'M")
_SPECIAL = ("<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>")


def _config(folder: Path, model_type: str, vocab: int, **more: Any) -> None:
    config = transformers.CONFIG_MAPPING[model_type](vocab_size=vocab, **more)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)


def _save(folder: Path, tokenizer: Tokenizer, model_type: str, **config: Any) -> Path:
    _config(folder, model_type, tokenizer.get_vocab_size() + 8)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _bytes(pattern: str | None, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern == _LLAMA3))
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(alphabet), special_tokens=list(_SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(_TRAINING, trainer)
    return tokenizer


def gpt2(folder: Path) -> Path:
    """GPT-2's bytes and regular expression, as SmolLM2 has them."""
    return _save(folder, _bytes(None), "llama", tokenizer_class="GPT2Tokenizer", eos_token="<|end|>")


def llama3(folder: Path) -> Path:
    """Three digits at most, words of the vocabulary whole, and a first token."""
    tokenizer = _bytes(_LLAMA3)
    first = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", first)]),
        ]
    )
    more = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "clean_up_tokenization_spaces": True}
    return _save(folder, tokenizer, "llama", tokenizer_class="PreTrainedTokenizerFast", **more)


def qwen(folder: Path) -> Path:
    """vocab.json and merges.txt without a tokenizer.json, special tokens in files of their own."""
    model = json.loads(_bytes(_QWEN, normalizers.NFC()).to_str())["model"]
    kept = {token: index for token, index in model["vocab"].items() if token not in _SPECIAL}
    vocab = {token: place for place, token in enumerate(kept)}
    _config(folder, "qwen2", len(vocab) + 8)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = (each if isinstance(each, str) else " ".join(each) for each in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token: len(vocab) + place for place, token in enumerate(_SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"additional_special_tokens": list(_SPECIAL[2:]), "eos_token": "<|end|>", "pad_token": "<|begin|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return folder


def _pieces(space: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of SentencePiece's BPE with bytes, and its merges."""
    letters = sorted(set("".join(_TRAINING).replace(" ", "")) - {"日"})  # one that bytes must spell
    merges = [(space, "t"), ("h", "e"), (space + "t", "he"), ("a", "t"), ("o", "n"), (space, space), ("l", "l")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), space, *letters]
    return {piece: place for place, piece in enumerate([*pieces, *("".join(each) for each in merges)])}, merges


def llama2(folder: Path) -> Path:
    """SentencePiece's BPE: a space before the text, bytes for what is unknown."""
    vocab, merges = _pieces("▁")
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return _save(folder, tokenizer, "llama", tokenizer_class="LlamaTokenizer", legacy=False, **roles)


def gemma(folder: Path) -> Path:
    """SentencePiece's BPE without a space before the text."""
    vocab, merges = _pieces("▁")
    extra = {token: len(vocab) + place for place, token in enumerate(("<pad>", "<eos>", "<bos>"))}
    tokenizer = Tokenizer(models.BPE(vocab | extra, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", extra["<bos>"])]
    )
    tokenizer.add_special_tokens([*extra, "<unk>", *_SPECIAL])
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _save(folder, tokenizer, "gemma", tokenizer_class="GemmaTokenizer", **roles)


def unigram(folder: Path) -> Path:
    """SentencePiece's Unigram, which picks the likeliest pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", *_SPECIAL]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TRAINING, trainer)
    roles = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, "mistral", tokenizer_class="PreTrainedTokenizerFast", **roles)


def wordpiece(folder: Path) -> Path:
    """BERT's pieces, from a vocab.txt alone."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("".join(_TRAINING).lower().replace(" ", "")))
    words = ["the", "cat", "sat", "on", "##at", "##he", "##s", "hello"]
    pieces = [*special, *letters, *(f"##{each}" for each in letters), *words]
    _config(folder, "llama", len(pieces))
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    each.__name__: each for each in (gpt2, llama3, qwen, llama2, gemma, unigram, wordpiece)
}
"""By the models they are named after, how to write a folder: it has a config and a tokenizer, and no weights."""

_SCRIPTS = (
    (0x20, 0x7E),  # ASCII, twice as often as others
    (0x20, 0x7E),
    (0xA0, 0x24F),  # Latin
    (0x300, 0x36F),  # marks that join the letter before
    (0x370, 0x3FF),  # Greek
    (0x400, 0x4FF),  # Cyrillic
    (0x590, 0x6FF),  # Hebrew, Arabic
    (0x900, 0x97F),  # Devanagari
    (0xE00, 0xE7F),  # Thai
    (0x1100, 0x11FF),  # Hangul letters
    (0x2000, 0x206F),  # spaces, joiners, directions
    (0x3040, 0x30FF),  # Kana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul
    (0xFF00, 0xFFEF),  # wide forms
    (0x1F300, 0x1FAFF),  # emoji
    (0x0, 0x1F),  # control
)
_WORDS = (
    *("the cat sat", "don't", "I'LL", "we've ", "123", "4567890", "3.14", "٣٤", "½²", "def f(x):\n    return x\n"),
    *(" ", "  ", "     ", "\t", "\n", "\r\n", "\n\n\n", "\u00a0", "\u3000", "_", "##", "▁", "Ġ", "<0x0A>", "</s>"),
    *(
        "e\u0301",
        "é",
        "ﬁ",
        "👩‍👩‍👧",
        "👍🏽",
        "🇩🇪",
        "\ufeff",
        "\x00",
        "\x7f",
        "\u2028",
        "日本語",
        "{'a': [1, 2]}",
        "http://a.b/c?d=e",
    ),
)


def texts(count: int, marks: tuple[str, ...] = (), seed: int = 0) -> Iterator[str]:
    """Yield texts of many scripts, code, control characters, digits, spaces and these marks, the same each time."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(0, 12)):
            kind = draw.random()
            if kind < 0.1 and marks:
                parts.append(draw.choice(marks))
            elif kind < 0.55:
                parts.append(draw.choice(_WORDS))
            else:
                first, last = draw.choice(_SCRIPTS)
                parts.append("".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6))))
            parts.append(draw.choice(("", "", " ")))
        yield "".join(parts)
