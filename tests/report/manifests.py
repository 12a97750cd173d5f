"""Manifests and records of bundles that nobody compiled: dense, gated, stitched, with modalities."""

from __future__ import annotations

import math
from dataclasses import replace

from adaptc.report.record import LayerTimes, MachineRecord, PartRecord, Record, SkipColumn, SkipMap
from adaptc.runtime.bundle.gate_verdict import GateDecision, GateVerdict, Payoff, RowTimes
from adaptc.runtime.bundle.manifest import (
    DecoderSpec,
    GraphSpec,
    Manifest,
    ModalitySpec,
    ModalSpec,
    ModelRecord,
    PassRecord,
    SubsetSpec,
    TargetRecord,
)
from adaptc.runtime.bundle.plan import RouterRecord, Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates

MACHINE = MachineRecord("A Processor", ("avx2", "fma"), 2, 8_000_000_000, "Linux x86_64", "3.11.2", "2026-11-29")
LAYERS, GATED = 12, (3, 4, 5, 7, 9)
DECODER = DecoderSpec(1000, 128, ((3, 64),) * LAYERS, 0, (0,), None)


def graph(name: str, decoder: DecoderSpec | None = DECODER) -> GraphSpec:
    return GraphSpec(f"graphs/{name}.onnx", (), (), (), decoder, 700)


def parts() -> tuple[PartRecord, ...]:
    layers = [PartRecord(str(n), {"attention": 500_000, "feed-forward": 1_500_000}) for n in range(LAYERS)]
    return (PartRecord("before layers", {"other": 2300}), *layers, PartRecord("after layers", {"other": 28_000_000}))


DENSE = Manifest(
    adaptc="0.1.0",
    models={"lm": ModelRecord("model", None, "apache-2.0", "llama", "ab" * 32)},
    passes=(PassRecord("lower", {}, True, 2.9), PassRecord("quantize", {"block_size": 32}, False, 0.2)),
    plan=(Run("lm"),),
    graphs={"lm": graph("lm")},
    gates={},
    target=TargetRecord("onnxruntime", "int4", 128, 1),
    versions={"onnxruntime": "1.24.1"},
    bytes_per_token=52_002_300,
)
DENSE_RECORD = Record("a model", MACHINE, {"lm": parts()})

VERDICT = GateVerdict(
    Payoff(9e-3, 9.1e-3, 5e-3, 6, 9.08e-3),
    True,
    "a gate costs 16.7 µs a token",
    (
        *(GateDecision(layer, 0.1 * layer, layer, "kept") for layer in (3, 4, 5, 7)),
        GateDecision(8, 0.0, None, "removed"),
        GateDecision(9, 0.3, 7, "grouped"),
    ),
    (RowTimes(2, 8e-3, 11e-3),),
)
GATES = SkipGates("learned", GATED, LAYERS, 4, "any", ((0.0, -math.inf), (0.1, -3.0), (0.25, -1.0)), dense="lm.dense")
GATED_LM = replace(
    DENSE,
    gates={"lm": GATES},
    graphs={"lm": graph("lm"), "lm.dense": graph("lm.dense")},
    gate_verdicts={"lm": VERDICT},
)
TRAINED = ((0.0, 1.0), (0.1, 1.02), (0.25, 1.3))
COLUMNS = tuple(SkipColumn(budget, ((1 - budget) / 2,) * len(GATED)) for budget in (1.0, 0.5, 0.0))
SWEEP = {
    "policies": {
        name: [{"share": s, "ffn_skipped": s, "ratio": 1 + factor * s} for s in (0.1, 0.2, 0.3)]
        for name, factor in (("learned", 0.3), ("cosine", 1.0), ("layers", 40.0))
    },
    "tokens": 4096,
    "window": 512,
    "warmup": 28,
    "text": "a.txt",
    "dense_perplexity": 17.5,
    "method": "a method",
    "speed": {
        "rows": [
            {"share": s, "ffn_skipped": s, "ratio": 1 + s, "ceiling": 1 + 2 * s, "tokens_per_second": 100}
            for s in (0.0, 0.2)
        ],
        "threads": 2,
        "dense_tokens_per_second": 100.0,
    },
}
GATED_RECORD = Record(
    "gates",
    MACHINE,
    {"lm": parts()},
    {"lm": TRAINED},
    {"lm": LayerTimes("lm", tuple((each.name, {"other": 1e-4}) for each in parts()), 64, 64, MACHINE)},
    {"lm": SkipMap(COLUMNS, 100, "a text")},
    {"sweep": SWEEP},
)

ROUTES = {"large": "tail.large", "small": "tail.small", "sandwich": "tail.sandwich"}
ROUTER = RouterRecord(
    "r", 0.1, ((1.0, -math.inf), (0.8, -0.5), (0.6, 0.2), (0.5, 1.0), (0.4, math.inf)), {"lost": 0.05}
)
STITCHED = replace(
    DENSE,
    plan=(Run("trunk"), Switch("router", ROUTES, ROUTER)),
    graphs={name: graph(name) for name in ("trunk", *ROUTES.values())},
    route_bytes={"router": {"large": 90_000_000, "small": 50_000_000, "sandwich": 70_000_000}},
)
STITCHED_RECORD = Record("two models", MACHINE, {name: parts() for name in ("trunk", *ROUTES.values())})

SUBSETS = (("text",), ("image",), ("sound",), ("image", "text"), ("image", "sound"), ("image", "text", "sound"))
MODAL = ModalSpec(
    {
        "image": ModalitySpec(("pixels",), "encode.image", ("f",)),
        "text": ModalitySpec(("ids",), None, ("ids",)),
        "sound": ModalitySpec(("wave",), "encode.sound", ("g",)),
    },
    tuple(SubsetSpec(subset, "fuse." + "+".join(subset)) for subset in SUBSETS),
)
MODAL_GRAPHS = ("encode.image", "encode.sound", *(subset.graph for subset in MODAL.subsets))
MODAL_LM = replace(
    DENSE,
    plan=(
        Run("encode.image"),
        Run("encode.sound"),
        Switch("views", {"+".join(each.modalities): each.graph for each in MODAL.subsets}),
    ),
    graphs={name: graph(name, None) for name in MODAL_GRAPHS},
    modal={"views": MODAL},
    bytes_per_token=0,
)
MODAL_RECORD = Record(
    "views", MACHINE, {name: (PartRecord("before layers", {"other": 5000}),) for name in MODAL_GRAPHS}
)

ALL = {
    "dense": (DENSE, DENSE_RECORD),
    "gated": (GATED_LM, GATED_RECORD),
    "bare": (GATED_LM, Record()),
    "stitched": (STITCHED, STITCHED_RECORD),
    "modal": (MODAL_LM, MODAL_RECORD),
}
