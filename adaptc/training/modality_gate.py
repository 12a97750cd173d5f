"""Fit a gate: P(correct | subset), from what the cheapest subset sees, calibrated on rows it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adaptc.runtime.multimodal.inputs import ModalInputs
from adaptc.runtime.multimodal.modality_gate import gate_features
from adaptc.runtime.multimodal.profile import ModalityGate, ModalityGateLevel, ModalProfile, wilson
from adaptc.runtime.multimodal.session import ModalSession

FOLDS = 5
LEVELS = 8
"""Settings that are kept, at most."""

NEAR = 0.005
"""A gate is judged by what it costs where it is expected to be this close to the whole's accuracy."""

SURENESS = 4
"""The last so many numbers that a gate reads say how sure the answer is; they are penalized least."""

PENALTIES = (30.0, 300.0, 3000.0)
"""For the features' weights; the best is chosen by the held-out rows."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Subset = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A gate's weights, and what it says of rows it was not fitted on: float[rows, subsets]."""

    weights: Floats
    bias: Floats
    held_out: Floats


def fit_gate(
    session: ModalSession, profile: ModalProfile, rows: ModalInputs, right: Mapping[Subset, Bools]
) -> ModalityGate | None:
    """The best gate over all choices of its first subset.

    Args:
        session: Runs the first subset.
        profile: Seconds and accuracies.
        rows: Labelled inputs.
        right: For each subset, which rows it gets right.

    Returns:
        The gate with the least mean cost at the whole's accuracy minus half a point; None if there is no subset to
        begin with.
    """
    whole = profile.subsets[-1]
    target = whole.accuracy - NEAR
    found: list[tuple[float, ModalityGate]] = []
    for first in profile.subsets[:-1]:
        if first.seconds[-1] > 0.6 * whole.seconds[-1]:
            continue
        larger = [s.modalities for s in profile.subsets if set(s.modalities) > set(first.modalities)]
        gate = _gate(session, profile, rows, right, (first.modalities, *larger))
        enough = [
            first.seconds[-1] / profile.batches[-1] + float(np.dot(level.shares, gate.seconds))
            for level in gate.levels
            if level.accuracy >= target
        ]
        if enough:
            found.append((min(enough), gate))
    return min(found, key=lambda each: each[0])[1] if found else None


def _gate(
    session: ModalSession,
    profile: ModalProfile,
    rows: ModalInputs,
    right: Mapping[Subset, Bools],
    subsets: Sequence[Subset],
) -> ModalityGate:
    first = subsets[0]
    reads = _reads(session, first, rows)
    mean, scale = reads.mean(0), 1 / (reads.std(0) + 1e-6)
    x = (reads - mean) * scale
    truth = np.stack([right[subset] for subset in subsets], 1)
    fit = min((_fit(x, truth, penalty) for penalty in PENALTIES), key=lambda each: _loss(each.held_out, truth))
    extra = _extra(profile, first, subsets)
    order = np.lexsort((extra,))
    assert order[0] == 0  # the first costs nothing beside itself
    gate = ModalityGate(
        subsets=tuple(subsets),
        mean=_floats(mean),
        scale=_floats(scale),
        weights=tuple(map(_floats, fit.weights)),
        bias=_floats(fit.bias),
        seconds=_floats(extra),
        error=calibration_error(fit.held_out, truth),
        rows=len(x),
        levels=(),
    )
    return replace(gate, levels=_levels(fit.held_out, truth, extra))


def _reads(session: ModalSession, first: Subset, rows: ModalInputs) -> Floats:
    count = len(next(iter(next(iter(rows.values())).values())))
    parts = []
    for start in range(0, count, 32):
        feeds = {
            each: array
            for name in first
            for each, array in session.graphs.features(
                name, {n: a[start : start + 32] for n, a in rows[name].items()}
            ).items()
        }
        logits = session.graphs.engine_run(session.graphs.head(first), feeds)
        parts.append(gate_features(feeds, next(iter(logits.values()))))
    return np.concatenate(parts)


def _extra(profile: ModalProfile, first: Subset, subsets: Sequence[Subset]) -> Floats:
    """Seconds a row takes in each subset beside the first, whose encoders are not run again."""
    largest = profile.batches[-1]
    found = [0.0]
    for subset in subsets[1:]:
        known = sum(profile.encoders[name][-1] for name in first if name in subset)
        found.append(max(profile.subset(subset).seconds[-1] - known, 1e-9) / largest)
    return np.array(found)


