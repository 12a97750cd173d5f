"""What a session answers, asked of a CPU here and of a GPU there: tokens, decisions, routes, losses; and of subsets of
modalities. `small_bundles.py` writes what a CPU said; tests hold a GPU against it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.scheduler import Scheduler
from adaptc.runtime.generation.sequence import sequence_of
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import load_modal
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.text.sampling import Sampling

RUNS = 100
"""Times that a subset is timed."""


def ask(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """One answer, in plain numbers."""
    kind, prompt, options = request["kind"], request["prompt"], dict(request.get("options", {}))
    if kind == "choose":
        choice = session.choose(prompt, **options)
        return {"routes": choice.route, "losses": [float(loss) for loss in choice.losses.values()]}
    if kind == "score":
        return {"losses": [float(loss) for loss in session.score(prompt, **options).values]}
    if kind == "mixed":
        requests = list(zip(prompt, request["routes"], strict=True))
        return {"ids": mixed(session, requests, request["count"], options.get("budget"))}
    if kind == "reroute":
        return {"ids": rerouted(session, prompt, request["routes"], options.get("budget"))}
    options["sampling"] = Sampling(**options.get("sampling", {}))
    result = session.generate(prompt, max_new_tokens=request["count"], **options)
    skips = result.trace.skips
    ran = [] if skips is None else np.asarray(skips.ran).astype(int).ravel().tolist()
    return {"ids": list(result.ids), "ran": ran, "routes": [list(each) for each in result.trace.routes]}


def mixed(
    session: Session, requests: Sequence[tuple[Sequence[int], str]], count: int, budget: float | None = None
) -> list[list[int]]:
    """One batch in which each prompt has a route of its own, as a router would send them."""
    asked, spec = Request(max_new_tokens=count, seed=0), session._prompts.spec
    answers = [
        sequence_of(asked, np.array(prompt), spec, options=RequestOptions(budget, route)) for prompt, route in requests
    ]
    scheduler = Scheduler(session._decoder)
    scheduler.add(answers)
    while not all(answer.ended for answer in answers):
        scheduler.step()
    return [list(answer.ids) for answer in answers]


def rerouted(session: Session, prompt: list[int], routes: list[str], budget: float | None) -> list[int]:
    """One sequence, each of its tokens by the next route."""
    rows = session._decoder
    ids = [int(rows.start(0, np.array(prompt), RequestOptions(budget, routes[0])).argmax())]
    for route in routes[1:]:
        rows.reroute(0, route)
        ids.append(int(rows.decode(ids[-1:])[0].argmax()))
    return ids


def compare(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Where two answers are the same: shares of tokens and decisions, routes, and how far losses are apart."""
    found: dict[str, Any] = {}
    for name, expected in other.items():
        if name == "losses":
            found[name] = float(np.abs(np.array(mine[name]) - np.array(expected)).max())
        elif name == "routes":
            found[name] = mine[name] == expected
        else:
            flat = [np.concatenate([np.zeros(0), *map(np.atleast_1d, each[name])]) for each in (mine, other)]
            least, most = sorted(map(len, flat))
            same = np.concatenate([flat[0][:least] == flat[1][:least], np.zeros(most - least, np.bool_)])
            found[name] = [int(same.sum()), len(same)]
    return found


def check_answers(bundle: Bundle, expected: Path) -> dict[str, Any]:
    """A GPU's answers beside a CPU's, request by request, and all of them together."""
    from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder

    said = json.loads(expected.read_text())
    rows = tensorrt_decoder(bundle, said["batch"], said["chunk"])
    found: list[dict[str, Any]] = []
    mine: list[dict[str, Any]] = []
    with Session(rows) as session:
        for request, answer in zip(said["requests"], said["answers"], strict=True):
            about = {key: value for key, value in request.items() if key not in ("prompt", "count")}
            try:
                mine.append(ask(session, request))
                found.append(about | compare(mine[-1], answer))
            except Exception as error:
                mine.append({})
                found.append(about | {"failed": f"{type(error).__name__}: {error}"})
            print(json.dumps(found[-1]), flush=True)
        conditional, taken = rows.conditional, dict(rows.taken)
    whole: dict[str, Any] = {
        kind: [sum(each[kind][place] for each in found if kind in each) for place in (0, 1)] for kind in ("ids", "ran")
    }
    whole["routes"] = [sum(bool(each.get("routes")) for each in found), sum("routes" in each for each in found)]
    whole["losses"] = max((each["losses"] for each in found if "losses" in each), default=None)
    whole["failed"] = sum("failed" in each for each in found)
    return {"all": whole, "conditional": conditional, "taken": taken, "each": found, "answers": mine}


def infer_bundle(bundle: Bundle, expected: Path) -> dict[str, Any]:
    """Each subset of a model's modalities against a CPU, and its time."""
    said = dict(np.load(expected))
    feeds = {name.removeprefix("feed."): array for name, array in said.items() if name.startswith("feed.")}
    with load_modal(bundle.path, cache_bytes=0, verify=False) as session:
        subsets = [name for name in said if name.startswith("said.")]
        return {name.removeprefix("said."): _subset(session, feeds, name, said) for name in subsets}


def _subset(session: ModalSession, feeds: dict[str, Any], name: str, said: dict[str, Any]) -> dict[str, float]:
    modalities = name.removeprefix("said.").split("+")
    names = [each for modality in modalities for each in session.modal.modalities[modality].inputs]
    given = {each: feeds[each] for each in names}
    answer = session.infer(given, modalities=modalities).outputs["logits"]
    found = {"most_apart": float(np.abs(answer - said[name]).max()), "largest": float(np.abs(said[name]).max())}
    for rows in (1, 4):
        some = {each: array[:rows] for each, array in given.items()}
        times = []
        for _ in range(RUNS):
            began = perf_counter()
            session.infer(some, modalities=modalities)
            times.append(perf_counter() - began)
        found[f"seconds, {rows} rows"] = median(times)
    print(name, found, flush=True)
    return found
