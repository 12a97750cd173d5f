"""Will this spec compile here? From configs alone, before any weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adaptc import doctor
from adaptc.errors import LoadError
from adaptc.sources import Source, find_in_package, find_source
from adaptc.spec import CalibrationSpec, Spec, TargetSpec
from adaptc.stitch_check import stitch_faults

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Level = Literal["ok", "warn", "error"]

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds of RoPE whose angles depend on the position alone; others change with the length of the text."""

_MB = 1e6
# Rough: what compiling holds beside weights (torch, transformers, the graph), and running beside weights and cache.
_COMPILER_BYTES = 1_000_000_000
_RUNTIME_BYTES = 150_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What: a model's name, `target`, `calibration` or `machine`.
        level: `ok`, `warn` (it will work, perhaps not as wished) or `error` (it cannot work).
        text: What was found, and what would be right.
    """

    about: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings, in the order they were made."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.level != "error" for finding in self.findings)


def check(spec: Spec, base: Path) -> CheckReport:
    """Check a spec against its models and this machine.

    Args:
        spec: What would be compiled.
        base: Folder that relative paths start from: the spec's.

    Returns:
        What was found; this function raises nothing for a spec that cannot work.
    """
    return CheckReport(tuple(_findings(spec, base)))


def _findings(spec: Spec, base: Path) -> Iterator[Finding]:
    sizes = []
    known: dict[str, tuple[Source, PretrainedConfig]] = {}
    for name, model in spec.models.items():
        try:
            source = find_source(model, base)
            config = source.config()
        except LoadError as error:
            yield Finding(name, "error", str(error))
            continue
        known[name] = source, config
        found = [*_architecture(name, config), *_dims(name, config, spec.target)]
        yield from found
        yield from _rope(name, config, spec.target)
        yield from _vocabulary(name, source, config)
        if all(finding.level != "error" for finding in found):
            sizes.append(size := size_of(config, spec.target, model.dtype))
            text = f"{size.parameters / _MB:,.1f} M parameters, {size.bundle / _MB:,.0f} MB as {spec.target.weights}"
            yield Finding(name, "ok", text)
    if spec.passes and len(known) == len(spec.models):
        for fault in stitch_faults(spec, known):
            yield Finding("stitch", "error", fault)
    if sizes:
        yield from _room(sizes, base)
    yield from _versions()
    if spec.calibration is not None:
        yield _calibration(spec.calibration, base)


def _architecture(name: str, config: PretrainedConfig) -> Iterator[Finding]:
    yield Finding(name, "ok", f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}")


def _dims(name: str, config: PretrainedConfig, target: TargetSpec) -> Iterator[Finding]:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head_dim = head_dim_of(config)
    if min(heads, groups) < 1 or heads % groups:
        yield Finding(name, "error", f"{heads} attention heads cannot share {groups} key-value heads; a multiple can")
    else:
        yield Finding(name, "ok", f"{heads} heads of {head_dim}, {groups} with keys and values")
    if target.weights in ("int4", "int8"):
        widths = {config.hidden_size, config.intermediate_size, heads * head_dim}
        uneven = sorted(width for width in widths if width % target.block_size)
        if uneven:
            padded = ", ".join(map(str, uneven))
            text = f"blocks of {target.block_size} do not divide {padded}: rows are padded; smaller blocks waste less"
            yield Finding(name, "warn", text)


def head_dim_of(config: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // max(1, config.num_attention_heads))


def _rope(name: str, config: PretrainedConfig, target: TargetSpec) -> Iterator[Finding]:
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    kinds = sorted({str(each.get("rope_type", "default")) for each in sets})
    for kind in kinds:
        if kind not in ROPE_KINDS:
            yield Finding(name, "error", f"RoPE of kind {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    trained = config.max_position_embeddings
    if target.max_tokens > trained:
        text = (
            f"max_tokens {target.max_tokens} is beyond the {trained} the model was trained on; expect poor text there"
        )
        yield Finding(name, "warn", text)
    else:
        yield Finding(name, "ok", f"RoPE {', '.join(kinds)}; max_tokens {target.max_tokens} of {trained}")


def _vocabulary(name: str, source: Source, config: PretrainedConfig) -> Iterator[Finding]:
    from tokenizers import Tokenizer

    try:
        files = source.tokenizer_files()
        tokens = Tokenizer.from_str(files["tokenizer.json"].decode()).get_vocab_size()
    except LoadError as error:
        yield Finding(name, "error", str(error))
        return
    except Exception as error:  # the tokenizers library raises nothing narrower
        yield Finding(name, "error", f"{source.origin}: tokenizer.json cannot be read: {error}")
        return
    if tokens > config.vocab_size:
        text = f"the tokenizer has {tokens:,} tokens, the model {config.vocab_size:,}; they do not belong together"
        yield Finding(name, "error", text)
    else:
        yield Finding(name, "ok", f"vocabulary of {config.vocab_size:,}, {tokens:,} used by the tokenizer")
    ids = source.token_ids()
    outside = [
        token for token in (ids.bos, *ids.eos, ids.pad) if token is not None and not 0 <= token < config.vocab_size
    ]
    if outside:
        yield Finding(name, "error", f"special token {outside[0]} is outside the vocabulary of {config.vocab_size:,}")
    if not ids.eos:
        yield Finding(name, "warn", "no end-of-text token: answers end only at their largest length")
    if "chat_template.jinja" not in files:
        yield Finding(name, "warn", "no chat template: generate works, chat does not")


@dataclass(frozen=True, slots=True)
class Size:
    """What a model takes, in bytes, worked out from its config.

    Attributes:
        parameters: How many weights, a tied head counted once.
        read: Of the weights as they are read.
        bundle: Of the weights in the bundle.
        cache: Of the KV cache of all rows.
    """

    parameters: int
    read: int
    bundle: int
    cache: int


def size_of(config: PretrainedConfig, target: TargetSpec, dtype: str) -> Size:
    """Work out a model's size, with weights stored as passes/quantize.py does."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = vectors = table = head = 0
    for name, parameter in model.named_parameters():  # a tied head comes once, as the table
        if parameter.ndim < 2:
            vectors += parameter.numel()
        elif "embed_tokens" in name:
            table += parameter.numel()
        elif "lm_head" in name:
            head += parameter.numel()
        else:
            matrices += parameter.numel()
    each, whole = (_weight_bytes(kind, target.block_size) for kind in (target.weights, "int8"))
    stored = matrices * each + vectors * 4
    if target.weights == "int4":
        # The table is in 8 bits, and the head, an eighth of it in 8 bits, is not the table even where they are tied.
        stored += table * whole + (head or table) * (each * 7 / 8 + whole / 8)
    else:
        stored += (table + head) * each
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim_of(config) * target.max_tokens * 4
    count = matrices + vectors + table + head
    return Size(
        parameters=count,
        read=count * (4 if dtype == "float32" else 2),
        bundle=int(stored),
        cache=row * target.batch,
    )


