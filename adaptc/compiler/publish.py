"""Program -> bundle: graphs over shared weights, tokenizer, spec, report, manifest."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from adaptc import __version__
from adaptc.compiler.publish_partitions import decoder_of, region_files
from adaptc.compiler.report import report_html, report_json
from adaptc.compiler.tuning import Verdict, decoder_spec
from adaptc.compiler.weights_file import data_files, read_bytes_per_token, skippable_bytes, write_graphs
from adaptc.ir.graph import OnnxGraph, sizes
from adaptc.ir.program import EMPTY, Program, Run, Switch
from adaptc.passes.skip_ffn.conditionals import conditionals, run_always
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModelRecord,
    PassRecord,
    PlanStep,
    RouteRecord,
    RouterRecord,
    SwitchStep,
    TargetRecord,
    TensorSpec,
)
from adaptc.runtime.multimodal.images import IMAGES
from adaptc.sources.base import Source
from adaptc.sources.images import image_spec
from adaptc.spec.reading import effective
from adaptc.spec.schema import Spec


def publish(
    spec: Spec,
    program: Program,
    records: Sequence[PassRecord],
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    versions: Mapping[str, str],
    into: Path,
    verdicts: Mapping[str, Verdict] = EMPTY,
    trained: Mapping[str, Path] = EMPTY,
) -> Bundle:
    """Write a program as a bundle.

    Args:
        spec: What was compiled.
        program: After all passes.
        records: The passes as they ran.
        sources: The models it came from.
        hashes: Their sha256.
        versions: Of the libraries that took part.
        into: The bundle's folder.
        verdicts: By graph name, whether gates paid; those that did not are no longer in `program`.
        trained: By graph name, the file its gates were trained into; kept in the bundle as it is.

    Raises:
        BundleError: it cannot be written.
    """
    own = program.at_level(OnnxGraph)
    twins = _without_gates(program)
    graphs = own | {_dense(name): graph for name, graph in twins.items()}
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".weights-") as scratch:
        # Regions read all their weights from one file.
        swappable = not program.regions
        data = f"{'-'.join(sources)}.data"
        backbones = tuple(sources) if len(sources) > 1 and not program.regions else ()
        written = write_graphs(graphs, Path(scratch), data, backbones, swappable=swappable)
        files: dict[str, Path | bytes] = {f"graphs/{name}.onnx": content for name, content in written.items()}
        for name, split in program.regions.items():
            files |= region_files(name, split, written[name], Path(scratch) / data, f"graphs/{data}")
        reads = {name: data_files(graph, data, backbones, swappable=swappable) for name, graph in graphs.items()}
        for each in dict.fromkeys(each for names in reads.values() for each in names):
            files[f"graphs/{each}"] = Path(scratch) / each
        for step in program.plan:
            if isinstance(step, Switch) and step.router is not None:
                files[f"gates/{step.gate}.safetensors"] = step.router.content
        files["spec.yaml"] = effective(spec).encode()
        files |= {f"gates/{name}.safetensors": path for name, path in trained.items() if name in program.gates}
        for name, content in next(iter(sources.values())).tokenizer_files().items():
            files[f"tokenizer/{name}"] = content
        for name in program.modal:
            if (images := image_spec(sources[name])) is not None:
                files[IMAGES] = images.to_json()
        manifest = Manifest(
            adaptc=__version__,
            models={name: _model(source, hashes[name]) for name, source in sources.items()},
            passes=tuple(records),
            plan=plan_steps(program),
            graphs={name: _graph(name, graph, reads[name], program) for name, graph in graphs.items()},
            gates={
                name: replace(gates, dense=_dense(name) if name in twins else "")
                for name, gates in program.gates.items()
            },
            modal=dict(program.modal),
            target=TargetRecord(**spec.target.model_dump(include={"backend", "weights", "max_tokens", "batch"})),
            versions=dict(versions),
            report=_measured(own, plan_steps(program), program)
            | {"nodes": {name: sum(1 for _ in graph.model.graph.all_nodes()) for name, graph in graphs.items()}}
            | ({"gates": {n: v.record() for n, v in verdicts.items()}} if verdicts else {}),
        )
        files["report.json"] = report_json(manifest).encode()
        files["report.html"] = report_html(spec.name or "-".join(spec.models), manifest).encode()
        return write_bundle(into, files, manifest)


def _without_gates(program: Program) -> dict[str, OnnxGraph]:
    """By name, a decoder's graph as it is without its gates; of a stitched program none, as its parts are many."""
    if program.regions or any(isinstance(step, Switch) for step in program.plan):
        return {}
    gated = {name: program.graph(name, OnnxGraph) for name in program.gates}
    return {name: run_always(graph, range(len(conditionals(graph)))) for name, graph in gated.items()}


def _dense(name: str) -> str:
    """What a graph is called without its gates."""
    return f"{name}.dense"


def _model(source: Source, sha256: str) -> ModelRecord:
    return ModelRecord(source.origin, source.revision, source.licence(), source.config().model_type, sha256)


def plan_steps(program: Program) -> tuple[PlanStep | SwitchStep, ...]:
    """The plan as the manifest keeps it; a route's cost is that of its graph and of all that runs before it."""
    steps: list[PlanStep | SwitchStep] = []
    before = 0
    for step in program.plan:
        costs = {name: read_bytes_per_token(program.graph(name, OnnxGraph)) for name in step.graphs}
        if isinstance(step, Run):
            steps.append(PlanStep(step.graph))
        else:
            routes = {route: RouteRecord(name, before + costs[name]) for route, name in step.routes.items()}
            steps.append(SwitchStep(step.gate, routes, _router(step)))
        before += max(costs.values())
    return tuple(steps)


def _router(step: Switch) -> RouterRecord | None:
    router = step.router
    if router is None:
        return None
    levels = tuple((cost, level if math.isfinite(level) else None) for cost, level in router.levels)
    return RouterRecord(f"gates/{step.gate}.safetensors", router.threshold, levels, dict(router.bound))


def _graph(name: str, graph: OnnxGraph, data: Sequence[str], program: Program) -> GraphSpec:
    main, backbone, split = graph.model.graph, program.backbone(name), program.regions.get(name)
    return GraphSpec(
        file=f"graphs/{name}.onnx",
        inputs=tuple(map(_tensor, main.inputs)),
        outputs=tuple(map(_tensor, main.outputs)),
        data=tuple(f"graphs/{each}" for each in data),
        decoder=decoder_spec(graph, backbone) if split is None else decoder_of(split, graph, backbone),
    )


def _tensor(value: ir.Value) -> TensorSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    return TensorSpec(value.name or "", dtype, sizes(value))


def _measured(
    graphs: Mapping[str, OnnxGraph], plan: Sequence[PlanStep | SwitchStep], program: Program
) -> dict[str, Any]:
    switch = plan[-1]
    costs = [route.bytes_per_token for route in switch.routes.values()] if isinstance(switch, SwitchStep) else []
    # An image's encoder runs once for an image: of a model that writes only its decoder, which has its name, counts.
    once = program.encoders if set(program.modal) & set(graphs) else frozenset()
    writers = {name: graph for name, graph in graphs.items() if name not in once}
    return {
        # Of a stitched bundle, by its dearest route.
        "bytes_per_token": max(costs) if costs else sum(map(read_bytes_per_token, writers.values())),
        "skippable_bytes": {name: skippable_bytes(graph) for name, graph in graphs.items()},
    }
