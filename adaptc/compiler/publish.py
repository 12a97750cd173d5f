"""Program -> bundle: graphs over shared weights, tokenizer, spec, report, manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from adaptc import __version__
from adaptc.compiler.publish_partitions import partition_files
from adaptc.compiler.report import report_html, report_json
from adaptc.compiler.weights_file import data_files, read_bytes_per_token, skippable_bytes, write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.graph import OnnxGraph, sizes
from adaptc.ir.program import EMPTY, Program
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.gate_verdict import GateVerdict
from adaptc.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModelRecord,
    PassRecord,
    TargetRecord,
    TensorSpec,
)
from adaptc.runtime.bundle.names import IMAGES, REPORT, REPORT_PAGE, SPEC, TOKENIZER, data_file, gates_file, graph_file
from adaptc.runtime.bundle.plan import Switch
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
    verdicts: Mapping[str, GateVerdict] = EMPTY,
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
    graphs = program.at_level(OnnxGraph)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".weights-") as scratch:
        # Partitions read all their weights from one file.
        swappable = not program.partitions
        data = f"{'-'.join(sources)}.data"
        backbones = tuple(sources) if len(sources) > 1 and not program.partitions else ()
        written = write_graphs(graphs, Path(scratch), data, backbones, swappable=swappable)
        files: dict[str, Path | bytes] = {graph_file(name): content for name, content in written.items()}
        for name, split in program.partitions.items():
            files |= partition_files(name, split, written[name], Path(scratch) / data, data_file(data))
        reads = {name: data_files(graph, data, backbones, swappable=swappable) for name, graph in graphs.items()}
        for each in dict.fromkeys(each for names in reads.values() for each in names):
            files[data_file(each)] = Path(scratch) / each
        files |= program.router_weights
        files[SPEC] = effective(spec).encode()
        files |= {gates_file(name): path for name, path in trained.items() if name in program.gates}
        for name, content in next(iter(sources.values())).tokenizer_files().items():
            files[f"{TOKENIZER}/{name}"] = content
        for name in program.modal:
            if (images := image_spec(sources[name])) is not None:
                files[IMAGES] = images.to_json()
        manifest = Manifest(
            adaptc=__version__,
            models={name: _model(source, hashes[name]) for name, source in sources.items()},
            passes=tuple(records),
            plan=program.plan,
            graphs={name: _graph(name, graph, reads[name], program) for name, graph in graphs.items()},
            gates=dict(program.gates),
            modal=dict(program.modal),
            target=TargetRecord(**spec.target.model_dump(include={"backend", "weights", "max_tokens", "batch"})),
            versions=dict(versions),
            bytes_per_token=_bytes_per_token(program),
            route_bytes=_route_bytes(program),
            gate_verdicts=dict(verdicts),
        )
        files[REPORT] = report_json(manifest).encode()
        files[REPORT_PAGE] = report_html(spec.name or "-".join(spec.models), manifest).encode()
        return write_bundle(into, files, manifest)


def _model(source: Source, sha256: str) -> ModelRecord:
    return ModelRecord(source.origin, source.revision, source.licence(), source.config().model_type, sha256)


def _route_bytes(program: Program) -> dict[str, dict[str, int]]:
    """Weight bytes that a step reads on each route of each switch: its own graph's, and those of all steps before."""
    routes: dict[str, dict[str, int]] = {}
    before = 0
    for step in program.plan:
        costs = {name: read_bytes_per_token(program.graph(name, OnnxGraph)) for name in step.graphs}
        if isinstance(step, Switch):
            routes[step.gate] = {route: before + costs[name] for route, name in step.routes.items()}
        before += max(costs.values())
    return routes


def _graph(name: str, graph: OnnxGraph, data: Sequence[str], program: Program) -> GraphSpec:
    main, backbone, split = graph.model.graph, program.backbone(name), program.partitions.get(name)
    return GraphSpec(
        file=graph_file(name),
        inputs=tuple(map(_tensor, main.inputs)),
        outputs=tuple(map(_tensor, main.outputs)),
        data=tuple(map(data_file, data)),
        decoder=decoder_spec(graph, backbone, split),
        nodes=sum(1 for _ in main.all_nodes()),
        skippable_bytes=tuple(skippable_bytes(graph)),
    )


def _tensor(value: ir.Value) -> TensorSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    return TensorSpec(value.name or "", dtype, sizes(value))


def _bytes_per_token(program: Program) -> int:
    """Weight bytes that a step reads; of a stitched program, on its dearest route."""
    last = program.plan[-1]
    if isinstance(last, Switch):
        return max(_route_bytes(program)[last.gate].values())
    graphs = program.at_level(OnnxGraph)
    twins = {gates.dense for gates in program.gates.values()}  # each reads what its graph reads but for gates
    # An image's encoder runs once for an image: of a model that writes only its decoder, which has its name, counts.
    once = program.encoders if set(program.modal) & set(graphs) else frozenset()
    return sum(read_bytes_per_token(graph) for name, graph in graphs.items() if name not in once | twins)
