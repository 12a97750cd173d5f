"""What `adaptc bench --jobs` measures, in one run: throughput, completion times, accuracy, and the gate's worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.bench.profiling import outputs_of, read_labelled, take
from adaptc.bench.replay import Load, arrivals, replay, rivals, summary
from adaptc.errors import RequestError
from adaptc.machine.description import Machine
from adaptc.runtime.loading import load_modal
from adaptc.runtime.multimodal.inputs import ModalInputs
from adaptc.runtime.multimodal.modality_gate import choose_subsets, gate_features, probabilities
from adaptc.runtime.multimodal.profile import ModalityGate
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.progress import SILENT, Progress
from adaptc.training.modality_gate import NEAR, calibration_error

OVERLOAD = 0.8
"""The overload point: so much of what the adaptive policy can do, which is far more than the whole model can."""


def bench_jobs(
    path: Path,
    data: Path,
    load: Load,
    *,
    turns: int = 5,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Replay jobs on a profiled bundle.

    Policies take turns, so that other programs disturb all of them alike. Every turn has its own overload point and its
    own ratios; figures are medians over the turns.

    Args:
        path: The bundle.
        data: An .npz file of labelled rows that neither training nor profiling saw.
        load: How jobs come.
        turns: How often each policy runs, from 1.
        threads: Threads of each engine; by default the physical cores.
        progress: Told of stages and steps.

    Returns:
        The figures, as JSON has them; `throughput_ratio`, `job_completion_ratio`, `accuracy_full`,
        `accuracy_adaptive`, `jobs_under_floor` and `deadlines_missed` among them, and every turn under `turns`.

    Raises:
        RequestError: the bundle was never profiled, or the data does not fit it.
    """
    with load_modal(path, threads=threads, cache_bytes=0) as session:
        if session.profile is None:
            raise RequestError(f"{path}: never profiled; adaptc profile {path} does")
        rows, labels = read_labelled(data, session)
        known = rivals(session, load.sizes[1])
        whole = next(o for o in session.options if o.subset == session.modal.subsets[-1].modalities)
        _warm(session, rows)

        def run(kind: str, rate: float, turn: int) -> dict[str, dict[str, Any]]:
            jobs = arrivals(load, rate, kind, whole, len(labels), whole.accuracy)
            found = {}
            for name in _order(list(known), turn):
                progress.stage(f"{kind}, {name}, turn {turn + 1} of {turns}")
                found[name] = summary(replay(session, known[name], jobs, rows, labels), jobs)
            return found

        taken = [_turn(run, turn, list(known)[-1]) for turn in range(turns)]
        figures = _figures(taken, list(known))
        gate = session.profile.gate
        if gate is not None:
            progress.stage("gate")
            figures["gate"] = gate_worth(session, gate, rows, labels)
            figures["chosen"] = known["auto"].policy.chosen
        return figures | {"threads": session.profile.threads, "machine": dataclasses.asdict(Machine.here())}


def _order(names: list[str], turn: int) -> list[str]:
    """Each turn begins with another policy."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def _turn(run: Callable[[str, float, int], dict[str, dict[str, Any]]], turn: int, adaptive: str) -> dict[str, Any]:
    """All policies, all kinds of arrivals, and the ratios between them."""
    saturated = run("all at once", math.inf, turn)
    rate = OVERLOAD * saturated[adaptive]["requests_per_second"]
    replays = {kind: run(kind, rate, turn) for kind in ("poisson", "bursty")}
    return {
        "throughput_ratio": _ratio(saturated, adaptive, "requests_per_second"),
        "job_completion_ratio": 1 / _ratio(replays["poisson"], adaptive, "mean_completion_seconds"),
        "job_completion_ratio_bursty": 1 / _ratio(replays["bursty"], adaptive, "mean_completion_seconds"),
        "overload_requests_per_second": rate,
        "saturated": saturated,
        **replays,
    }


RATIOS = ("throughput_ratio", "job_completion_ratio", "job_completion_ratio_bursty")


def _figures(turns: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Medians over turns, and the range of the ratios."""
    adaptive = names[-1]
    kinds = {
        kind: {name: _medians([turn[kind][name] for turn in turns]) for name in names}
        for kind in ("saturated", "poisson", "bursty")
    }
    poisson = kinds["poisson"]
    ratios = {key: [turn[key] for turn in turns] for key in RATIOS}
    return {
        **{key: float(np.median(each)) for key, each in ratios.items()},
        "ranges": {key: [min(each), max(each)] for key, each in ratios.items()},
        "accuracy_full": poisson["whole"]["accuracy"],
        "accuracy_adaptive": poisson[adaptive]["accuracy"],
        "jobs_under_floor": poisson[adaptive]["jobs_under_floor"],
        "deadlines_missed": poisson[adaptive]["deadlines_missed"],
        "deadlines_missed_full": poisson["whole"]["deadlines_missed"],
        "overload_requests_per_second": float(np.median([turn["overload_requests_per_second"] for turn in turns])),
        "policy": adaptive,
        **kinds,
        "turns": turns,
    }


