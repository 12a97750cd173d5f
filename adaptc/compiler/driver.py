"""The whole compiler, as one straight line: spec -> program -> passes -> bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptc.compiler import stage_names
from adaptc.compiler.cache import Cache, key_of
from adaptc.compiler.versions import versions
from adaptc.runtime.bundle.folder import Bundle, check_destination, open_bundle, write_bundle
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText, calibration_text
from adaptc.sources.default_weights import with_default_weights
from adaptc.sources.find import find_source
from adaptc.spec.reading import effective
from adaptc.spec.schema import Spec


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compile gave.

    Attributes:
        bundle: The bundle, in its place.
        cached: Whether it was made before and only copied.
    """

    bundle: Bundle
    cached: bool


def compile_spec(
    spec: Spec,
    base: Path,
    into: Path,
    cache: Cache,
    progress: Progress = SILENT,
    warn: Callable[[str], None] = lambda _: None,
    text: CalibrationText | None = None,
) -> Compiled:
    """Compile a spec into a bundle.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.
        into: The bundle's folder; an older bundle there stays until the new one is whole.
        cache: Stages that were made before are taken from here.
        progress: Told of stages and steps.
        warn: Called with each warning that `check` has too, a line; for a bundle from the cache with those that its
            compile had.
        text: What passes measure on; None for the spec's files, or our own text.

    Raises:
        AdaptcError: in all its kinds; nothing is left half done.
    """
    check_destination(into)
    progress.stage(stage_names.FIND)
    spec = with_default_weights(spec, base)
    sources = {name: find_source(model, base) for name, model in spec.models.items()}
    for source in sources.values():
        source.local(progress)
    hashes = {name: source.sha256(progress) for name, source in sources.items()}
    text = text or calibration_text(spec.calibration, base)
    key = key_of(effective(spec), hashes, text.sha256, _pass_files(spec, base), versions())
    warnings: list[str] = []
    made = False

    def make(path: Path) -> dict[str, str]:
        nonlocal made
        made = True
        warnings.clear()
        bundle = _make(spec, base, sources, hashes, text, path, cache=cache, progress=progress, warn=warnings.append)
        cache.write("warnings", key, json.dumps(warnings).encode())
        return {name: file.sha256 for name, file in bundle.manifest.files.items()}

    def copy(path: Path) -> Bundle:
        if not made:
            warnings[:] = json.loads(cache.read("warnings", key) or b"[]")
        progress.stage(stage_names.BUNDLE)
        # The cache has compared every file's hash, or has just written it.
        bundle = open_bundle(path, verify=False)
        return write_bundle(into, {}, bundle.manifest, bundle)

    try:
        bundle = cache.use("bundle", key, make, copy)
    finally:
        for line in warnings:
            warn(line)
    return Compiled(bundle, not made)


def _pass_files(spec: Spec, base: Path) -> list[dict[str, str]]:
    """Hashes of the files that passes read."""
    if not spec.passes:
        return []  # without torch, which passes import
    from adaptc.compiler.stages import file_hashes
    from adaptc.spec.passes import build_passes

    return [file_hashes(pass_.at(base)) for pass_ in build_passes(spec)]


def _make(
    spec: Spec,
    base: Path,
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    text: CalibrationText,
    into: Path,
    *,
    cache: Cache,
    progress: Progress,
    warn: Callable[[str], None],
) -> Bundle:
    progress.stage(stage_names.LOAD)
    from adaptc.compiler.cache_ranges import with_cache_ranges
    from adaptc.compiler.pipeline import plan_of
    from adaptc.compiler.preflight import refuse_faults
    from adaptc.compiler.publish.bundle_parts import BundleParts
    from adaptc.compiler.stages import lowered, record, with_checkpoint
    from adaptc.compiler.tuning import paying
    from adaptc.passes.base import Pipeline, Step
    from adaptc.passes.device.device_steps import DeviceSteps, cpu_only
    from adaptc.passes.store import PROCESS, Layered
    from adaptc.runtime.bundle.gate_verdict import GateVerdict

    for line in refuse_faults(spec, base):
        warn(line)
    plan = plan_of(spec, base)
    progress.expect(len(plan.stages))
    program, records = lowered(plan, sources, hashes, text, versions(), cache, progress)
    if spec.target.weights == "source":
        program = with_checkpoint(program, sources)

    def observe(step: Step) -> None:
        records.append(record(step))
        if isinstance(step.pass_, DeviceSteps):
            for name, reason in cpu_only(step.before).items():
                warn(f"target: {name} will run on a CPU only; {reason}")

    program = Pipeline(plan.to_target, Layered(cache, PROCESS)).run(program, observe, progress=progress)
    verdicts: dict[str, GateVerdict] = {}
    measured = plan.measures_cache or (plan.tunes and program.gates)
    ids = {name: text.ids(source) for name, source in sources.items()} if measured else {}
    if plan.tunes:
        progress.stage(stage_names.TUNE)
        if program.gates:
            program, verdicts = paying(program, ids, spec.target.batch, progress)
    if plan.measures_cache:
        progress.stage(stage_names.CACHE_RANGES)
        program = with_cache_ranges(program, ids, progress)
    program = Pipeline(plan.to_emit).run(program, observe, progress=progress)
    progress.stage(stage_names.WEIGHTS)
    trained = trained_gates(spec, base)
    parts = BundleParts(spec, program, records, sources, hashes, versions(), verdicts, trained)
    return parts.write(into, progress)


def trained_gates(spec: Spec, base: Path) -> dict[str, Path]:
    """The file of trained gates of each model, where the spec names one."""
    from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
    from adaptc.spec.passes import build_passes

    passes = [each for each in build_passes(spec) if isinstance(each, SkipFfn) and each.gates is not None]
    named = {name: each for each in passes for name in ([each.model] if each.model is not None else spec.models)}
    return {name: Path(each.at(base).files()["gates"]) for name, each in named.items()}
