"""A tokenizer as encoders have it: words between [CLS] and [SEP], pairs, and settings that cut and pad every text."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "it", "was", "red", "blue"]
WORDS += ["very", "quick"]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def tokenizer(pad: int = 0) -> Tokenizer:
    """Words between [CLS] and [SEP], which cuts and pads every text, as an encoder's tokenizer.json often says."""
    named = list(SPECIAL)
    named[0], named[pad] = named[pad], named[0]
    vocab = {word: index for index, word in enumerate([*named, *WORDS])}
    found = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_special_tokens(SPECIAL)
    ends = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    found.enable_truncation(12)
    found.enable_padding(length=12, pad_id=pad, pad_token="[PAD]")
    return found
