"""The whole compiler, as one straight line: spec -> program -> passes -> bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adaptc import __version__
from adaptc.compiler.cache import Cache, key_of
from adaptc.errors import BundleError
from adaptc.runtime.bundle.folder import Bundle, check_destination, open_bundle, write_bundle
from adaptc.sources.base import Source, find_source
from adaptc.sources.calibration_text import calibration_text
from adaptc.spec.schema import Spec, effective

if TYPE_CHECKING:
    from adaptc.ir.program import Program
    from adaptc.passes.base import Pass

VERSIONED = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
"""Libraries whose version may change what a compile gives."""

CODE = frozenset({".py", ".cu", ".txt"})
"""Endings of the files that are adaptc's code: whatever decides what a compile gives."""

Stage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compile gave.

    Attributes:
        bundle: The bundle, in its place.
        cached: Whether it was made before and only copied.
    """

    bundle: Bundle
    cached: bool


def compile_spec(spec: Spec, base: Path, into: Path, cache: Cache, stage: Stage = lambda _: None) -> Compiled:
    """Compile a spec into a bundle.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.
        into: The bundle's folder; an older bundle there stays until the new one is whole.
        cache: Stages that were made before are taken from here.
        stage: Told of each stage as it begins.

    Raises:
        AdaptcError: in all its kinds; nothing is left half done.
    """
    check_destination(into)
    stage("find models")
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    hashes = {name: source.sha256() for name, source in sources.items()}
    text = calibration_text(spec.calibration, base)
    key = key_of(effective(spec), hashes, text.sha256, _pass_files(spec, base), versions())
    make = partial(_make, spec, base, sources, hashes, cache=cache, stage=stage)
    cached = cache.find("bundle", key) is not None
    try:
        bundle = open_bundle(cache.get("bundle", key, make))
    except BundleError:
        if not cached:
            raise
        # Damaged since it was put there: it can be made again, so the user need not hear of it.
        cache.drop("bundle", key)
        cached, bundle = False, open_bundle(cache.get("bundle", key, make))
    stage("write bundle")
    files: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.manifest.files}
    return Compiled(write_bundle(into, files, bundle.manifest), cached)


def _pass_files(spec: Spec, base: Path) -> list[dict[str, str]]:
    """Hashes of the files that passes read."""
    if not spec.passes:
        return []  # without torch, which passes import
    from adaptc.compiler.stages import file_hashes
    from adaptc.spec.schema import build_passes

    return [file_hashes(pass_.at(base)) for pass_ in build_passes(spec)]


def versions() -> dict[str, str]:
    """Versions of adaptc and of every library that takes part in a compile."""
    libraries = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"adaptc": f"{__version__}+{_code_hash()}"} | libraries


def _code_hash() -> str:
    """Eight digits that change when adaptc's code does, so that a developer's cache is never stale."""
    total = hashlib.sha256()
    for package in ("adaptc", "adaptc.passes", "adaptc.runtime"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        # Links are not followed: in a checkout `adaptc/passes` leads to a package that has a turn of its own.
        for file in sorted(file for file in folder.rglob("*") if file.suffix in CODE):
            total.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return total.hexdigest()[:8]


def _make(
    spec: Spec,
    base: Path,
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    into: Path,
    *,
    cache: Cache,
    stage: Stage,
) -> None:
    stage("load torch and transformers")
    from adaptc.compiler.publish import publish
    from adaptc.compiler.stages import lowered, record
    from adaptc.compiler.tuning import Verdict, paying
    from adaptc.passes.base import Pipeline

    program, records = lowered(spec, base, sources, versions(), cache, stage)
    for pass_ in (*target_passes(spec), *gate_passes(spec, program)):
        stage(pass_.name)
        program = Pipeline((pass_,)).run(program, lambda step: records.append(record(step)))
    verdicts: dict[str, Verdict] = {}
    if program.gates and not program.regions:
        stage("does it pay?")
        text = calibration_text(spec.calibration, base)
        program, verdicts = paying(program, {name: text.ids(sources[name]) for name in sources}, spec.target.batch)
    stage("write weights")
    publish(spec, program, records, sources, hashes, versions(), into, verdicts, trained_gates(spec, base))


def trained_gates(spec: Spec, base: Path) -> dict[str, Path]:
    """The file of trained gates of each graph, where the spec names one."""
    from adaptc.spec.schema import build_passes

    files = [path for pass_ in build_passes(spec) for name, path in pass_.at(base).files().items() if name == "gates"]
    return {name: Path(path) for name in spec.models for path in files[:1]}


def target_passes(spec: Spec) -> tuple[Pass, ...]:
    """What every ONNX graph goes through for the target, in order."""
    from adaptc.passes.decoder.fuse_norms import FuseNorms
    from adaptc.passes.decoder.fuse_projections import FuseProjections
    from adaptc.passes.decoder.kv_cache import KvCache
    from adaptc.passes.decoder.logits_from import LogitsFrom
    from adaptc.passes.quantize.float_weights import FloatWeights
    from adaptc.passes.quantize.quantize import Quantize

    if spec.target.backend != "onnxruntime":
        return _tensorrt_passes(spec)
    weights: Pass
    match spec.target.weights:
        case "int8" | "int4" as stored:
            weights = Quantize(stored, spec.target.block_size)
        case stored:
            weights = FloatWeights("fp16" if stored == "fp16" else "fp32")
    return KvCache(max_tokens=spec.target.max_tokens), LogitsFrom(), FuseNorms(), FuseProjections(), weights


def _tensorrt_passes(spec: Spec) -> tuple[Pass, ...]:
    """What a TensorRT target's graphs go through: engines fuse by themselves, so all stays in plain operators."""
    from adaptc.passes.decoder.fuse_projections import FuseProjections
    from adaptc.passes.decoder.kv_cache import KvCache
    from adaptc.passes.targets.legalize import Legalize
    from adaptc.passes.targets.split_regions import SplitRegions

    half: Literal["fp16", "bf16"] = "bf16" if spec.target.weights == "bf16" else "fp16"
    return KvCache(max_tokens=spec.target.max_tokens), FuseProjections(), Legalize(half), SplitRegions()


def gate_passes(spec: Spec, program: Program) -> tuple[Pass, ...]:
    """What follows the target's passes in a program with gates; where regions are cut at gates, nothing."""
    from adaptc.passes.skip_ffn.branch import Branch

    return (Branch(),) if program.gates and spec.target.backend == "onnxruntime" else ()
