"""What a sweep measures: the source model of a bundle or of a spec, with its gates and its calibration text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from adaptc.compiler.driver import trained_gates
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import RequestError
from adaptc.evaluation.reference import source_of
from adaptc.evaluation.sweep.policies import Learned
from adaptc.evaluation.text import Ids
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.stored.gates_file import load_gates
from adaptc.passes.drop_modality.decoder import text_only
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import SPEC, gates_file
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import SELF, calibration_text, names_of
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import Spec

WARMUP = 28
"""Of a sweep of a bundle without gates: positions at the start of a window where every block runs."""

SAMPLE = 2048
"""Calibration tokens that importance and tau are measured on, in sequences of 256."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is swept: a bundle's source model with all that policies need.

    Attributes:
        dense: The model, in float32.
        sample: int64 [sequences, tokens] of the calibration text.
        warmup: Positions at the start of a window where every block runs.
        learned: The bundle's trained gates; None if it has none.
    """

    dense: FxGraph
    sample: Ids
    warmup: int
    learned: Learned | None


def bundle_subject(bundle: Bundle, base: Path, progress: Progress = SILENT) -> Subject:
    """Read a bundle's model again, and its gates.

    Raises:
        LoadError: the model is not there, or not the one the bundle was compiled from.
    """
    gates = next(iter(bundle.manifest.gates.values()), None)
    warmup = WARMUP if gates is None else gates.warmup
    spec = read_spec(bundle.file(SPEC))
    return _subject(spec, base, source_of(bundle, base), warmup, learned_of(bundle), progress)


def spec_subject(spec: Spec, base: Path, progress: Progress = SILENT) -> tuple[Subject, Source]:
    """The same of a spec that is not compiled, with the gates its `skip_ffn` names; and its source.

    Raises:
        LoadError: the model or the gates cannot be read.
        RequestError: it has more models than one.
    """
    if len(spec.models) != 1:
        raise RequestError(f"models: {', '.join(spec.models)}; a sweep is of one model")
    source = find_source(next(iter(spec.models.values())), base)
    [*paths] = trained_gates(spec, base).values()
    if not paths:
        return _subject(spec, base, source, WARMUP, None, progress), source
    metadata, weights = load_gates(paths[0])
    learned = Learned(metadata.layers, weights, ((0.0, -math.inf), *metadata.thresholds), metadata.layers)
    return _subject(spec, base, source, metadata.warmup, learned, progress), source


def _subject(
    spec: Spec, base: Path, source: Source, warmup: int, learned: Learned | None, progress: Progress
) -> Subject:
    [name] = spec.models
    # What a model wrote for its own compile is not written anew for the few tokens that are read here.
    written = spec.calibration is not None and SELF in names_of(spec.calibration)
    text = calibration_text(None if written else spec.calibration, base)
    program = program_from_sources({name: source}, text, progress).loaded()
    ids = program.samples[name]
    width = min(256, len(ids))
    rows = min(len(ids), SAMPLE) // width
    return Subject(text_only(program.graph(name, FxGraph)), ids[: rows * width].reshape(rows, width), warmup, learned)


def learned_of(bundle: Bundle) -> Learned | None:
    """The trained gates of a bundle, as far as they were kept when it was compiled; None if it has none."""
    for name, gates in bundle.manifest.gates.items():
        if gates.policy == "learned":
            _, weights = load_gates(bundle.file(gates_file(name)))
            verdict = bundle.manifest.gate_verdicts.get(name)
            decisions = () if verdict is None else verdict.each
            leaders = {each.layer: each.leader for each in decisions if each.leader is not None}
            return Learned(gates.layers, weights, gates.thresholds, tuple(leaders.get(n, n) for n in gates.layers))
    return None