def _weight_bytes(weights: str, block: int) -> float:
    # Codes, one float32 scale a block, and for int4 a zero point of 4 bits (passes/quantize.py).
    return {"fp32": 4, "fp16": 2, "int8": 1 + 4 / block, "int4": 0.5 + 4.5 / block}[weights]


def _room(sizes: Sequence[Size], base: Path) -> Iterator[Finding]:
    weights, cache, read = (sum(getattr(size, what) for size in sizes) for what in ("bundle", "cache", "read"))
    total, available = doctor.memory_bytes()
    running, compiling = weights + cache + _RUNTIME_BYTES, read + weights + _COMPILER_BYTES
    needs = f"compiling needs about {compiling / _MB:,.0f} MB of memory, running {running / _MB:,.0f}"
    there = f"(weights {weights / _MB:,.0f}, KV cache {cache / _MB:,.0f}); {available / _MB:,.0f} are free"
    if total and running > total:
        fix = "a smaller max_tokens, batch or weights would fit" if cache > weights else "smaller weights would fit"
        yield Finding("machine", "error", f"{needs} {there}: {fix}")
    elif total and max(running, compiling) > available:
        yield Finding("machine", "warn", f"{needs} {there}: close other programs, or compile on another machine")
    else:
        yield Finding("machine", "ok", f"{needs} {there}")
    # The compile cache holds one copy of the bundle, the output another.
    free, wanted = shutil.disk_usage(base).free, 2 * weights
    level: Level = "ok" if free > wanted else "error"
    text = f"the bundle and the cache need about {wanted / _MB:,.0f} MB of disk; {free / _MB:,.0f} free"
    yield Finding("machine", level, text if level == "ok" else f"{text}: make room")


def _versions() -> Iterator[Finding]:
    wanted = [package for package in doctor.packages() if package.extra == "compile"]
    for package in wanted:
        if not package.ok:
            have = f"{package.name} is {package.found}" if package.found else f"{package.name} is not installed"
            yield Finding("machine", "error", f"{have}, {package.wanted} or newer is needed; {package.install}")
    if wanted and all(package.ok for package in wanted):
        shown = ("torch", "transformers", "onnx", "onnxruntime")
        found = ", ".join(f"{package.name} {package.found}" for package in wanted if package.name in shown)
        yield Finding("machine", "ok", found)


def _calibration(calibration: CalibrationSpec, base: Path) -> Finding:
    name = calibration.text
    try:
        path = find_in_package(name) if name.startswith("package:") else base / Path(name).expanduser()
    except LoadError as error:
        return Finding("calibration", "error", str(error))
    if not path.is_file():
        return Finding("calibration", "error", f"{name}: no such file: {path}")
    return Finding("calibration", "ok", f"{name}, {path.stat().st_size / _MB:,.1f} MB")
