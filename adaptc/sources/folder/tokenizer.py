"""A folder's tokenizer: transformers reads it, and its fast form is what a bundle has.

Which ids a text has depends on a dozen files and on the tokenizer's class (added tokens, special tokens, prefix
spaces, what stands around a text). `AutoTokenizer` knows these rules, and every other user of the folder has its ids.
So it reads the folder, and what it made is written as one canonical `tokenizer.json`. The runtime's tokenizer is then
asked for the same texts: a tokenizer whose rules that file cannot hold is refused.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.chat_templates import template_files
from adaptc.sources.folder.files import deciding_files
from adaptc.sources.folder.processor_templates import chosen_templates
from adaptc.sources.hashes import file_digest, hash_of
from adaptc.sources.quiet import quiet_transformers

_PROBES = (
    "Hello, world! It's 2026, isn't it?",
    "  two  spaces, a\ttab\n\n\nlines \r\n and an end   ",
    "1234567 3.14159 0x1F 1,000,000 ١٢٣ 四五",
    "def f(x):\n    return {'a': [x**2, -x]}  # code\n",
    "Ünïcode naïve Straße ﬁne Å Å e\u0301 İstanbul",
    "日本語のテキスト 中文 한국어 ไทย हिन्दी العربية עברית Русский ελληνικά",
    "👩‍👩‍👧 👍🏽 🏳️‍🌈 \u200b\u00ad\ufeff \x00\x07\x1b\x7f",
    "CamelCase snake_case UPPER don't DON'T we'll ’s",
    "",
    " ",
)
_MAX_TOKENS = 64  # of the added tokens, so many are tried within a text
_LOADING = ("is_local", "local_files_only", "chat_template")  # how it was loaded, and what has files of its own


def tokenizer_files(origin: str, folder: Path) -> dict[str, bytes]:
    """Return the tokenizer that `AutoTokenizer` makes of a folder, as the files of a bundle.

    Args:
        origin: The model's name in the spec, for errors.
        folder: A Hugging Face folder; no code in it is run, and nothing is fetched.

    Returns:
        `tokenizer.json`; `tokenizer_config.json`, in which special tokens are strings by their roles; and, where there
        are some, `chat_template.jinja` and `additional_chat_templates/NAME.jinja`.

    Raises:
        LoadError: there is no tokenizer, transformers cannot read it, it has no fast form, or the runtime would give
            other ids.
    """
    files = deciding_files(folder)
    return dict(_read(origin, folder, hash_of({name: file_digest(origin, path) for name, path in files.items()})))


@lru_cache(maxsize=4)  # a large vocabulary takes a second or two, and a compile asks for it several times
def _read(origin: str, folder: Path, content: str) -> Mapping[str, bytes]:
    """`content` is the hash of all that is read."""
    from transformers import AutoTokenizer

    _refuse_unread(origin, folder)
    with foreign(f"{origin}: transformers cannot read its tokenizer"), quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise LoadError(f"{origin}: its tokenizer, {kind}, has no fast form (tokenizer.json), which the runtime needs")
    with foreign(f"{origin}: its tokenizer has no vocabulary"):
        words = tokenizer.get_vocab().keys() - tokenizer.added_tokens_encoder.keys()
    if not words:  # without its files, a tokenizer's class has its special tokens only
        kind = type(tokenizer).__name__
        raise LoadError(f"{origin}: no tokenizer: nothing here has a vocabulary that transformers' {kind} reads")
    with tempfile.TemporaryDirectory() as scratch, foreign(f"{origin}: its tokenizer cannot be written"):
        into = Path(scratch)
        with quiet_transformers():
            tokenizer.save_pretrained(into)
        config = json.loads((into / "tokenizer_config.json").read_bytes())
        files = {
            "tokenizer.json": (into / "tokenizer.json").read_bytes(),
            "tokenizer_config.json": _config(config, tokenizer.special_tokens_map),
            **template_files(origin, chosen_templates(origin, folder, tokenizer.chat_template)),
        }
        _compare(origin, tokenizer, Tokenizer(files))
    return MappingProxyType(files)


def _refuse_unread(origin: str, folder: Path) -> None:
    """Say which library is missing: transformers names the wrong one."""
    models = sorted(path.name for path in folder.glob("*.model"))
    libraries = ("sentencepiece", "tiktoken")
    if models and not (folder / "tokenizer.json").is_file() and not any(map(importlib.util.find_spec, libraries)):
        raise LoadError(
            f"{origin}: {models[0]} is read with sentencepiece, or tiktoken, and neither is installed; "
            "pip install sentencepiece is right for most"
        )


def _config(saved: Mapping[str, Any], roles: Mapping[str, Any]) -> bytes:
    """What transformers saves, with each special token as a plain string."""
    kept = {key: value for key, value in saved.items() if key not in _LOADING}
    named = {role: str(token) for role, token in roles.items() if not isinstance(token, list)}
    return json.dumps(kept | named, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _compare(origin: str, wanted: Any, ours: Tokenizer) -> None:
    """Refuse a tokenizer whose ids or texts the runtime does not give."""
    added = [token.content for token in wanted.added_tokens_decoder.values()]
    marked = [f"a{token}b {token} c" for token in (*added[: _MAX_TOKENS // 2], *added[-_MAX_TOKENS // 2 :])]
    for text in (*_PROBES, *marked, "".join(added[:_MAX_TOKENS])):
        for special in (True, False):
            ids = wanted(text, add_special_tokens=special)["input_ids"]
            if ours.encode(text, special=special) != ids:
                raise LoadError(
                    f"{origin}: transformers reads {text!r} as {ids[:12]}, and its tokenizer's fast form does not; "
                    "a tokenizer whose tokenizer.json says all is right"
                )
            text_of = wanted.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if ours.decode(ids) != text_of:
                raise LoadError(f"{origin}: ids {ids[:12]} are {text_of!r} to transformers, and not to the fast form")
