"""Program -> bundle: graphs over shared weights, tokenizer, spec, report, manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from adaptc import __version__
from adaptc.compiler.data_file import SHARD
from adaptc.compiler.publish.partitions import partition_files
from adaptc.compiler.publish.prompts import prompt_files
from adaptc.compiler.weights_file import (
    INLINE_BYTES,
    data_files,
    data_files_of,
    placed_step,
    read_bytes_per_token,
    skippable_bytes,
    write_graph,
)
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.ir.stored.gates_file import load_gates_metadata
from adaptc.ir.weight_names import is_trained, owner_of
from adaptc.report.files import report_files
from adaptc.report.parts import parts_of
from adaptc.report.record import MachineRecord, Record
from adaptc.runtime.bundle.folder import Bundle, Content, Moved, write_bundle
from adaptc.runtime.bundle.gate_verdict import GateVerdict
from adaptc.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModelRecord,
    PassRecord,
    TargetRecord,
    TensorSpec,
)
from adaptc.runtime.bundle.names import ENCODER, IMAGES, SPEC, TOKENIZER, data_file, gates_file, graph_file, step_file
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.bundle.strict_json import dumps
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.encoders import encoder_spec
from adaptc.sources.images import image_spec
from adaptc.spec.reading import effective
from adaptc.spec.schema import Spec


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is written from.

    Attributes:
        spec: What was compiled.
        program: After all passes.
        records: The passes as they ran.
        sources: The models it came from, by name.
        hashes: Their sha256, by name.
        versions: Versions of the libraries that took part.
        verdicts: By graph name, whether gates paid; those that did not are no longer in `program`.
        trained: By the name of a model, the file its gates were trained into; the bundle has it as it is.
    """

    spec: Spec
    program: Program
    records: Sequence[PassRecord]
    sources: Mapping[str, Source]
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    verdicts: Mapping[str, GateVerdict]
    trained: Mapping[str, Path]

    def write(self, into: Path, progress: Progress = SILENT) -> Bundle:
        """Write the bundle, whole or not at all.

        Args:
            into: The bundle's folder.
            progress: Told of the weights that are written.

        Raises:
            BundleError: it cannot be written.
        """
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".weights-") as scratch:
            graphs, shards = self._graph_files(Path(scratch), progress)
            files = graphs | self._gate_files() | self._input_files()
            files[SPEC] = effective(self.spec).encode()
            manifest = self._manifest(shards)
            files |= report_files(manifest, self._record())
            return write_bundle(into, files, manifest)

    def _manifest(self, shards: Mapping[str, Sequence[str]]) -> Manifest:
        """What the bundle says of itself; its files' hashes come when they are written.

        Args:
            shards: Names of all files of a data file, by the name of its first.
        """
        target = self.spec.target.model_dump(include={"backend", "weights", "max_tokens", "batch"})
        return Manifest(
            adaptc=__version__,
            models={name: _model(source, self.hashes[name]) for name, source in self.sources.items()},
            passes=tuple(self.records),
            plan=self.program.plan,
            graphs={name: self._graph(name, graph, shards) for name, graph in self._graphs.items()},
            gates=dict(self.program.gates),
            modal=dict(self.program.modal),
            verification=dict(self.program.verification),
            draft=self.program.draft,
            adapters=dict(self.program.adapters),
            target=TargetRecord(**target),
            versions=dict(self.versions),
            bytes_per_token=_bytes_per_token(self.program),
            route_bytes=_route_bytes(self.program),
            gate_verdicts=dict(self.verdicts),
        )

    def _record(self) -> Record:
        """What the report says beyond the manifest."""
        forms = self.program.forms
        trained = {name: load_gates_metadata(path).perplexity for name, path in self.trained.items()}
        return Record(
            title=self.spec.name or "-".join(self.spec.models),
            machine=MachineRecord.here(),
            parts={name: parts_of(graph) for name, graph in self._graphs.items() if name not in forms},
            source_weights=dict(self.program.source_weights),
            trained={name: points for name, points in trained.items() if name in self.program.gates and points},
        )

    @property
    def _graphs(self) -> dict[str, OnnxGraph]:
        return self.program.at_level(OnnxGraph)

    @property
    def _data_name(self) -> str:
        return f"{'-'.join(self.sources)}.data"

    @property
    def _backbones(self) -> tuple[str, ...]:
        """Models whose weights have a file of their own."""
        return tuple(self.sources) if len(self.sources) > 1 and self._swappable else ()

    @property
    def _swappable(self) -> bool:
        """Whether weights of gates have a file of their own; partitions read all their weights from one file."""
        return not self.program.partitions

    def _data_files(self, graph: OnnxGraph) -> tuple[str, ...]:
        return data_files(graph, self._data_name, self._backbones, swappable=self._swappable)

    def _graph_files(self, scratch: Path, progress: Progress) -> tuple[dict[str, Content], dict[str, tuple[str, ...]]]:
        """Graphs, their partitions and weights; weights are written to `scratch`.

        Returns:
            The files, and for each data file the names of its shards.
        """
        graphs = self._graphs
        most = SHARD if self._swappable else None
        with data_files_of(
            graphs, scratch, self._data_name, self._backbones, swappable=self._swappable, most=most
        ) as data_of:
            told = _Written(graphs.values(), progress).add
            written = {name: write_graph(graph, data_of, told) for name, graph in graphs.items()}
            steps = {name: placed_step(step, data_of) for name, step in self.program.steps.items()}
        files: dict[str, Content] = {graph_file(name): content for name, content in written.items()}
        files |= {step_file(name): dumps(step).encode() for name, step in steps.items()}
        for name, step in self.program.steps.items():
            files |= {} if step.prompt is None else prompt_files(name, step.prompt)
        shards = {data.name: data.names for data in data_of.values()}
        records = {name: record for data in data_of.values() for name, record in data.records.items()}
        read = dict.fromkeys(shard for graph in graphs.values() for n in self._data_files(graph) for shard in shards[n])
        files |= {data_file(name): Moved(scratch / name, records[name]) for name in read}
        for name, split in self.program.partitions.items():
            data = scratch / self._data_name
            files |= partition_files(name, split, written[name], data, data_file(self._data_name))
            files[data_file(self._data_name)] = data  # it has more than was hashed
        return files, shards

    def _gate_files(self) -> dict[str, Content]:
        gated = {model for name in self.program.gates for model in self._gated_models(name)}
        trained = {gates_file(name): path for name, path in self.trained.items() if name in gated}
        return {**self.program.router_weights, **trained}

    def _gated_models(self, graph: str) -> set[str]:
        """Models whose gates are in a graph; of a graph with layers of several its weights say it."""
        if graph not in self.program.joined:
            return {self.program.model(graph)}
        weights = self._graphs[graph].model.graph.initializers
        return {owner_of(name, self.sources) for name in weights if is_trained(name)}

    def _input_files(self) -> dict[str, Content]:
        """What turns text and images into the graphs' inputs."""
        reader = self.program.plan[0].graphs[0]
        named = self.sources.get(self.program.model(reader)) or next(iter(self.sources.values()))
        encoder = encoder_spec(named, self.spec.target.max_tokens)
        tokenizer = {} if encoder is not None and encoder.text is None else named.tokenizer_files()
        files: dict[str, Content] = {f"{TOKENIZER}/{name}": content for name, content in tokenizer.items()}
        for name in self.program.modal:
            if (images := image_spec(self.sources[name])) is not None:
                files[IMAGES] = images.to_json()
        if encoder is not None:
            files[ENCODER] = encoder.to_json()
        return files

    def _graph(self, name: str, graph: OnnxGraph, shards: Mapping[str, Sequence[str]]) -> GraphSpec:
        main, split = graph.model.graph, self.program.partitions.get(name)
        return GraphSpec(
            file=graph_file(name),
            inputs=tuple(map(_tensor, main.inputs)),
            outputs=tuple(map(_tensor, main.outputs)),
            data=tuple(data_file(shard) for first in self._data_files(graph) for shard in shards[first]),
            decoder=decoder_spec(graph, self.program.backbone(name), split),
            nodes=sum(1 for _ in main.all_nodes()),
            skippable_bytes=tuple(skippable_bytes(graph)),
        )


