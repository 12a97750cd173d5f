"""Skip gates: with blocks left out, the bundle against the rewritten program; and what leaving them out costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.progress import Progress
from adaptc.verification.bundle_model import BundleModel
from adaptc.verification.kinds.decisions import DecidedGraph, wrong_decisions
from adaptc.verification.kinds.steps import is_exact
from adaptc.verification.parity import LOWERING, Passage, Predictions, compare, faults
from adaptc.verification.part import Part, judged
from adaptc.verification.rewritten import Rewritten, with_stored
from adaptc.verification.rounded import weight_faults
from adaptc.verification.stored_weights import BundleWeights

_BY = "the spec's passes over the source, run by torch"


def gate_parts(
    bundle: Bundle,
    base: Path,
    stored: BundleWeights,
    samples: Sequence[Passage],
    expected: Sequence[Predictions],
    threads: int | None,
    progress: Progress,
) -> list[Part]:
    """Compare what a bundle writes under small budgets.

    Args:
        bundle: With skip gates.
        base: The folder that paths in its spec start from.
        stored: Its weights.
        samples: Texts.
        expected: What the source model says to them, every block run.
        threads: Threads of both.
        progress: Told of stages and steps.
    """
    name = bundle.manifest.reader
    gates = bundle.manifest.gates[name]
    rewritten = Rewritten.of(bundle, base, threads, progress)
    graph, errors = with_stored(rewritten.graph(name), stored)
    read_as = next(iter(rewritten.sources.values())).dtype
    own = [each for each in errors if ".skip." in each.name]
    kept = tuple(f".layers.{layer}." for layer in gates.layers)
    wrong = weight_faults([each for each in own if any(part in each.name for part in kept)], read_as)
    parts = [judged("gates' weights", _BY, wrong, {"tensors": len(own)})]
    decided = DecidedGraph.of(graph)
    for budget in dict.fromkeys((0.0, gates.budget)) if gates.budget < 1 else (0.0,):
        progress.stage(f"gates at budget {budget:g}")
        parts += _at_budget(bundle, budget, decided, samples, expected, threads)
    return parts


def _at_budget(
    bundle: Bundle,
    budget: float,
    decided: DecidedGraph,
    samples: Sequence[Passage],
    expected: Sequence[Predictions],
    threads: int | None,
) -> list[Part]:
    name = bundle.manifest.reader
    layers = bundle.manifest.gates[name].layers
    model = BundleModel(bundle, threads, gated=True, exact=is_exact(bundle), budget=budget)
    ours, theirs, full = [], [], []
    wrong = skipped = steps = 0
    try:
        for sample, whole in zip(samples, expected, strict=True):
            logits, ran = model.decided(sample)
            forced, said = decided.run(sample, ran, layers)
            ours.append(Predictions(logits))
            theirs.append(Predictions(forced))
            full.append(Predictions(whole.read[-len(logits) :]))
            wrong += wrong_decisions(bundle, name, budget, said, ran, range(sample.prompt, len(sample.ids)))
            skipped, steps = skipped + int((~ran).sum()), steps + ran.size
    finally:
        model.close()
    share = {"budget": budget, "skipped": skipped / steps}
    lowering, loss = compare(ours, theirs), compare(ours, full)
    found = faults(lowering, LOWERING)
    if wrong:
        found.append(f"{wrong} of {steps} decisions are not those of the gates")
    if not skipped:
        found.append("no block was skipped")
    return [
        judged(f"gates at budget {budget:g}", _BY, found, dataclasses.asdict(lowering) | share),
        # What a pass costs on purpose is said, not judged.
        judged(f"loss at budget {budget:g}", "the source model, every block run", [], dataclasses.asdict(loss) | share),
    ]