def _medians(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number; what is none is the first turn's."""
    return {
        key: float(np.median([each[key] for each in summaries])) if isinstance(value, int | float) else value
        for key, value in summaries[0].items()
    }


def _warm(session: ModalSession, rows: ModalInputs) -> None:
    """Load every graph, so that no policy pays for it."""
    for subset in session.modal.subsets:
        session.graphs.run(subset.modalities, take(rows, slice(0, 2)))


def _ratio(results: Mapping[str, Mapping[str, Any]], name: str, key: str) -> float:
    return float(results[name][key] / results["whole"][key])


def gate_worth(
    session: ModalSession, gate: ModalityGate, rows: ModalInputs, labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """The gate against the table of subsets, on rows that it was neither fitted nor calibrated on.

    Costs are the profile's seconds a row in large batches. The table's accuracy at a cost is the best mix of two
    subsets, chosen on these rows, which the gate's settings are not.

    Returns:
        `calibration_error`; for each level its cost, accuracy, the table's accuracy at that cost and the table's cost
        at that accuracy; `cost_ratio` of the cheapest level that is within half a point of the whole by the profile.
    """
    assert session.profile is not None
    largest = session.profile.batches[-1]
    logits = outputs_of(session, rows)
    right = {subset: each.argmax(1) == labels for subset, each in logits.items()}
    costs = {s.modalities: s.seconds[-1] / largest for s in session.profile.subsets}
    table = hull([(costs[each], float(hits.mean())) for each, hits in right.items()])
    feeds = {e: a for name in gate.subsets[0] for e, a in session.graphs.features(name, rows[name]).items()}
    reads = gate_features(feeds, logits[gate.subsets[0]])
    p = probabilities(gate, reads)
    truth = np.stack([right[each] for each in gate.subsets], 1)
    levels: list[dict[str, Any]] = []
    for level in gate.levels:
        chosen = choose_subsets(gate, reads, level.price)
        accuracy = float(truth[np.arange(len(p)), chosen].mean())
        cost = costs[gate.subsets[0]] + float(np.array(gate.seconds)[chosen].mean())
        same = cost_at(table, accuracy)
        levels.append(
            {
                "accuracy": accuracy,
                "expected_accuracy": level.accuracy,
                "seconds": cost,
                "table_accuracy_at_same_cost": accuracy_at(table, cost),
                "table_seconds_at_same_accuracy": same if math.isfinite(same) else None,
            }
        )
    floor = session.profile.subsets[-1].accuracy - NEAR
    near = [each for each in levels if each["expected_accuracy"] >= floor]
    best = min(near, key=lambda each: each["seconds"]) if near else None
    return {
        "calibration_error": calibration_error(p, truth),
        "calibration_error_profiled": gate.error,
        "reads": "+".join(gate.subsets[0]),
        "rows": len(labels),
        "cost_ratio": best["seconds"] / (best["table_seconds_at_same_accuracy"] or table[-1][0]) if best else None,
        "accuracy_gain": best["accuracy"] - best["table_accuracy_at_same_cost"] if best else None,
        "levels": levels,
        "table": [{"seconds": c, "accuracy": a} for c, a in table],
    }


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy), those that no mix of two others beats, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if kept and accuracy <= kept[-1][1]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-1], (cost, accuracy)):
            kept.pop()
        kept.append((cost, accuracy))
    return kept


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-15)


def accuracy_at(table: list[tuple[float, float]], cost: float) -> float:
    """The best accuracy of a mix at a mean cost."""
    return float(np.interp(cost, [c for c, _ in table], [a for _, a in table]))


def cost_at(table: list[tuple[float, float]], accuracy: float) -> float:
    """The least mean cost of a mix with an accuracy; infinite if there is none."""
    if accuracy > table[-1][1] + 1e-12:
        return math.inf
    return float(np.interp(accuracy, [a for _, a in table], [c for c, _ in table]))
