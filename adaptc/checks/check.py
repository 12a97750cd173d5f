"""Will this spec compile here? From configs alone, before any weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptc.checks import doctor
from adaptc.checks.finding import Finding, Level
from adaptc.checks.model_size import Size, head_dim_of, size_of, size_of_shapes
from adaptc.checks.multimodal import image_findings, keeps_images, module_findings
from adaptc.checks.stitch import stitch_faults
from adaptc.errors import LoadError
from adaptc.families.model import text_of
from adaptc.machine import memory
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.sources.module import ModuleSource
from adaptc.sources.package import find_in_package
from adaptc.spec.schema import CalibrationSpec, Spec, TargetSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds of RoPE whose angles depend on the position alone; others change with the length of the text."""

_MB = 1e6
# Rough: what compiling holds beside weights (torch, transformers, the graph), and running beside weights and cache.
_COMPILER_BYTES = 1_000_000_000
_RUNTIME_BYTES = 150_000_000


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
    sizes: list[Size] = []
    known: dict[str, tuple[Source, PretrainedConfig]] = {}
    for name, model in spec.models.items():
        try:
            source = find_source(model, base)
            if isinstance(source, ModuleSource):
                sizes.append(size := size_of_shapes(source.shapes(), spec.target, model.dtype))
                yield from module_findings(name, source, spec)
                yield _size(name, size, spec.target)
                continue
            config = source.config()
        except LoadError as error:
            yield Finding(name, "error", str(error))
            continue
        known[name] = source, config
        text, parted = text_of(config), list(image_findings(name, config, spec))
        found = [*_architecture(name, text), *parted, *_dims(name, text, spec.target)]
        yield from found
        yield from _rope(name, text, spec.target)
        yield from _vocabulary(name, source, text)
        if all(finding.level != "error" for finding in found):
            sizes.append(size_of(config, spec.target, model.dtype, images=keeps_images(spec, name)))
            yield _size(name, sizes[-1], spec.target)
    if spec.passes and len(known) == len(spec.models):
        for fault in stitch_faults(spec, known):
            yield Finding("stitch", "error", fault)
    if sizes:
        yield from _room(sizes, base)
    yield from _versions()
    if spec.calibration is not None:
        yield _calibration(spec.calibration, base)


def _size(name: str, size: Size, target: TargetSpec) -> Finding:
    text = f"{size.parameters / _MB:,.1f} M parameters, {size.bundle / _MB:,.0f} MB as {target.weights}"
    return Finding(name, "ok", text)


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


def _room(sizes: Sequence[Size], base: Path) -> Iterator[Finding]:
    weights, cache, read = (sum(getattr(size, what) for size in sizes) for what in ("bundle", "cache", "read"))
    total, available = memory.memory_bytes()
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
