"""Program -> bundle: graphs over shared weights, tokenizer, spec, report, manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from adaptc import __version__
from adaptc.datafile import read_bytes_per_token, skippable_bytes, write_graphs
from adaptc.graph import OnnxGraph, sizes
from adaptc.pays import Verdict, decoder_spec, gate_spec
from adaptc.program import EMPTY, Program
from adaptc.publish_regions import decoder_of, region_files
from adaptc.report import report_html, report_json
from adaptc.runtime.bundle import Bundle, write_bundle
from adaptc.runtime.manifest import (
    GraphSpec,
    Manifest,
    ModelRecord,
    PassRecord,
    PlanStep,
    TargetRecord,
    TensorSpec,
)
from adaptc.sources import Source
from adaptc.spec import Spec, effective


def publish(
    spec: Spec,
    program: Program,
    records: Sequence[PassRecord],
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    versions: Mapping[str, str],
    into: Path,
    verdicts: Mapping[str, Verdict] = EMPTY,
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

    Raises:
        BundleError: it cannot be written.
    """
    graphs = program.at_level(OnnxGraph)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".weights-") as scratch:
        data = f"{'-'.join(program.towers)}.data"
        written = write_graphs(graphs, Path(scratch), data)
        files: dict[str, Path | bytes] = {f"graphs/{name}.onnx": content for name, content in written.items()}
        for name, split in program.regions.items():
            files |= region_files(name, split, written[name], Path(scratch) / data, f"graphs/{data}")
        files[f"graphs/{data}"] = Path(scratch) / data
        files["spec.yaml"] = effective(spec).encode()
        for name, content in next(iter(sources.values())).tokenizer_files().items():
            files[f"tokenizer/{name}"] = content
        manifest = Manifest(
            adaptc=__version__,
            models={name: _model(source, hashes[name]) for name, source in sources.items()},
            passes=tuple(records),
            plan=tuple(PlanStep(step.graph) for step in program.plan),
            graphs={name: _graph(name, graph, data, program) for name, graph in graphs.items()},
            gates={name: gate_spec(gates) for name, gates in program.gates.items()},
            target=TargetRecord(**spec.target.model_dump(include={"backend", "weights", "max_tokens", "batch"})),
            versions=dict(versions),
            report=_measured(graphs) | ({"gates": {n: v.record() for n, v in verdicts.items()}} if verdicts else {}),
        )
        files["report.json"] = report_json(manifest).encode()
        files["report.html"] = report_html(spec.name or "-".join(spec.models), manifest).encode()
        return write_bundle(into, files, manifest)


def _model(source: Source, sha256: str) -> ModelRecord:
    return ModelRecord(source.origin, source.revision, source.licence(), source.config().model_type, sha256)


def _graph(name: str, graph: OnnxGraph, data: str, program: Program) -> GraphSpec:
    main, tower, split = graph.model.graph, program.towers[name], program.regions.get(name)
    return GraphSpec(
        file=f"graphs/{name}.onnx",
        inputs=tuple(map(_tensor, main.inputs)),
        outputs=tuple(map(_tensor, main.outputs)),
        data=(f"graphs/{data}",),
        decoder=decoder_spec(graph, tower) if split is None else decoder_of(split, graph, tower),
    )


def _tensor(value: ir.Value) -> TensorSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    return TensorSpec(value.name or "", dtype, sizes(value))


def _measured(graphs: Mapping[str, OnnxGraph]) -> dict[str, Any]:
    return {
        "bytes_per_token": sum(map(read_bytes_per_token, graphs.values())),
        "skippable_bytes": {name: skippable_bytes(graph) for name, graph in graphs.items()},
        "nodes": {name: sum(1 for _ in graph.model.graph.all_nodes()) for name, graph in graphs.items()},
    }
