"""A table of quality: perplexity against the dense twin for shares of feed-forward blocks skipped, by every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptc.errors import RequestError
from adaptc.evaluation.sweep.oracle import Rule, Scored, constant, score
from adaptc.evaluation.sweep.policies import Policy, policies
from adaptc.evaluation.sweep.speed import Timing, speeds
from adaptc.evaluation.sweep.subject import Subject, bundle_subject, spec_subject
from adaptc.evaluation.text import Ids, read_text, text_ids
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.sources.calibration_text import prose
from adaptc.spec.reading import read_spec

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Of all feed-forward blocks."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How to sweep.

    Attributes:
        window: Tokens in a window.
        shares: Shares of all feed-forward blocks, rising.
        device: Device of torch: "cpu" or "cuda".
        seed: Seed of random skipping.
    """

    window: int = 512
    shares: tuple[float, ...] = SHARES
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """What `sweep` measures, and with what.

    Attributes:
        settings: How quality is measured.
        speed: Whether a bundle's speed is measured at each share too.
        threads: Threads of the engine; None for the physical cores.
        base: The folder that paths in a bundle's spec start from.
    """

    settings: SweepSettings
    speed: bool = True
    threads: int | None = None
    base: Path = Path()


def sweep(
    path: Path,
    text: Path,
    tokens: int | None,
    options: Options,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure every policy at every share, of a bundle or of a spec, as `--json` prints it.

    Args:
        path: A bundle's folder, or a spec (`.yaml`, `.yml`); the latter has no speed.
        text: A UTF-8 file that nothing was trained on.
        tokens: Use only so many tokens of it, from the start.
        options: How to measure.
        progress: Told of stages and steps.

    Raises:
        LoadError: a model or gates cannot be read.
        RequestError: the text cannot be read or is too short.
    """
    bundle = None
    if path.suffix in (".yaml", ".yml"):
        subject, source = spec_subject(read_spec(path), path.parent, progress)
        ids = prose(text.name, read_text(text), tokens or 1 << 40).ids(source)
    else:
        bundle = open_bundle(path)
        subject, ids = bundle_subject(bundle, options.base, progress), text_ids(bundle, text, tokens)
    settings = options.settings
    result = {"of": path.name, "text": text.name} | quality(subject, ids, settings, progress)
    if options.speed and bundle is not None and bundle.manifest.gates:
        result["speed"] = speeds(bundle, ids, (0.0, *settings.shares), Timing(threads=options.threads), progress)
    return result


def quality(subject: Subject, ids: Ids, settings: SweepSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Perplexity of every policy at every share, as `--json` prints it.

    Args:
        subject: What is swept.
        ids: int64 [tokens], a text that nothing was trained on.
        settings: How.
        progress: Told of stages and steps.

    Raises:
        RequestError: no token of a window comes after the warm-up.
    """
    if settings.window < subject.warmup + 2 or len(ids) < subject.warmup + 2:
        raise RequestError(
            f"window: {min(settings.window, len(ids))} tokens; more than the {subject.warmup} of the warm-up are needed"
        )
    warmup = max(1, subject.warmup)  # a window's first token is read like a prompt
    progress.stage("importance of blocks and layers")
    subject.dense.module.to(settings.device)
    policy_of = policies(subject.dense, subject.sample, subject.warmup, subject.learned, settings.seed)

    def run(rule: Rule) -> Scored:
        rule.graph.module.to(settings.device)
        return score(rule, ids, settings.window, warmup, settings.device)

    progress.stage("dense")
    dense = run(Rule(subject.dense, constant(-math.inf)))
    return {
        "method": "FX graph of the source model in float32, whole windows, a threshold for each token",
        "window": settings.window,
        "warmup": subject.warmup,
        "tokens": dense.tokens[0],
        "tokens_after_warmup": dense.tokens[1],
        "seed": settings.seed,
        "device": settings.device,
        "torch": torch.__version__,
        "dense_perplexity": math.exp(dense.means[0]),
        "policies": {
            name: _rows(name, policy, settings.shares, run, dense, progress) for name, policy in policy_of.items()
        },
        "missing": {} if subject.learned is not None else {"learned": "the bundle has no trained gates"},
    }


def _rows(
    name: str, policy: Policy, shares: Sequence[float], run: Callable[[Rule], Scored], dense: Scored, progress: Progress
) -> list[dict[str, Any]]:
    rows = []
    progress.stage(f"policy {name}")
    for share in counted(shares, progress):
        rule = policy(share)
        if rule is None:
            continue
        scored = run(rule)
        every, after = (math.exp(ours - theirs) for ours, theirs in zip(scored.means, dense.means, strict=True))
        rows.append(
            {
                "share": share,
                "ffn_skipped": round(scored.skipped, 5),
                "ratio": round(every, 5),
                "ratio_after_warmup": round(after, 5),
                "rule": rule.about,
            }
        )
    return rows
