"""Vocabularies of the kinds that GGUF files have, and texts in which they differ."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.models.gguf_file import Tokens

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "The",
    "QUICK",
    "iPhone",
    "I'm",
    "you've",
    "don't",
    "WE'LL",
    "she'd",
    "it's",
    "'S",
    "'RE",
    "’s",
    "x\u1c89y",
    "1\u0897a",
    "\U00010d41\U00010d42",
    "\U0001cc00!",
    "\ua7cba",
    "café",
    "naïve",
    "Straße",
    "ΑΒΓ",
    "αβγ",
    "привет",
    "Мир",
    "שלום",
    "مرحبا",
    "हिन्दी",
    "নমস্কার",
    "বাংলা",
    "ไทย",
    "日本語",
    "テキスト",
    "ひらがな",
    "中文",
    "한국어",
    "ქართული",
    "Հայերեն",
    "አማርኛ",
    "ខ្មែរ",
    "தமிழ்",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇩🇪",
    "é",
    "ﬁ",
    "㎏",
    "Ⅷ",
    "½",
    "²",
    "٣",
    "४",
    "一二三",
    "123",
    "1234567",
    "3.14",
    "1,000",
    "0x1F",
    "2024-11-29",
    "10:20",
    "foo_bar",
    "fooBar",
    "HTMLParser",
    "x=y+1;",
    "if(a&&b){return;}",
    "//",
    "c",
    "/*d*/",
    "#e",
    "<a",
    'href="x">',
    "</a>",
    "$100",
    "50%",
    "^~`",
    "|\\",
    "@user",
    "http://a.b/c?d=e&f=g",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\xad",
]
GAPS = [
    *[" "] * 6,
    *["  ", "   ", "        ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\x85"],
    *["", ".", ", ", "!", "?!", "...", "--", "=====", "▁", "▁▁", "\x00", "\x07", "\x1b"],
]
_BLOCKS = """20-7f 20-7f 1-20 a0-250 250-370 370-530 590-700 900-e00 e00-1100 1780-1800 1e00-2000 2000-2200 2200-2c00
3000-3100 4e00-9fa0 ac00-d7a0 f900-fb00 fe00-fff0 10000-10400 1d400-1d800 1f300-1fa00 20000-20100"""
BLOCKS = [range(*(int(bound, 16) for bound in block.split("-"))) for block in _BLOCKS.split()]


def texts(count: int, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Texts of many scripts, code, numbers, control characters, white space and special tokens."""
    draw = random.Random(seed)
    found = ["", " ", "\n", "a", " a"]
    while len(found) < count:
        length = draw.randrange(1, 14)
        if draw.random() < 0.6:
            words = [
                draw.choice(special) if special and draw.random() < 0.15 else draw.choice(WORDS) for _ in range(length)
            ]
            found.append("".join(word + draw.choice(GAPS) for word in words))
        else:
            blocks = [draw.choice(BLOCKS)] if draw.random() < 0.5 else BLOCKS
            found.append("".join(chr(draw.choice(draw.choice(blocks))) for _ in range(2 * length)))
    return found


SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>", "<tool>", "[INST]")
_KINDS = (2, 3, 3, 3, 4, 4)


@cache
def _trained(byte_level: bool, size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary whose merges go across words, numbers and lines, so that every split shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False, limit_alphabet=300, max_token_length=12
    )
    lines = texts(600, seed=7)
    tokenizer.train_from_iterator(
        lines if byte_level else [line.replace(" ", "▁").replace("\0", "") for line in lines], trainer
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_level(pre: str, **more: Any) -> Tokens:
    """A byte-level vocabulary: special tokens first, then what training found, and a word that no merge makes."""
    vocabulary, merges = _trained(True, 900)
    learned = sorted(vocabulary, key=vocabulary.__getitem__)
    pieces = [*SPECIAL, *learned, "Ġtiger"]
    return Tokens(
        model="gpt2",
        pre=pre,
        texts=pieces,
        kinds=[*_KINDS, *[1] * (len(pieces) - len(_KINDS))],
        merges=[" ".join(pair) for pair in merges],
        more={"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, **more},
    )


def sentencepiece(**more: Any) -> Tokens:
    """A sentencepiece vocabulary without merges: scores decide, runs of spaces share one."""
    vocabulary, _ = _trained(False, 700)
    learned = sorted(vocabulary, key=vocabulary.__getitem__)
    runs = ["▁" * length for length in range(2, 9)]
    pieces = [piece for piece in learned if piece not in (*runs, "\n\n")]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    found = [*SPECIAL, *spelled, *runs, *pieces, "\n\n"]
    return Tokens(
        model="llama",
        pre="default",
        texts=found,
        kinds=[*_KINDS, *[6] * 256, *[1] * (len(runs) + len(pieces)), 4],
        scores=[*[0.0] * (len(SPECIAL) + 256), *[-1e9] * len(runs), *[-float(rank) for rank in range(len(pieces) + 1)]],
        more={"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0, **more},
    )
