"""Rebuild a tokenizer from a GGUF file's metadata, as Hugging Face files."""

from __future__ import annotations

import json
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.gguf.file import GgufFile

# llama.cpp splits off every single digit for these before GPT-2's rule (src/llama-vocab.cpp).
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_GPT2 = ("default", "gpt-2", "phi-2")


def rebuilt_tokenizer(file: GgufFile) -> dict[str, bytes]:
    """Return `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`.

    Raises:
        LoadError: the file's tokenizer is of a kind that cannot be rebuilt exactly.
    """
    keys = ("model", "pre", "tokens", "scores", "token_type", "merges", "add_space_prefix")
    metadata = {key: file.metadata[name] for key in keys if (name := f"tokenizer.ggml.{key}") in file.metadata}
    tokens = file.need("tokenizer.ggml.tokens", list)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in ids.items():
        number = file.get(f"tokenizer.ggml.{theirs}_token_id", int)
        if number is not None:
            if not 0 <= number < len(tokens):
                key = f"tokenizer.ggml.{theirs}_token_id"
                raise LoadError(f"{file.path}: {key} is {number}; the file has {len(tokens)} tokens")
            config[f"{ours}_token"] = tokens[number]
    # llama.cpp adds BOS to a sentencepiece vocabulary that does not state otherwise.
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool, metadata.get("model") == "llama")
    config["add_bos_token"] = add_bos
    files = {
        "tokenizer.json": _tokenizer_json(file, metadata, config).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    template = file.get("tokenizer.chat_template", str)
    return files | ({"chat_template.jinja": template.encode()} if template else {})


def _tokenizer_json(file: GgufFile, metadata: dict[str, Any], config: dict[str, Any]) -> str:
    from tokenizers import pre_tokenizers, processors
    from transformers.integrations.gguf import convert_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, pre = metadata.get("model"), metadata.get("pre", "default")
    known = (*GGUF_PRE_TOKENIZER_SPLITS, *_SINGLE_DIGITS, *_GPT2)
    if kind not in ("gpt2", "llama"):
        raise LoadError(f"{file.path}: tokenizer.ggml.model {kind!r} is not supported; there are gpt2, llama")
    if kind == "gpt2" and pre not in known:
        raise LoadError(f"{file.path}: tokenizer.ggml.pre {pre!r} is not known; give its Hugging Face folder instead")
    renamed = {"model": "tokenizer_type", "pre": "pre_tokenizer_type", "add_space_prefix": "add_prefix_space"}
    described = {renamed.get(key, key): value for key, value in metadata.items()}
    try:
        tokenizer, _ = convert_gguf_tokenizer(file.need("general.architecture", str), described)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise LoadError(f"{file.path}: its tokenizer cannot be rebuilt: {one_line(error)}") from error
    if kind == "gpt2" and pre in _SINGLE_DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if config["add_bos_token"] and "bos_token" in config:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    text: str = tokenizer.to_str(pretty=False)
    return text
