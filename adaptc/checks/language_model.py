"""What `adaptc check` says of a language model: its architecture, heads, RoPE and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptc.checks.finding import Finding
from adaptc.checks.model_size import head_dim_of
from adaptc.errors import LoadError
from adaptc.families.model import has_experts, inner_width_of, kv_heads_of, names_of
from adaptc.ir.blocks import LEAST_BLOCK
from adaptc.sources.base import Source
from adaptc.sources.chat_templates import template_faults
from adaptc.sources.vocabulary import tokens_of
from adaptc.spec.schema import TargetSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NO_GPU_FORM = "they have no form for a GPU or TensorRT; backend: onnxruntime with device: cpu is right"
"""Why a target is refused for a model with experts."""

ROPE_KINDS = ("default", "linear", "llama3", "yarn", "proportional", "longrope", "dynamic")
"""Kinds of RoPE whose angles depend on positions alone; those of the last two depend on `max_tokens` too."""


def architecture(name: str, config: PretrainedConfig) -> Finding:
    """State a model's family, depth and width."""
    return Finding(name, "ok", f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}")


def head_findings(name: str, config: PretrainedConfig, target: TargetSpec) -> Iterator[Finding]:
    """Yield what there is to say of a model's heads, and of widths that blocks of weights do not divide."""
    heads, groups = config.num_attention_heads, kv_heads_of(config)
    head_dim = head_dim_of(config)
    if min(heads, groups) < 1 or heads % groups:
        yield Finding(name, "error", f"{heads} attention heads cannot share {groups} key-value heads; a multiple can")
    else:
        yield Finding(name, "ok", f"{heads} heads of {head_dim}, {groups} with keys and values")
    if target.weights in ("int4", "int8"):
        widths = {config.hidden_size, inner_width_of(config), heads * head_dim}
        uneven = sorted(width for width in widths if width % target.block_size)
        if uneven:
            padded = ", ".join(map(str, uneven))
            text = f"blocks of {target.block_size} do not divide {padded}: rows are padded; smaller blocks waste less"
            yield Finding(name, "warn", text)


def expert_findings(name: str, config: PretrainedConfig, target: TargetSpec) -> Iterator[Finding]:
    """Yield what there is to say of a model's experts; nothing of a model without."""
    if not has_experts(config):
        return
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    used = config.num_experts_per_tok
    if not 1 <= used <= experts:
        yield Finding(name, "error", f"{used} of {experts} experts for a token; from 1 to all of them is right")
    elif target.backend != "onnxruntime" or target.device == "cuda":
        yield Finding(name, "error", f"{experts} experts in a block: {NO_GPU_FORM}")
    elif target.weights in ("int4", "int8") and config.hidden_size % LEAST_BLOCK:
        text = f"experts over {config.hidden_size} columns: a multiple of {LEAST_BLOCK} is right, or weights: fp32"
        yield Finding(name, "error", text)
    elif config.hidden_act not in ("silu", "swish"):
        yield Finding(name, "error", f"experts with {config.hidden_act}; hidden_act: silu is supported")
    else:
        yield Finding(name, "ok", f"{experts} experts in a block, {used} of them for a token")


def rope_findings(name: str, config: PretrainedConfig, target: TargetSpec) -> Iterator[Finding]:
    """Yield what there is to say of a model's kind of RoPE and of the positions it was trained on."""
    trained = config.max_position_embeddings
    if names_of(config).positions:
        yield _learned_positions(name, trained, target)
        return
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    kinds = sorted({str(each.get("rope_type", "default")) for each in sets})
    for kind in kinds:
        if kind not in ROPE_KINDS:
            yield Finding(name, "error", f"RoPE of kind {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    original = _original(config, parameters)
    if "longrope" in kinds and target.max_tokens > original:
        text = (
            f"max_tokens {target.max_tokens} is beyond {original}: LongRoPE's long factors are used for texts of every "
            f"length, as llama.cpp does; with max_tokens up to {original} its short ones are"
        )
        yield Finding(name, "warn", text)
    if "dynamic" in kinds and target.max_tokens > trained:
        text = (
            f"max_tokens {target.max_tokens} is beyond {trained}: dynamic NTK turns texts of every length as one of "
            f"{target.max_tokens} tokens, as vLLM does; with max_tokens up to {trained} all are turned as in training"
        )
        yield Finding(name, "warn", text)
    elif target.max_tokens > trained:
        text = (
            f"max_tokens {target.max_tokens} is beyond the {trained} the model was trained on; expect poor text there"
        )
        yield Finding(name, "warn", text)
    else:
        yield Finding(name, "ok", f"RoPE {', '.join(kinds)}; max_tokens {target.max_tokens} of {trained}")


def _learned_positions(name: str, trained: int, target: TargetSpec) -> Finding:
    if target.max_tokens > trained:
        text = (
            f"max_tokens {target.max_tokens} is beyond the {trained} positions that the model has; at most so many are"
        )
        return Finding(name, "error", f"{text} right")
    return Finding(name, "ok", f"positions are learned; max_tokens {target.max_tokens} of {trained}")


def _original(config: PretrainedConfig, rope: Mapping[str, Any]) -> int:
    """Up to how many positions LongRoPE's short factors are for."""
    usual = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    return int(rope.get("original_max_position_embeddings") or usual)


def vocabulary_findings(name: str, source: Source, config: PretrainedConfig) -> Iterator[Finding]:
    """Yield what there is to say of a model's tokenizer and special tokens."""
    try:
        files = source.tokenizer_files()
        past = max(tokens_of(source).values(), default=0) + 1 - config.vocab_size
    except LoadError as error:
        yield Finding(name, "error", str(error))
        return
    last = config.vocab_size - 1
    if past > 0:
        text = (
            f"the tokenizer's ids go to {last + past:,}, the embedding's to {last:,}: "
            "prompts with a token past it are refused"
        )
        yield Finding(name, "warn", text)
    else:
        tokens = config.vocab_size + past
        yield Finding(name, "ok", f"vocabulary of {config.vocab_size:,}, {tokens:,} used by the tokenizer")
    ids = source.token_ids()
    outside = [
        token for token in (ids.bos, *ids.eos, ids.pad) if token is not None and not 0 <= token < config.vocab_size
    ]
    if outside:
        yield Finding(name, "error", f"special token {outside[0]} is outside the vocabulary of {config.vocab_size:,}")
    if not ids.eos:
        yield Finding(name, "warn", "no end-of-text token: answers end only at their largest length")
    for fault in template_faults(files):
        yield Finding(name, "warn", fault)
