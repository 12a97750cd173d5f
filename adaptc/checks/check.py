"""Will this spec compile here? From configs alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptc.checks.adapters import adapter_findings
from adaptc.checks.encoder import encoder_findings
from adaptc.checks.finding import Finding
from adaptc.checks.language_model import (
    architecture,
    expert_findings,
    head_findings,
    rope_findings,
    vocabulary_findings,
)
from adaptc.checks.model_size import Size, size_of, size_of_shapes
from adaptc.checks.multimodal import image_findings, keeps_images, module_findings
from adaptc.checks.resources import room_findings, version_findings
from adaptc.checks.stitch import spec_faults
from adaptc.checks.unknown_family import explain
from adaptc.errors import LoadError, SpecError
from adaptc.families.encoder_model import encoder_of
from adaptc.families.model import text_of
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import SELF, calibration_text, names_of
from adaptc.sources.find import find_source
from adaptc.sources.module import ModuleSource
from adaptc.spec.schema import CalibrationSpec, ModelSpec, Spec, TargetSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MB = 1e6


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings, in the order they were made."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.level != "error" for finding in self.findings)


def check(spec: Spec, base: Path, *, explained: bool = False) -> CheckReport:
    """Check a spec against its models and this machine.

    Args:
        spec: What would be compiled.
        base: Folder that relative paths start from: the spec's.
        explained: Whether to say which parts of a model of an unknown family are foreign, and which file to write.

    Returns:
        The findings. A spec that cannot work raises nothing: it has findings of level `error`.
    """
    return CheckReport(tuple(_findings(spec, base, explained)))


def _findings(spec: Spec, base: Path, explained: bool) -> Iterator[Finding]:
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
            known[name] = source, source.config()
            yield from _model_findings(spec, name, *known[name], sizes)
        except LoadError as error:
            yield Finding(name, "error", str(error))
            if explained:
                yield from _explained(name, model, base)
    if spec.target.weights == "source" and known and not any(s.quantization() for s, _ in known.values()):
        text = f"weights: source keeps codes, and {', '.join(known)} has none; int4, int8, fp16 or fp32 is right"
        yield Finding("target", "error", text)
    if spec.passes and len(known) == len(spec.models):
        for fault in spec_faults(spec, known):
            yield Finding("stitch", "error", fault)
    if len(spec.models) > 1 and not spec.passes:
        text = f"{', '.join(spec.models)}, and no pass that joins them; one model is right without passes"
        yield Finding("models", "error", text)
    if sizes:
        yield from room_findings(sizes, spec.target.max_tokens, base, whole=bool(spec.passes))
    yield from version_findings()
    if spec.calibration is not None:
        yield _calibration(spec.calibration, base)


def _explained(name: str, model: ModelSpec, base: Path) -> Iterator[Finding]:
    try:
        yield from explain(name, find_source(model, base))
    except LoadError:  # which is said already
        return


def _model_findings(
    spec: Spec, name: str, source: Source, config: PretrainedConfig, sizes: list[Size]
) -> Iterator[Finding]:
    """Yield what there is to say of one model; its size is appended to `sizes`.

    Raises:
        LoadError: it cannot be read further.
    """
    if encoder_of(config) is not None:
        yield from encoder_findings(spec, name, source, config, sizes)
    else:
        yield from _decoder_findings(spec, name, source, config, sizes)
    if source.kind != "hub":  # whose weights may not be here yet
        source.tensors()  # compares the files' headers with the config; none is read
    yield from (Finding(name, "warn", remark) for remark in source.remarks())


def _decoder_findings(
    spec: Spec, name: str, source: Source, config: PretrainedConfig, sizes: list[Size]
) -> Iterator[Finding]:
    """Yield what there is to say of a decoder, with or without images."""
    text = text_of(config)
    shape = [architecture(name, text), *image_findings(name, config, spec), *head_findings(name, text, spec.target)]
    yield from shape
    yield from expert_findings(name, text, spec.target)
    yield from rope_findings(name, text, spec.target)
    yield from vocabulary_findings(name, source, text)
    yield from adapter_findings(spec, name, source, config)
    if all(finding.level != "error" for finding in shape):
        sizes.append(size_of(config, spec.target, spec.models[name].dtype, images=keeps_images(spec, name)))
        yield _size(name, sizes[-1], spec.target)


def _size(name: str, size: Size, target: TargetSpec) -> Finding:
    most = "at most " if target.weights == "source" else ""  # what kinds of codes it has is not read here
    text = f"{size.parameters / _MB:,.1f} M parameters, {most}{size.bundle / _MB:,.0f} MB as {target.weights}"
    return Finding(name, "ok", text)


def _calibration(calibration: CalibrationSpec, base: Path) -> Finding:
    if SELF in names_of(calibration):
        others = [name for name in names_of(calibration) if name != SELF]
        if not others:
            return Finding("calibration", "ok", f"{calibration.tokens} tokens that the model writes")
        calibration = calibration.model_copy(update={"text": tuple(others)})
    try:
        size = calibration_text(calibration, base).size
    except (LoadError, SpecError) as error:
        return Finding("calibration", "error", str(error).removeprefix("calibration.text: "))
    return Finding("calibration", "ok", f"{', '.join(names_of(calibration))}, {size / _MB:,.1f} MB")
