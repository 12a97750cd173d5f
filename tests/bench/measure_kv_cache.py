"""What a step and a prompt cost with keys and values in float32, in half precision and as codes, and what is lost.

    python -m tests.bench.measure_kv_cache BUNDLE... --text FILE

All bundles are of one model and differ in target.kv_cache. Engines have one thread, which is timed by the processor's
time, as other processes may want to run; all take turns in one process. Loss is the perplexity of a text, read in
windows as long as is asked, token positions before the last half of a window not counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time

import click
import numpy as np

from adaptc import runtime
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.model.decoder import Ids, cache_dtype


def opened(path: Path) -> tuple[str, HostDecoder]:
    """The decoder of a bundle with one graph that writes, and the type of its cache."""
    bundle = open_bundle(path)
    graph = bundle.manifest.graphs["lm"]
    assert graph.decoder is not None
    return cache_dtype(graph.inputs), HostDecoder(OrtEngine(bundle.onnx(graph.file), 1), graph.decoder, 1, 512)


def stepping(decoder: HostDecoder, context: int) -> Callable[[], float]:
    """Times a step after so many tokens; what they were is all one to a kernel."""

    def run() -> float:
        decoder.set_length(0, context)
        began = process_time()
        decoder.decode([5])
        return process_time() - began

    return run


def reading(decoder: HostDecoder, tokens: int) -> Callable[[], float]:
    """Times a prompt of so many tokens."""
    ids = np.arange(tokens, dtype=np.int64) * 97 % decoder.spec.vocab_size

    def run() -> float:
        began = process_time()
        decoder.prefill(0, ids)
        return process_time() - began

    return run


def losses(decoder: HostDecoder, windows: list[Ids]) -> list[float]:
    """Negative log-likelihoods of the last half of each window, nats a token."""
    found: list[float] = []
    for window in windows:
        at = 0
        for logits in decoder.score(window, 512):
            for row in logits:
                at += 1
                if len(window) // 2 <= at < len(window):
                    top = row.max()
                    found.append(float(top + np.log(np.exp(row - top).sum()) - row[window[at]]))
    return found


def in_turns(kinds: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each kind, one after the other; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns + 1):
        for name, run in kinds.items():
            took = run()
            if turn:
                seconds[name].append(took)
    return seconds


def show(what: str, seconds: dict[str, list[float]], base: str) -> None:
    """A line of medians in milliseconds, and of the quartiles of ratios to the first kind."""
    parts = []
    for name, own in seconds.items():
        ratios = [mine / other for mine, other in zip(own, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        parts.append(f"{name} {statistics.median(own) * 1e3:.2f} ms, x{middle:.3f} ({low:.3f}-{high:.3f})")
    click.echo(f"{what}: " + "; ".join(parts))


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="A text whose perplexity is measured.")
@click.option("--contexts", default="128,1024,2048,4000", show_default=True)
@click.option("--prompts", default="512,2048", show_default=True)
@click.option("--turns", default=15, show_default=True)
@click.option("--window", default=1024, show_default=True)
@click.option("--tokens", default=8192, show_default=True)
def main(
    bundles: tuple[Path, ...], text: Path | None, contexts: str, prompts: str, turns: int, window: int, tokens: int
) -> None:
    """Measure; the first bundle is what the others are compared with."""
    decoders = dict(opened(bundle) for bundle in bundles)
    base = next(iter(decoders))
    for name, decoder in decoders.items():
        size = sum(array.nbytes for array in decoder.kv.arrays.values())
        click.echo(f"{name}: {size / 1e6:.1f} MB of cache for {decoder.spec.max_tokens} tokens")
    for context in map(int, contexts.split(",")):
        kinds = {name: stepping(decoder, context) for name, decoder in decoders.items()}
        show(f"a step after {context}", in_turns(kinds, turns), base)
    for prompt in map(int, prompts.split(",")):
        kinds = {name: reading(decoder, prompt) for name, decoder in decoders.items()}
        show(f"a prompt of {prompt}", in_turns(kinds, max(2, turns // 5)), base)
    if text is not None:
        with runtime.load(bundles[0]) as session:
            assert session.tokenizer is not None
            ids = np.array(session.tokenizer.encode(text.read_text(encoding="utf-8")), np.int64)[:tokens]
        windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
        found = {name: np.array(losses(decoder, windows)) for name, decoder in decoders.items()}
        for name, each in found.items():
            more = each - found[base]
            error = more.std() / len(more) ** 0.5
            click.echo(
                f"{name}: perplexity {np.exp(each.mean()):.4f} on {len(each)} tokens, x{np.exp(more.mean()):.5f} "
                f"(standard error {error:.5f})"
            )


if __name__ == "__main__":
    main()
