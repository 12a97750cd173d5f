r"""How byte-level vocabularies split text before their merges, by the names of `tokenizer.ggml.pre`.

Each is what llama.cpp does for that name, where it differs from the model's own tokenizer too: for Mistral's and
OpenAI's it tells capitals from small letters in ASCII alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Splits:
    r"""What a name of `tokenizer.ggml.pre` stands for.

    Attributes:
        patterns: Regular expressions (Oniguruma's syntax). Each cuts the pieces of the one before it: what it matches
            is a piece, and so is what lies between two matches.
        whole_words: Whether a piece that is a token by itself is taken as such, without looking at merges.
        add_bos: Whether a text begins with BOS where the file does not say.
        usual_bos: Whether llama.cpp takes its usual id for BOS where the file states none.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    usual_bos: bool = True


_ENGLISH = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_NO_WORD = r"[^\r\n\p{L}\p{N}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGIT, _THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
_LLAMA3 = rf"(?:{_ENGLISH})|{_NO_WORD}?\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"(?:{_ENGLISH})|{_NO_WORD}?\p{{L}}+|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = rf"(?:{_ENGLISH})|{_NO_WORD}?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
# A letter that is no small, or no capital, letter of ASCII.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_CASED = (rf"{_NO_WORD}?{_UPPER}*{_LOWER}+", rf"{_NO_WORD}?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_MARKS_AND_SLASHES}|{_SPACES}"
_GPT4O = rf"{_CASED[0]}(?:{_ENGLISH})?|{_CASED[1]}(?:{_ENGLISH})?|\p{{N}}{{1,3}}|{_MARKS_AND_SLASHES}|{_SPACES}"
_NO_STOP = r" ?[^(\s|.,!?…。，、।۔،)]+"
_KANA_AND_HAN = r"[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

_PLAIN = Splits((_GPT2,))
_SINGLE_DIGITS = Splits((_DIGIT, _GPT2))
_LIKE_LLAMA3 = Splits((_LLAMA3,), whole_words=True, add_bos=True)
_LIKE_QWEN2 = Splits((_QWEN2,))
_LIKE_GPT4O = Splits((_GPT4O,))
_LIKE_DEEPSEEK3 = Splits((_THREE_DIGITS, _KANA_AND_HAN, _DEEPSEEK))
_LIKE_BLOOM = Splits((_NO_STOP,))

_BY_NAMES = {
    "default": Splits((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais exaone4 "
    "trillion granite-docling": _PLAIN,
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _SINGLE_DIGITS,
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": _LIKE_LLAMA3,
    "dbrx smaug-bpe": Splits((_LLAMA3,)),
    "chatglm-bpe": Splits((_LLAMA3,), usual_bos=False),
    "glm4 glm5": Splits((_LLAMA3,), whole_words=True, usual_bos=False),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2": _LIKE_QWEN2,
    "qwen35": Splits((_QWEN35,)),
    "tekken": Splits((_TEKKEN,), whole_words=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": _LIKE_GPT4O,
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": _LIKE_DEEPSEEK3,
    "deepseek-coder": Splits((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "falcon": Splits((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "bloom poro-chat gpt3-finnish": _LIKE_BLOOM,
    "viking": Splits((_NO_STOP, _DIGIT)),
    "seed-coder": Splits((rf"(?:{_ENGLISH})|{_NO_WORD}?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    "bailingmoe bailingmoe2 llada-moe": Splits(
        (rf"(?:{_ENGLISH})|{_NO_WORD}?\p{{L}}+|\p{{N}}|{_MARKS}|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "minicpm5": Splits(
        (_THREE_DIGITS, rf"(?:{_ENGLISH})|{_NO_WORD}?\p{{L}}+|\p{{N}}+|{_MARKS}|{_SPACES}"), whole_words=True
    ),
}

# What Unicode 16 added, between which nothing is that was there before. The tokenizers library knows it; to llama.cpp,
# whose tables are of Unicode 15, it is neither letter, number, mark nor sign.
_ADDED = """897 1b4e-1b4f 1b7f 1c89-1c8a 2427-2429 31e4-31e5 a7cb-a7cd a7da-a7dc 105c0-105f3 10d40-10d8f 10ec2-10efc
11380-113e2 116d0-116e3 11bc0-11bf9 11f5a 13460-143fa 16100-16139 16d40-16d79 18cff 1cc00-1ceb3 1e5d0-1e5ff 1f8b2-1f8c1
1fa89-1fa8f 1fabe 1fac6 1fadc-1fadf 1fae9 1fbcb-1fbef"""
_ADDED_CLASS = "".join("-".join(chr(int(end, 16)) for end in each.split("-")) for each in _ADDED.split())


def _of_unicode_15(splits: Splits) -> Splits:
    known = rf"[\g<0>&&[^{_ADDED_CLASS}]]"
    return replace(splits, patterns=tuple(re.sub(r"\\p\{\w+\}", known, each) for each in splits.patterns))


SPLITS: Mapping[str, Splits] = MappingProxyType(
    {name: _of_unicode_15(splits) for names, splits in _BY_NAMES.items() for name in names.split()}
)
"""Splits by the names of `tokenizer.ggml.pre`; what is not here is refused."""
