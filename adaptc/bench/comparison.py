"""Speed of a bundle and of other engines on the same model, side by side.

Every measurement runs in a process of its own, one at a time, and the engines take turns (A B C A B C ...): what else
the machine does then falls on all alike, and samples that something else disturbed are left out. Figures are medians,
with the best beside them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.bench.figures import BenchSettings, Turn, is_settled, ratios, same_start, summary
from adaptc.bench.peer_loaders import Job
from adaptc.bench.peers import ADAPTC, Peer
from adaptc.bench.prompt import TEXT
from adaptc.errors import EngineError, RequestError
from adaptc.machine.description import Machine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import tokenizer_of
from adaptc.runtime.model.plan import refuse_encoder
from adaptc.runtime.progress import SILENT, Progress

SECONDS = 1800
"""The longest one process may take."""


@dataclass(frozen=True, slots=True)
class Runner:
    """An engine with the model it loads.

    Attributes:
        peer: The engine.
        model: What it loads.
        route: Route of a stitched bundle; None for any other model.
    """

    peer: Peer
    model: Path
    route: str | None = None

    @property
    def name(self) -> str:
        """What its figures are called."""
        return self.peer.name if self.route is None else f"{self.peer.name} {self.route}"


Start = Callable[[Runner, Job], Turn]
"""Run a job in a process of its own."""


def prompts(bundle: Bundle, settings: BenchSettings) -> tuple[list[int], list[int]]:
    """The two prompts as token ids: the start of one English text, repeated if it is too short.

    Raises:
        RequestError: they do not fit the bundle, or it has no tokenizer.
    """
    refuse_encoder(bundle)
    tokenizer = tokenizer_of(bundle)
    decoder = bundle.manifest.graphs[bundle.manifest.reader].decoder
    if tokenizer is None or decoder is None:
        raise RequestError(f"{bundle.path}: no tokenizer or no decoder; there is nothing to time")
    needed = max(settings.prompt_tokens + settings.new_tokens, settings.long_tokens + 1)
    if needed > decoder.max_tokens:
        most = decoder.max_tokens
        new = min(settings.new_tokens, most // 2)
        prompt, long = min(settings.prompt_tokens, most - new), min(settings.long_tokens, most - 1)
        raise RequestError(
            f"{bundle.path}: holds {most} tokens, and {needed} would be measured; "
            f"--prompt-tokens {prompt} --new-tokens {new} --long-tokens {long} fit"
        )
    # Joined lines: a line break in the middle of a sentence would be a token of its own.
    ids = tokenizer.encode("\n\n".join(" ".join(part.split()) for part in TEXT.split("\n\n")))
    while len(ids) < max(settings.prompt_tokens, settings.long_tokens):
        ids = ids + ids
    return ids[: settings.prompt_tokens], ids[: settings.long_tokens]


def start(runner: Runner, job: Job) -> Turn:
    """Run a job in a process of its own.

    Raises:
        EngineError: the process failed; the message has the last line it wrote.
    """
    name = runner.peer.name
    # OpenMP's threads (llama.cpp, torch) are counted here for whoever starts them without being asked.
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "adaptc.bench.peers", name, json.dumps(dataclasses.asdict(job))]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{name}: no result after {SECONDS} seconds") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        message = lines[-1] if lines else f"exit code {done.returncode}"
        raise EngineError(f"{name}: failed: {message[:300]}")
    # Libraries may write to stdout too; the result is the last line.
    result: Turn = json.loads(done.stdout.decode().splitlines()[-1])
    return result


def bench(
    runners: Sequence[Runner],
    ids: tuple[list[int], list[int]],
    settings: BenchSettings,
    progress: Progress = SILENT,
    start: Start = start,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measure engines in turn.

    Args:
        runners: adaptc, by one route or several, and its peers.
        ids: The two prompts; see `prompts`.
        settings: How to measure.
        progress: Told of every turn, and whose is next.
        start: Runs one turn.

    Returns:
        What `summary` makes of each engine's turns, by name; and why an engine failed, by name.

    Raises:
        EngineError: adaptc itself failed.
    """
    turns: dict[str, list[Turn]] = {runner.name: [] for runner in runners}
    failed: dict[str, str] = {}
    # As many rounds again, at most, for engines that something else disturbed.
    progress.stage("speed")
    for turn in range(2 * settings.rounds):
        for place, runner in enumerate(runners):
            name = runner.name
            if name in failed or (turn >= settings.rounds and is_settled(turns[name], settings)):
                continue
            total = settings.rounds * (1 if turn < settings.rounds else 2) * len(runners)
            progress.step(turn * len(runners) + place, total, name)
            job = Job(str(runner.model), *ids, settings.new_tokens, settings.threads, settings.samples, runner.route)
            try:
                turns[name].append(start(runner, job))
            except EngineError as error:
                if runner.peer is ADAPTC:
                    raise
                failed[name] = str(error)
    own = turns[runners[0].name][-1]["ids"]
    results = {
        runner.name: summary(turns[runner.name], settings)
        | {
            "same_tokens": same_start(own, turns[runner.name][-1]["ids"]),
            "version": runner.peer.version,
            "computes": runner.peer.computes,
        }
        for runner in runners
        if runner.name not in failed
    }
    return results, failed


def report_of(
    results: Mapping[str, Mapping[str, Any]],
    settings: BenchSettings,
    missing: Mapping[str, str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that was measured, as JSON has it.

    Args:
        results: As `bench` returns them.
        settings: How it was measured.
        missing: For each peer that was asked for and cannot be measured here, what would help.
        failed: As `bench` returns them.
    """
    return {
        "results": dict(results),
        "ratios": ratios(results),
        "missing": dict(missing),
        "failed": dict(failed),
        "settings": dataclasses.asdict(settings),
        "machine": dataclasses.asdict(Machine.here()),
    }