@dataclass(slots=True)
class _Written:
    """Counts weights of some graphs as they are written, those that graphs share once, and tells of them in MiB."""

    graphs: Iterable[OnnxGraph]
    progress: Progress
    left: dict[int, int] = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        weights = (value.const_value for graph in self.graphs for value in graph.model.graph.initializers.values())
        self.left = {id(each): each.nbytes for each in weights if each is not None and each.nbytes > INLINE_BYTES}
        self.total = sum(self.left.values())
        self.progress.step(0, self.total >> 20, "MiB")

    def add(self, weight: ir.TensorProtocol) -> None:
        """Count one that is in its file now."""
        if self.left.pop(id(weight), None) is not None:
            self.progress.step((self.total - sum(self.left.values())) >> 20, self.total >> 20, "MiB")


def _model(source: Source, sha256: str) -> ModelRecord:
    return ModelRecord(source.title, source.revision, source.licence(), source.config().model_type, sha256)


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


def _tensor(value: ir.Value) -> TensorSpec:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
    return TensorSpec(value.name or "", dtype, sizes(value))


def _bytes_per_token(program: Program) -> int:
    """Weight bytes that a step reads; of a stitched program, on its dearest route."""
    last = program.plan[-1]
    if isinstance(last, Switch):
        return max(_route_bytes(program)[last.gate].values())
    graphs = program.at_level(OnnxGraph)
    forms = program.forms  # each reads what its graph reads but for gates
    # An image's encoder runs once for an image: of a model that writes only its decoder, which has its name, counts.
    once = program.encoders if set(program.modal) & set(graphs) else frozenset()
    aside = once | forms | {program.draft}
    return sum(read_bytes_per_token(graph) for name, graph in graphs.items() if name not in aside)
