"""What long contexts cost: memory of layers that attend over a window, and of room that nobody uses.

    python -m tests.bench.measure_long_contexts FOLDER

Makes a random model with the KV cache of Gemma 3 1B (26 layers, of which every sixth attends to all and the others over
512 positions; one head of 256) and little else, and compiles it into FOLDER: with caches of all positions, and with
those of windows, for several lengths. Engines have one thread, which is timed by the processor's time; all take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any
from unittest import mock

import click
import numpy as np

from adaptc.compiler import pipeline
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.passes.decoder.sliding_cache import SlidingCache
from adaptc.report.page import kv_bytes
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.spec.reading import read_spec
from tests.bench.measure_kv_cache import opened, stepping
from tests.models import folder

KINDS = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
OPTIONS: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "num_hidden_layers": len(KINDS),
    "layer_types": KINDS,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131072,
}
ALL = 1 << 20


def compiled(base: Path, spec: Path, tokens: int, slack: int) -> Path:
    """A bundle for so many tokens, whose caches have so much room beyond windows; once."""
    path = base / f"{tokens}-{'all' if slack == ALL else 'windows'}"
    if not path.exists():
        with mock.patch.object(pipeline, "SlidingCache", partial(SlidingCache, slack=slack)):
            found = read_spec(spec, [f"target.max_tokens={tokens}", "target.weights=int8"])
            compile_spec(found, base, path, Cache(base / f"cache-{slack}"))
    return path


def written(decoder: HostDecoder, context: int) -> None:
    """Fill the cache of so many tokens with numbers, so that its pages are there and differ."""
    random = np.random.default_rng(0)
    for array in decoder.kv.arrays.values():
        for start in range(0, min(context, array.shape[2]), 4096):
            part = array[:, :, start : min(start + 4096, context)]
            part[...] = random.standard_normal(part.shape, np.float32)


def in_turns(runs: dict[str, Callable[[], float]], turns: int) -> str:
    """Medians in milliseconds, and quartiles of ratios to the first; the first turn is not counted."""
    seconds = [[run() for run in runs.values()] for _ in range(turns + 1)][1:]
    parts = []
    for index, name in enumerate(runs):
        own, ratios = [turn[index] for turn in seconds], [turn[index] / turn[0] for turn in seconds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        parts.append(f"{name} {statistics.median(own) * 1e3:.2f} ms, x{middle:.3f} ({low:.3f}-{high:.3f})")
    return "; ".join(parts)


def resident() -> float:
    """Megabytes of memory that this process has, files that it maps not counted."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def fresh(path: Path, prompt: int) -> dict[str, float]:
    """In this process: seconds to load a bundle, and memory then and after a prompt."""
    from adaptc import runtime

    began, before = process_time(), resident()
    with runtime.load(path, threads=1, prefix_bytes=0) as session:
        loaded, seconds = resident(), process_time() - began
        session.generate(np.arange(2, 2 + prompt) % 300, max_new_tokens=8)
        return {"load s": round(seconds, 2), "MB loaded": round(loaded - before), "MB used": round(resident() - before)}


def measured(path: Path, prompt: int) -> str:
    """`fresh` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.measure_long_contexts", str(path), "--fresh", str(prompt)]
    run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return ", ".join(f"{name} {value}" for name, value in run.items())


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option("--fresh", "prompt", type=int, help="Only load the bundle BASE here and read a prompt of so many tokens.")
@click.option("--turns", default=15, show_default=True)
@click.option("--read", default=4096, show_default=True, help="Number of tokens of the long prompt.")
def main(base: Path, prompt: int | None, turns: int, read: int) -> None:
    """Measure."""
    if prompt is not None:
        click.echo(json.dumps(fresh(base, prompt)))
        return
    base.mkdir(parents=True, exist_ok=True)
    spec = base / "model.yaml"
    if not spec.exists():
        folder.write(base, "gemma3_text", **OPTIONS)
    for tokens, slack in ((2048, 1024), (32768, ALL), (32768, 1024), (131072, 1024)):
        path = compiled(base, spec, tokens, slack)
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 1e6
        click.echo(
            f"{path.name}: {kv_bytes(open_bundle(path).manifest) / 1e6:.1f} MB of cache at full length, bundle "
            f"{size:.1f} MB; after a prompt of 32: {measured(path, 32)}"
        )
    both = {name: opened(base / f"32768-{name}")[1] for name in ("all", "windows")}
    for context in (1024, 4096, 16384, 32000):
        for decoder in both.values():
            written(decoder, context)
        click.echo(f"a step after {context}: {in_turns({n: stepping(d, context) for n, d in both.items()}, turns)}")
    both.clear()
    lengths = {f"{tokens}": opened(base / f"{tokens}-windows")[1] for tokens in (2048, 131072)}
    for context in (32, 1024, 2000):
        for decoder in lengths.values():
            written(decoder, context)
        click.echo(f"a step after {context}: {in_turns({n: stepping(d, context) for n, d in lengths.items()}, turns)}")
    for name in ("all", "windows"):
        click.echo(f"{name}, after a prompt of {read}: {measured(base / f'32768-{name}', read)}")


if __name__ == "__main__":
    main()
