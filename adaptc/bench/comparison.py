"""Speed of a bundle and of other engines on the same model, side by side.

Every measurement runs in a process of its own, one at a time, and the engines take turns (A B C A B C ...): what else
the machine does then falls on all alike, and samples that something else disturbed are left out. Figures are medians,
with the best beside them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from adaptc.bench.peers import ADAPTC, Job, Peer
from adaptc.bench.prompt import TEXT
from adaptc.errors import EngineError, RequestError
from adaptc.runtime.bundle.folder import Bundle

SECONDS = 1800
"""The longest one process may take."""

DISTURBED = 0.15
"""A sample during which others kept more than so many processors busy does not count, if there are others."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        threads: Of every engine.
        prompt_tokens: Tokens that are read before writing.
        new_tokens: Tokens that are written.
        long_tokens: Tokens of a second prompt that is only read; 0 leaves it out.
        rounds: Turns of each engine.
        samples: Answers in a turn, the warm-up aside.
    """

    threads: int
    prompt_tokens: int = 90
    new_tokens: int = 64
    long_tokens: int = 512
    rounds: int = 5
    samples: int = 3


@dataclass(frozen=True, slots=True)
class Runner:
    """An engine with the model it loads.

    Attributes:
        peer: The engine.
        model: What it loads.
        route: Of a stitched bundle; None for any other model.
    """

    peer: Peer
    model: Path
    route: str | None = None

    @property
    def name(self) -> str:
        """What its figures are called."""
        return self.peer.name if self.route is None else f"{self.peer.name} {self.route}"


Turn = Mapping[str, Any]
"""What `peers.measure` returns."""

Start = Callable[[Runner, Job], Turn]
"""Run a job in a process of its own."""


def prompts(bundle: Bundle, settings: Settings) -> tuple[list[int], list[int]]:
    """The two prompts as token ids: the start of one English text, repeated if it is too short.

    Raises:
        RequestError: they do not fit the bundle, or it has no tokenizer.
    """
    from adaptc.runtime.text.tokenizer import Tokenizer

    folder = bundle.path / "tokenizer"
    decoder = bundle.manifest.graphs[bundle.manifest.reader].decoder
    if not folder.exists() or decoder is None:
        raise RequestError(f"{bundle.path}: no tokenizer or no decoder; there is nothing to time")
    needed = max(settings.prompt_tokens + settings.new_tokens, settings.long_tokens + 1)
    if needed > decoder.max_tokens:
        raise RequestError(f"prompt: {needed} tokens are needed; this bundle holds {decoder.max_tokens}: ask for fewer")
    # Joined lines: a line break in the middle of a sentence would be a token of its own.
    ids = Tokenizer(folder).encode("\n\n".join(" ".join(part.split()) for part in TEXT.split("\n\n")))
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
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise EngineError(f"{name}: failed: {said[:300]}")
    # Libraries may write to stdout too; the result is the last line.
    result: Turn = json.loads(done.stdout.decode().splitlines()[-1])
    return result


def bench(
    runners: Sequence[Runner],
    ids: tuple[list[int], list[int]],
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
    start: Start = start,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measure engines in turn.

    Args:
        runners: adaptc, by one route or several, and its peers.
        ids: The two prompts; see `prompts`.
        settings: How to measure.
        progress: Told before every turn whose it is.
        start: Runs one turn.

    Returns:
        What `summary` makes of each engine's turns, by name; and why an engine failed, by name.

    Raises:
        EngineError: adaptc itself failed.
    """
    turns: dict[str, list[Turn]] = {runner.name: [] for runner in runners}
    failed: dict[str, str] = {}
    # As many rounds again, at most, for engines that something else disturbed.
    for turn in range(2 * settings.rounds):
        for runner in runners:
            name = runner.name
            if name in failed or (turn >= settings.rounds and is_settled(turns[name], settings)):
                continue
            progress(f"round {turn + 1}: {name}")
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


def is_settled(turns: Sequence[Turn], settings: Settings) -> bool:
    """Whether at least half of the samples that were asked for are undisturbed."""
    wanted = settings.rounds * settings.samples / 2
    kinds = ("samples", "long_samples") if settings.long_tokens else ("samples",)
    return all(len(undisturbed(turns, kind)) >= wanted for kind in kinds)


def undisturbed(turns: Sequence[Turn], kind: str) -> list[list[float]]:
    """The samples of all turns during which others did not use the machine, or one cannot know."""
    return [sample[:3] for turn in turns for sample in turn[kind] if (sample[3] or 0) <= DISTURBED]


def summary(turns: Sequence[Turn], settings: Settings) -> dict[str, Any]:
    """One engine's figures: medians over the undisturbed samples of all turns, and the best sample.

    Returns:
        Tokens per second, seconds and bytes by name; `samples`: how many counted; `disturbed`: how many did not. If all
        were disturbed, all count.
    """
    every = [sample[:3] for turn in turns for sample in turn["samples"]]
    counted = undisturbed(turns, "samples") or every
    prefill, first, decode = zip(*counted, strict=True)
    written, read = settings.new_tokens - 1, settings.prompt_tokens
    found: dict[str, Any] = {
        "decode_tokens_per_second": written / median(decode),
        "prefill_tokens_per_second": read / median(prefill),
        "time_to_first_token_seconds": median(first),
        "peak_rss_bytes": max(turn["peak_rss_bytes"] for turn in turns),
        "load_seconds": median(turn["load_seconds"] for turn in turns),
        "best": {
            "decode_tokens_per_second": written / min(decode),
            "prefill_tokens_per_second": read / min(prefill),
            "time_to_first_token_seconds": min(first),
        },
        "samples": len(counted),
        "disturbed": len(every) - len(undisturbed(turns, "samples")),
    }
    if settings.long_tokens:
        whole = [sample[:3] for turn in turns for sample in turn["long_samples"]]
        long = [sample[0] for sample in undisturbed(turns, "long_samples") or whole]
        found[long_key(settings)] = settings.long_tokens / median(long)
        found["best"][long_key(settings)] = settings.long_tokens / min(long)
    return found


def long_key(settings: Settings) -> str:
    """What the reading speed of the long prompt is called: `prefill_512_tokens_per_second`."""
    return f"prefill_{settings.long_tokens}_tokens_per_second"


def ratios(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times as fast adaptc is as each peer: `decode_vs_NAME`, `prefill_vs_NAME`, `prefill_512_vs_NAME`.

    Of several routes it is the first; the others are compared with it as peers are.
    """
    first, own = next(iter(results.items()))
    found = {}
    for name, other in results.items():
        if name == first:
            continue
        for key, value in own.items():
            if key.endswith("_tokens_per_second"):
                found[f"{key.removesuffix('_tokens_per_second')}_vs_{name}"] = value / other[key]
    return found


def same_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that differs."""
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def report(
    results: Mapping[str, Mapping[str, Any]],
    settings: Settings,
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
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """What the figures are measured on."""
    from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores

    return {
        "cpu": _cpu(),
        "cores": physical_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
