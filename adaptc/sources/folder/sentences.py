"""What sentence-transformers' files say of a folder: pooling, normalizing, the longest text, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.families.sentences import POOLING_MODES, PoolingMode, Sentences
from adaptc.sources.folder.files import read_bytes, read_object

MODULES = "modules.json"

_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling module's config, by the mode that each turns on."""


def sentences_of(origin: str, folder: Path) -> Sentences:
    """Return how a folder's model makes one vector of a text: the mean of its states, if no file says otherwise.

    That is what sentence-transformers does with a folder of transformers' alone.

    Args:
        origin: The model's name in the spec, for errors.
        folder: A Hugging Face folder.

    Raises:
        LoadError: a file is damaged, or names a module that adaptc does not follow.
    """
    if not (folder / MODULES).is_file():
        return Sentences()
    kinds = _modules(origin, folder)
    pooling, normalize = _pooling(origin, folder, kinds)
    own = read_object(origin, folder / "sentence_bert_config.json")
    prompts = read_object(origin, folder / "config_sentence_transformers.json")
    if own.get("do_lower_case"):
        raise LoadError(
            f"{origin}: sentence_bert_config.json: do_lower_case; a tokenizer that lowers by itself is right"
        )
    longest = own.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise LoadError(
            f"{origin}: sentence_bert_config.json: max_seq_length is {one_line(longest)[:40]}; 1 or more is"
        )
    named = prompts.get("prompts") or {}
    texts = isinstance(named, dict) and all(isinstance(text, str) for text in named.values())
    default = prompts.get("default_prompt_name") or ""
    if not texts or not isinstance(default, str) or (default and default not in named):
        raise LoadError(
            f"{origin}: config_sentence_transformers.json: prompts are texts by name, and default_prompt_name one of "
            "the names, or null"
        )
    return Sentences(pooling, normalize, longest, {name: text for name, text in named.items() if text}, default)


def _modules(origin: str, folder: Path) -> list[tuple[str, str]]:
    """The modules in order: the name of each one's class, and its folder."""
    try:
        listed = json.loads(read_bytes(origin, folder / MODULES))
        found = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{origin}: {MODULES} is no list of modules with type and path; the file is damaged") from error
    kinds = [kind for kind, _ in found]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise LoadError(
            f"{origin}: {MODULES}: {', '.join(kinds)[:100]}; Transformer, Pooling and Normalize are followed"
        )
    if found[0][1]:
        raise LoadError(
            f"{origin}: {MODULES}: the transformer is in {found[0][1][:40]}; give that folder, or keep it at the top"
        )
    return found


def _pooling(origin: str, folder: Path, modules: list[tuple[str, str]]) -> tuple[tuple[PoolingMode, ...], bool]:
    """The modes of the pooling module, and whether vectors are normalized after it."""
    place = modules[1][1]
    if Path(place).name != place or not place:
        raise LoadError(f"{origin}: {MODULES}: pooling is in {place[:40]!r}; a folder beside the file is right")
    values = read_object(origin, folder / place / "config.json", needed=True)
    stated: Any = values.get("pooling_mode")
    names = [stated] if isinstance(stated, str) else stated if isinstance(stated, list) else None
    modes = [mode for key, mode in _FLAGS.items() if values.get(key)] if names is None else names
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown or not modes:
        what = f"pooling_mode {one_line(unknown[0])[:40]}" if unknown else "no mode"
        raise LoadError(f"{origin}: {place}/config.json: {what}; one of {', '.join(POOLING_MODES)} is right")
    if values.get("include_prompt") is False:
        raise LoadError(f"{origin}: {place}/config.json: include_prompt is false; true, or no such key, is right")
    return tuple(mode for mode in POOLING_MODES if mode in modes), len(modules) > 2
