"""Small bundles of the tests' models, with what a CPU session says of each.

They are: routes with gates, gates with cheap paths, subsets of modalities, and one with little to load.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from adaptc import runtime
from adaptc.compiler import pipeline, tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.weights_file import write_graphs
from adaptc.passes import Pipeline
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.stitch.options import RouterOptions
from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graph
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.generation.session import Session
from adaptc.spec.reading import read_spec
from tests.gpu.answers import ask
from tests.models import skipping, stitched, tiny, trt_bundle, views
from tests.models.sessions import session_of
from tests.passes.stitch.test_stitch import Gating

PROMPTS = [np.random.default_rng(n).integers(2, 60, n).tolist() for n in (5, 3, 9, 1, 7, 12, 4, 6)]
ROUTES = list(stitched.ROUTES)
COUNT = 12
GPU = ("target.backend=tensorrt", "target.weights=fp16", "target.batch=4")
LONGER = "target.max_tokens=128"


def say(session: Session, batch: int, chunk: int, requests: list[dict[str, Any]], into: Path) -> None:
    """Write requests with the answers of a session on this CPU."""
    answers = [ask(session, request) for request in requests]
    said = {"batch": batch, "chunk": chunk, "requests": requests, "answers": answers}
    into.write_text(json.dumps(said, default=int))


def write_routes(out: Path) -> None:
    """A trunk and four tails, gates in the trunk and in two tails, a router."""
    scratch = out / "scratch"
    scratch.mkdir()
    spec = stitched.write(scratch)
    router = RouterOptions(str(scratch / "router.safetensors"), target_share=0.25)
    passes = (Gating(), stitched.stitch(weights=str(scratch / "stitch.safetensors"), router=router))
    made = {}
    with (
        patch.object(pipeline, "build_passes", lambda _: passes),
        patch.object(tuning, "payoff", lambda *_: Payoff(1e-3, 1.01e-3, 0.8e-3, 3)),
        patch.object(tuning, "_by_rows", lambda _, __, gates, verdict, *___: (gates, verdict)),  # skip in any batch
    ):
        for name, settings in (("routes", (*GPU, LONGER)), ("cpu", (LONGER,))):
            read = read_spec(spec, settings)
            made[name] = compile_spec(read, scratch, scratch / name, Cache(scratch / "cache")).bundle
    requests: list[dict[str, Any]] = []
    for budget in (1.0, 0.5, 0.0):
        for index, route in enumerate(ROUTES):
            given = {"budget": budget, "route": route}
            requests.append({"kind": "generate", "prompt": PROMPTS[index], "count": COUNT, "options": given})
    several = {"prompt": PROMPTS, "routes": [ROUTES[index % 4] for index in range(8)], "count": COUNT}
    requests += [{"kind": "mixed", **several, "options": {"budget": budget}} for budget in (1.0, 0.0)]
    for prompt in PROMPTS[:3]:
        turns = ["large", "small", "small", "large", "sandwich", "short", "large"]
        for budget in (1.0, 0.0):
            requests.append({"kind": "reroute", "prompt": prompt, "routes": turns, "options": {"budget": budget}})
    requests += [{"kind": "choose", "prompt": prompt} for prompt in PROMPTS]
    requests += [{"kind": "generate", "prompt": prompt, "count": 4} for prompt in PROMPTS]
    requests += [{"kind": "score", "prompt": (PROMPTS[2] * 4), "options": {"route": route}} for route in ROUTES]
    with runtime.load(made["cpu"].path, threads=1, batch=4) as session:
        say(session, 4, 8, requests, out / "routes.json")
    shutil.copytree(made["routes"].path, out / "routes")
    shutil.rmtree(scratch)


def write_gated(out: Path) -> None:
    """Gates that read the state, before blocks that have a cheap path: conditional nodes with two bodies."""
    made = trt_bundle.program("llama", gated=True)
    bundle = trt_bundle.write(out / "gated", made, trt_bundle.GATES, batch=2, backend="tensorrt")
    shutil.rmtree(out / "gated.weights")
    scratch = out / "scratch"
    scratch.mkdir()
    program = Pipeline((FloatWeights(), Branch())).run(skipping.lowered("llama", low_rank=True))
    (scratch / "lm.onnx").write_bytes(write_graphs({"lm": skipping.onnx(program)}, scratch, "lm.data")["lm"])
    ways: list[dict[str, Any]] = [{"budget": budget} for budget in (1.0, 0.5, 0.3, 0.0)]
    ways += [{"budget": 0.5, "sampling": {"temperature": 1.0}, "seed": 3}]
    ways += [{"budget": 0.0, "sampling": {"temperature": 0.8, "top_k": 20, "top_p": 0.9}, "seed": 4}]
    requests: list[dict[str, Any]] = [
        {"kind": "generate", "prompt": prompt, "count": COUNT, "options": way} for way in ways for prompt in PROMPTS[:4]
    ]
    requests.append({"kind": "score", "prompt": PROMPTS[2] * 3, "options": {"budget": 0.3, "step": True}})
    spec = decoder_graph(bundle)[1]
    with session_of(OrtEngine(scratch / "lm.onnx"), spec, batch=2, chunk=8, gates=trt_bundle.GATES) as session:
        say(session, 2, 8, requests, out / "gated.json")
    shutil.rmtree(scratch)


def write_tiny(out: Path) -> None:
    """Three layers whose gates say what a measurement sets: little to build and to load."""
    made = trt_bundle.program_of(gating.static(tiny.fx("llama"), {0: 1.0, 1: 2.0, 2: 3.0}, {}))
    gates = replace(trt_bundle.GATES, layers=(0, 1, 2), warmup=0)
    trt_bundle.write(out / "tiny", made, gates, batch=1, backend="tensorrt")
    shutil.rmtree(out / "tiny.weights")


def write_views(out: Path) -> None:
    """A classifier of a picture, words and a sound, for three of its subsets."""
    scratch = out / "scratch"
    spec = views.write(scratch / "spec")
    subsets = "sound: [wave]}\n      keep: [[text], [image, text], [image, text, sound]]"
    spec.write_text(spec.read_text().replace("sound: [wave]}", subsets))
    bundle = compile_spec(read_spec(spec, GPU), spec.parent, scratch / "bundle", Cache(scratch / "cache")).bundle
    feeds = views.feeds(6)  # more rows than an engine takes at once
    said = {f"feed.{name}": array for name, array in feeds.items()}
    for subset in bundle.manifest.modal["views"].subsets:
        said[f"said.{'+'.join(subset.modalities)}"] = views.eager(feeds, subset.modalities)
    np.savez_compressed(out / "views-expected.npz", **said)  # type: ignore[arg-type]
    shutil.copytree(bundle.path, out / "views")
    shutil.rmtree(scratch)