def _fit(x: Floats, truth: Bools, penalty: float) -> _Fit:
    """A logistic regression for each subset; what is held out is predicted by the other folds' fit."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    held_out = np.empty(truth.shape)
    for each in range(FOLDS):
        out = fold == each
        for column in range(truth.shape[1]):
            weights, bias = logistic(x[~out], truth[~out, column], penalty)
            held_out[out, column] = _sigmoid(x[out] @ weights + bias)
    whole = [logistic(x, truth[:, column], penalty) for column in range(truth.shape[1])]
    return _Fit(np.stack([w for w, _ in whole]), np.array([b for _, b in whole]), held_out)


def logistic(x: Floats, y: Bools, penalty: float) -> tuple[Floats, float]:
    """Weights and bias of the least penalized cross-entropy, by Newton's method.

    Args:
        x: float[rows, width], standardized; the last `SURENESS` columns are penalized by 1.
        y: bool[rows].
        penalty: Half the weight of the other columns' squares.
    """
    spread = np.full(x.shape[1], penalty**-0.5)
    spread[-SURENESS:] = 1.0
    # There may be more columns than rows; the optimum lies in the span of the rows, so no more directions are needed.
    left, sizes, right = np.linalg.svd(x * spread, full_matrices=False)
    weights, bias = _newton(left * sizes, y)
    return spread * (weights @ right), bias


def _newton(x: Floats, y: Bools) -> tuple[Floats, float]:
    """Weights, penalized by half their squares, and a bias that is free."""
    whole = np.concatenate([x, np.ones((len(x), 1))], 1)
    ridge = np.append(np.ones(x.shape[1]), 0.0)
    share = (y.sum() + 0.5) / (len(y) + 1)
    weights = np.append(np.zeros(x.shape[1]), np.log(share / (1 - share)))

    def loss(at: Floats) -> float:
        z = whole @ at
        return float((np.logaddexp(0, z) - y * z).sum() + (ridge * at**2).sum() / 2)

    for _ in range(100):
        p = _sigmoid(whole @ weights)
        gradient = whole.T @ (p - y) + ridge * weights
        curve = (whole * (p * (1 - p))[:, None]).T @ whole + np.diag(ridge + 1e-6)
        step = np.linalg.solve(curve, gradient)
        if np.abs(step).max() < 1e-8:
            break
        # A whole step overshoots where few rows are wrong, and then swings for ever.
        size, now = 1.0, loss(weights)
        while loss(weights - size * step) > now - 1e-4 * size * float(gradient @ step) and size > 1e-6:
            size /= 2
        weights = weights - size * step
    return weights[:-1], float(weights[-1])


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return result


def _loss(p: Floats, truth: Bools) -> float:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-(np.log(p) * truth + np.log(1 - p) * ~truth).mean())


def calibration_error(p: Floats, truth: Bools, parts: int = 5) -> float:
    """Mean |P - share right| over equal parts of the rows by rising P; the worst subset's."""
    errors = []
    for column in range(truth.shape[1]):
        order = np.argsort(p[:, column], kind="stable")
        gaps = [
            abs(p[rows, column].mean() - truth[rows, column].mean()) * len(rows)
            for rows in np.array_split(order, parts)
        ]
        errors.append(sum(gaps) / len(p))
    return float(max(errors))


def _levels(p: Floats, truth: Bools, seconds: Floats) -> tuple[ModalityGateLevel, ...]:
    """Settings from cheap to accurate that no other one beats, on rows the gate was not fitted on."""
    found: list[tuple[float, ModalityGateLevel]] = []
    for price in np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 80)]) / seconds.max():
        chosen = np.argmax(p - price * seconds, 1)
        right = truth[np.arange(len(p)), chosen]
        low, high = wilson(int(right.sum()), len(p))
        shares = np.bincount(chosen, minlength=p.shape[1]) / len(p)
        found.append(
            (
                float(shares @ seconds),
                ModalityGateLevel(float(right.mean()), low, high, price=float(price), shares=_floats(shares)),
            )
        )
    kept: list[ModalityGateLevel] = []
    for _, level in sorted(found, key=lambda each: (each[0], -each[1].accuracy)):
        if not kept or level.accuracy > kept[-1].accuracy:
            kept.append(level)
    thinned = {int(i) for i in np.linspace(0, len(kept) - 1, min(LEVELS, len(kept)))}
    return tuple(level for index, level in enumerate(kept) if index in thinned)


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(v), 10) for v in values)
