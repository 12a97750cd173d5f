"""A table of quality: perplexity against the dense twin for shares of feed-forward blocks skipped, by every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptc.compiler.driver import trained_gates
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import RequestError
from adaptc.evaluation.oracle import Rule, Scored, constant, score
from adaptc.evaluation.perplexity import Ids
from adaptc.evaluation.policies import Learned, Policy, policies
from adaptc.evaluation.reference import source_of
from adaptc.ir.gates_file import load_gates
from adaptc.ir.graph import FxGraph
from adaptc.passes.drop_modality.decoder import text_only
from adaptc.runtime.bundle.folder import Bundle
from adaptc.sources.base import Source, find_source
from adaptc.sources.calibration_text import calibration_text
from adaptc.spec.schema import Spec, read_spec

Stage = Callable[[str], None]

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Of all feed-forward blocks."""

WARMUP = 28
"""Of a sweep of a bundle without gates: positions at the start of a window where every block runs."""

SAMPLE = 2048
"""Calibration tokens that importance and tau are measured on, in sequences of 256."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to sweep.

    Attributes:
        window: Tokens in a window.
        shares: Of all feed-forward blocks, rising.
        device: Of torch: "cpu" or "cuda".
        seed: Of random skipping.
    """

    window: int = 512
    shares: tuple[float, ...] = SHARES
    device: str = "cpu"
    seed: int = 0


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


def subject(bundle: Bundle, base: Path, stage: Stage = lambda _: None) -> Subject:
    """Read a bundle's model again, and its gates.

    Raises:
        LoadError: the model is not there, or not the one the bundle was compiled from.
    """
    gates = next(iter(bundle.manifest.gates.values()), None)
    warmup = WARMUP if gates is None else gates.warmup
    spec = read_spec(bundle.path / "spec.yaml")
    return _subject(spec, base, source_of(bundle, base), warmup, learned_of(bundle), stage)


def spec_subject(spec: Spec, base: Path, stage: Stage = lambda _: None) -> tuple[Subject, Source]:
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
        return _subject(spec, base, source, WARMUP, None, stage), source
    card, weights = load_gates(paths[0])
    learned = Learned(card.layers, weights, ((0.0, None), *card.thresholds), card.layers)
    return _subject(spec, base, source, card.warmup, learned, stage), source


def _subject(spec: Spec, base: Path, source: Source, warmup: int, learned: Learned | None, stage: Stage) -> Subject:
    [name] = spec.models
    program = program_from_sources({name: source}, calibration_text(spec.calibration, base), stage)
    ids = program.samples[name]
    width = min(256, len(ids))
    rows = min(len(ids), SAMPLE) // width
    return Subject(text_only(program.graph(name, FxGraph)), ids[: rows * width].reshape(rows, width), warmup, learned)


def learned_of(bundle: Bundle) -> Learned | None:
    """The trained gates of a bundle, as far as they were kept when it was compiled; None if it has none."""
    for name, gates in bundle.manifest.gates.items():
        if gates.policy == "learned":
            _, weights = load_gates(bundle.path / "gates" / f"{name}.safetensors")
            found = bundle.manifest.report.get("gates", {}).get(name, {}).get("each", [])
            leaders = {each["layer"]: each["leader"] for each in found if each["leader"] is not None}
            return Learned(gates.layers, weights, gates.thresholds, tuple(leaders.get(n, n) for n in gates.layers))
    return None


def quality(given: Subject, ids: Ids, settings: Settings, stage: Stage = lambda _: None) -> dict[str, Any]:
    """Perplexity of every policy at every share, as `--json` prints it.

    Args:
        given: What is swept.
        ids: int64 [tokens], a text that nothing was trained on.
        settings: How.
        stage: Told what is being measured.

    Raises:
        RequestError: no token of a window comes after the warm-up.
    """
    if settings.window < given.warmup + 2 or len(ids) < given.warmup + 2:
        raise RequestError(
            f"window: {min(settings.window, len(ids))} tokens; more than the {given.warmup} of the warm-up are needed"
        )
    warmup = max(1, given.warmup)  # a window's first token is read like a prompt
    stage("importance of blocks and layers")
    given.dense.module.to(settings.device)
    ways = policies(given.dense, given.sample, given.warmup, given.learned, settings.seed)

    def run(rule: Rule) -> Scored:
        rule.graph.module.to(settings.device)
        return score(rule, ids, settings.window, warmup, settings.device)

    stage("dense")
    dense = run(Rule(given.dense, constant(-math.inf)))
    return {
        "method": "FX graph of the source model in float32, whole windows, a threshold for each token",
        "window": settings.window,
        "warmup": given.warmup,
        "tokens": dense.tokens[0],
        "tokens_after_warmup": dense.tokens[1],
        "seed": settings.seed,
        "device": settings.device,
        "torch": torch.__version__,
        "dense_perplexity": math.exp(dense.means[0]),
        "policies": {name: _rows(name, way, settings.shares, run, dense, stage) for name, way in ways.items()},
        "missing": {} if given.learned is not None else {"learned": "the bundle has no trained gates"},
    }


def _rows(
    name: str, way: Policy, shares: Sequence[float], run: Callable[[Rule], Scored], dense: Scored, stage: Stage
) -> list[dict[str, Any]]:
    rows = []
    for share in shares:
        stage(f"{name} {share:.0%}")
        rule = way(share)
        if rule is None:
            continue
        found = run(rule)
        every, after = (math.exp(ours - theirs) for ours, theirs in zip(found.means, dense.means, strict=True))
        rows.append(
            {
                "share": share,
                "ffn_skipped": round(found.skipped, 5),
                "ratio": round(every, 5),
                "ratio_after_warmup": round(after, 5),
                "rule": rule.about,
            }
        )
    return rows


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A sweep as the heads of columns, and rows of cells."""
    names = list(result["policies"])
    speed = {row["share"]: row for row in result.get("speed", {}).get("rows", [])}
    heads = ["skipped", *names, *(["decode\ntok/s", "vs dense", "ceiling"] if speed else [])]
    found = {name: {row["share"]: row for row in rows} for name, rows in result["policies"].items()}
    rows = []
    for share in sorted({share for each in found.values() for share in each}):
        cells = [f"{share:.0%}"]
        for name in names:
            row = found[name].get(share)
            off = row is not None and abs(row["ffn_skipped"] - share) >= 0.01
            cells.append("" if row is None else f"{_ratio(row['ratio'])}{_at(row) if off else ''}")
        if speed:
            row = speed.get(share)
            keys = ("tokens_per_second", "ratio", "ceiling")
            cells += [f"{row[key]:.3g}" if row is not None else "" for key in keys]
        rows.append(cells)
    return heads, rows


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}"


def _at(row: Mapping[str, Any]) -> str:
    """Says the real share, where it is not the asked one."""
    return f" @{row['ffn_skipped']:.0%}"
