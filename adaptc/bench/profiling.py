"""`adaptc profile`: accuracy of every subset on labelled data, its seconds on this machine, and the gate between them.

Needs NumPy and the bundle's engine only, so that a bundle can be profiled again where it is deployed.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.machine.description import Machine
from adaptc.report.files import record_of, renewed
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.loading import check_modal, load_modal
from adaptc.runtime.multimodal.inputs import ModalInputs
from adaptc.runtime.multimodal.profile import ModalProfile, SubsetProfile, wilson
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.modality_gate import fit_gate

LABELS = "labels"
ROUNDS = 5
"""Turns of every subset and batch size; a time is their median."""

KEPT = 256 << 20
"""Bytes of features that are kept while nothing is timed: the gate reads what accuracies were measured with."""

Bools = npt.NDArray[np.bool_]
Subset = tuple[str, ...]


def profile_bundle(
    path: Path,
    data: Path,
    *,
    threads: int | None = None,
    largest_batch: int = 32,
    gate: bool = True,
    progress: Progress = SILENT,
) -> ModalProfile:
    """Measure a bundle and write what was found into it.

    Args:
        path: The bundle's folder.
        data: An .npz file: inputs as `infer` takes them, [rows, ...], and `labels` int64[rows]. Training must not have
            seen them.
        threads: Threads of each engine; by default the physical cores.
        largest_batch: Batches of 1, 2, 4, ... up to it are timed.
        gate: Fit a gate as well.
        progress: Told of stages and steps.

    Raises:
        RequestError: the data does not fit the model.
        BundleError: no bundle of a model with modalities there.
    """
    check_modal(open_bundle(path, verify=False))
    with load_modal(path, threads=threads, cache_bytes=0) as session:
        rows, labels = read_labelled(data, session)
        progress.stage("accuracy")
        session.graphs.cache.limit = KEPT
        right = _right(session, rows, labels, progress)
        progress.stage("seconds")
        session.graphs.cache.limit = 0
        batches = tuple(1 << power for power in range(largest_batch.bit_length()))
        seconds, encoders = _seconds(session, rows, batches, progress)
        subsets = []
        for modalities, hits in right.items():
            low, high = wilson(int(hits.sum()), len(hits))
            subsets.append(
                SubsetProfile(float(hits.mean()), low, high, modalities=modalities, seconds=seconds[modalities])
            )
        [name] = open_bundle(path, verify=False).manifest.modal
        profile = ModalProfile(
            name,
            Machine.here().cpu,
            threads or physical_cores(),
            batches,
            len(labels),
            tuple(subsets),
            encoders,
            None,
        )
        if gate and len(subsets) > 1:
            progress.stage("gate")
            session.graphs.cache.limit = KEPT
            profile = dataclasses.replace(profile, gate=fit_gate(session, profile, rows, right))
    bundle = open_bundle(path)
    renewed(bundle, record_of(bundle), profile)
    return profile


def read_labelled(path: Path, session: ModalSession) -> tuple[ModalInputs, npt.NDArray[np.int64]]:
    """Inputs and labels.

    Raises:
        RequestError: the file cannot be read, has no labels, or does not fit the model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: cannot be read: {str(error)[:120]}; an .npz file is needed") from error
    labels = arrays.pop(LABELS, None)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise RequestError(f"{path}: no '{LABELS}'; whole numbers, one for each row, are needed")
    rows = session.read(arrays)
    missing = [name for name in session.modal.modalities if name not in rows]
    count = len(next(iter(next(iter(rows.values())).values())))
    if missing or count != len(labels):
        lacks = f"no {missing[0]}" if missing else f"{count} rows and {len(labels)} labels"
        raise RequestError(f"{path}: {lacks}; every modality and a label for each row are needed")
    return rows, labels.astype(np.int64)


def take(rows: ModalInputs, picked: Any) -> ModalInputs:
    """Some of the rows."""
    return {name: {each: array[picked] for each, array in inputs.items()} for name, inputs in rows.items()}


def outputs_of(
    session: ModalSession, rows: ModalInputs, at_once: int = 32, progress: Progress = SILENT
) -> dict[Subset, npt.NDArray[Any]]:
    """Every subset's first output for every row, float[rows, classes]; each encoder runs once for each row."""
    count = len(next(iter(next(iter(rows.values())).values())))
    parts: dict[Subset, list[npt.NDArray[Any]]] = {each.modalities: [] for each in session.modal.subsets}
    for start in counted(range(0, count, at_once), progress):
        some = take(rows, slice(start, start + at_once))
        features = {name: session.graphs.features(name, inputs) for name, inputs in some.items()}
        for subset, batches in parts.items():
            feeds = {each: array for name in subset for each, array in features[name].items()}
            batches.append(next(iter(session.graphs.engine_run(session.graphs.head(subset), feeds).values())))
    return {subset: np.concatenate(batches) for subset, batches in parts.items()}


def _right(
    session: ModalSession, rows: ModalInputs, labels: npt.NDArray[np.int64], progress: Progress
) -> dict[Subset, Bools]:
    outputs = outputs_of(session, rows, progress=progress)
    for logits in outputs.values():
        if logits.ndim != 2:
            raise RequestError(f"output is {list(logits.shape)}; accuracy is for logits [batch, classes]")
    return {subset: logits.argmax(1) == labels for subset, logits in outputs.items()}


def _seconds(
    session: ModalSession, rows: ModalInputs, batches: tuple[int, ...], progress: Progress
) -> tuple[dict[Subset, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Seconds of each subset, and of each encoder, for each batch size.

    A subset takes what its encoders and its own graph take. These are timed, each by itself, and subsets are sums: were
    subsets timed one by one, a change of load between two of them would make the larger one look as cheap as the
    smaller, and a gate would begin with the wrong one.
    """
    count = len(next(iter(next(iter(rows.values())).values())))
    random = np.random.default_rng(0)
    subsets = [each.modalities for each in session.modal.subsets]
    marks: dict[Any, list[list[float]]] = {each: [[] for _ in batches] for each in (*subsets, *rows)}
    for turn in counted(range(ROUNDS + 1), progress):
        for place, batch in enumerate(batches):
            some = take(rows, random.integers(0, count, batch))
            features = {}
            for name in rows:
                run = partial(session.graphs.features, name, some[name])
                features[name] = _time(marks[name][place], turn, run)
            for subset in subsets:
                feeds = {each: array for name in subset for each, array in features[name].items()}
                head = partial(session.graphs.engine_run, session.graphs.head(subset), feeds)
                _time(marks[subset][place], turn, head)
    # A larger batch never takes less; where it seems to, something else was running.
    medians = {each: np.maximum.accumulate([float(np.median(m)) for m in times]) for each, times in marks.items()}
    whole = {subset: sum((medians[name] for name in subset), medians[subset]) for subset in subsets}
    return (
        {each: tuple(map(float, whole[each])) for each in subsets},
        {name: tuple(map(float, medians[name])) for name in rows},
    )


def _time(marks: list[float], turn: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = perf_counter()
    outputs = run()
    if turn:  # the first turn loads and warms up
        marks.append(perf_counter() - began)
    return outputs
