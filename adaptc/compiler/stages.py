"""From pretrained models to a program at ONNX level, kept in the cache without its weights.

Capturing and translating take most of a compile and need no weight. So what they give is kept by what it depends on
(configurations, passes, versions), and the weights are attached when they are wanted, tensor by tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from adaptc import families as families_room
from adaptc import sources as sources_room
from adaptc.capture.encoder import capture_encoder
from adaptc.capture.module import capture_module
from adaptc.capture.multimodal import capture_multimodal
from adaptc.capture.text import capture
from adaptc.compiler import stage_names
from adaptc.compiler.cache import Cache, key_of
from adaptc.compiler.pipeline import CompilePlan
from adaptc.families.encoder_model import encoder_of
from adaptc.families.model import multimodal_of, text_of
from adaptc.ir.fx_graph import VIEWS, FxGraph
from adaptc.ir.low_rank import KeptAdapter
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import Backbone, Program
from adaptc.ir.stored.blocks_file import load_blocks, save_blocks
from adaptc.ir.unread.constants import UnreadConstant
from adaptc.ir.weight_names import KnownTensors, UnreadTensors, ViewedTensors, WeightView, named_after
from adaptc.passes.base import Pass, Pipeline, Step
from adaptc.passes.quantize.calibrate import WINDOW
from adaptc.passes.store import PROCESS, Layered, code_of, piece_key, versions_of
from adaptc.runtime.bundle.manifest import ModalSpec, PassRecord
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.progress import Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText
from adaptc.sources.encoders import calibration_rows
from adaptc.sources.module import ModuleSource
from adaptc.sources.vocabulary import vocabulary

Weights = Callable[[], UnreadTensors]
"""Gives a model's pretrained weights by name; each is read when it is asked for."""

BLOCKS, PROGRAM = "blocks.safetensors", "program.json"


@dataclass(frozen=True, slots=True)
class StoredProgram:
    """A program in the cache, but for its graphs, codes and weights, which have files of their own.

    Attributes:
        plan: As in the program.
        model_of: As in the program.
        joined: As in the program, in alphabetical order.
        modal: As in the program.
        draft: As in the program.
        history: As in the program.
        gates: As in the program.
        routers: Names of the routers' files in a bundle.
        views: For each model, of which of its source's weights those of its graphs are parts.
        records: The passes as they ran.
    """

    plan: tuple[Run | Switch, ...]
    model_of: Mapping[str, str]
    joined: tuple[str, ...]
    modal: Mapping[str, ModalSpec]
    draft: str
    history: tuple[str, ...]
    gates: Mapping[str, SkipGates]
    routers: tuple[str, ...]
    views: Mapping[str, Mapping[str, WeightView]]
    records: tuple[PassRecord, ...]


def program_from_sources(
    sources: Mapping[str, Source], text: CalibrationText, progress: Progress, hashes: Mapping[str, str] | None = None
) -> Program:
    """Capture every model of the spec; of weights in files none is read, see `Program.loaded`.

    Args:
        sources: The models by name.
        text: What passes measure on.
        progress: Told of stages.
        hashes: The sources' sha256, by name, where they are known.

    Raises:
        LoadError: a model cannot be read or captured.
    """
    graphs, backbones, samples = {}, {}, {}
    for name, source in sources.items():
        progress.stage(stage_names.read(name))
        sha256 = source.sha256(progress) if hashes is None else hashes[name]
        backbones[name] = backbone(source, sha256, shared=len(sources) > 1)
        if isinstance(source, ModuleSource):
            progress.stage(stage_names.capture(name))
            graphs[name] = capture_module(*source.build())
            continue
        config, weights = source.config(), KnownTensors(source.tensors(), piece_key(sha256, _reading()))
        progress.stage(stage_names.capture(name))
        if (family := encoder_of(config)) is not None:
            graphs[name] = capture_encoder(config, weights, source.sentences())
            if family.reads == "text":
                window = min(WINDOW, family.limit(config))
                samples[name] = calibration_rows(source, text.ids(source), window)
            continue
        graphs[name] = (capture if multimodal_of(config) is None else capture_multimodal)(config, weights)
        samples[name] = text.ids(source)
    views = {name: graph.module.meta.get(VIEWS, {}) for name, graph in graphs.items()}
    plan = tuple(Run(name) for name in graphs)
    return Program(graphs, plan, backbones, samples, kept_adapters=_kept_adapters(sources, views))


def with_checkpoint(program: Program, sources: Mapping[str, Source]) -> Program:
    """A program that knows the matrices of its graphs as their sources hold them; none is read yet."""
    matrices = {name: source.matrices() for name, source in sources.items()}
    joined = {named_after(name, weight): each for name, held in matrices.items() for weight, each in held.items()}
    return replace(
        program,
        checkpoint={
            name: joined if name in program.joined else matrices[program.model(name)] for name in program.graphs
        },
    )


@once
def _reading() -> str:
    """Another one wherever weights may be read otherwise: sources, families, what files hold in a form of their own."""
    rooms = (Path(module.__file__ or "").parent for module in (sources_room, families_room))
    return piece_key(code_of(file for room in rooms for file in room.rglob("*.py")), versions_of("torch", "gguf"))


def backbone(source: Source, sha256: str, *, shared: bool = False) -> Backbone:
    """What later stages need to know of a model; `shared` if its vocabulary must be another's too."""
    config, ids = source.config(), source.token_ids()
    if isinstance(source, ModuleSource):
        return Backbone(source.origin, config.model_type, 0, None, (), None, 0, sha256)
    return Backbone(
        origin=source.origin,
        architecture=config.model_type,
        vocab_size=text_of(config).vocab_size,
        bos_token_id=ids.bos,
        eos_token_ids=ids.eos,
        pad_token_id=ids.pad,
        max_positions=_most_positions(config),
        sha256=sha256,
        vocabulary=vocabulary(source) if shared else "",
    )


def _most_positions(config: Any) -> int:
    family = encoder_of(config)
    return int(text_of(config).max_position_embeddings) if family is None else family.limit(config)


def lowered(
    plan: CompilePlan,
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    text: CalibrationText,
    versions: Mapping[str, str],
    cache: Cache,
    progress: Progress,
) -> tuple[Program, list[PassRecord]]:
    """The spec's program after its own passes and `lower`; from the cache if it was made before.

    Raises:
        AdaptcError: a model or a pass fails.
    """
    key = key_of(
        {name: source.config().to_dict() | source.sentences().to_dict() for name, source in sources.items()},
        [(p.name, p.options() | file_hashes(p)) for p in plan.to_onnx],
        dict(versions),
        # Passes that look at weights or text give what these give.
        [dict(hashes), text.sha256] if len(plan.to_onnx) > 1 else [],
    )

    def make(path: Path) -> None:
        records: list[PassRecord] = []
        program = program_from_sources(sources, text, progress, hashes)
        views = {name: graph.module.meta.get(VIEWS, {}) for name, graph in program.at_level(FxGraph).items()}
        pipeline = Pipeline(plan.to_onnx, Layered(cache, PROCESS))
        program = pipeline.run(program, lambda step: records.append(record(step)), progress=progress)
        _save(program, records, _viewed(sources, views), views, path)

    def read(path: Path) -> tuple[Program, list[PassRecord]]:
        progress.stage(stage_names.ATTACH)
        return _load(path, sources, hashes)

    return cache.use("lowered", key, make, read)


def file_hashes(pass_: Pass) -> dict[str, str]:
    """sha256 of the files a pass reads, by option; "" for one that is not there, which the pass will tell."""
    paths = {name: Path(value) for name, value in pass_.files().items()}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for name, p in paths.items()}


def record(step: Step) -> PassRecord:
    """A step as the manifest keeps it: files by their names, as where they stood says nothing to others."""
    names = {option: Path(file).name for option, file in step.pass_.files().items()}
    return PassRecord(step.pass_.name, step.pass_.options() | names, step.changed, round(step.seconds, 3))


def _save(
    program: Program,
    records: list[PassRecord],
    sources: Mapping[str, Weights],
    views: Mapping[str, Mapping[str, WeightView]],
    path: Path,
) -> None:
    """Write graphs without the sources' weights: those become inputs, to be attached again."""
    path.mkdir()
    for name, graph in program.at_level(OnnxGraph).items():
        model = graph.fork().model
        pretrained = _weights_of(name, program.model(name), program.joined, sources)
        for weight in [weight for weight in model.graph.initializers if weight in pretrained]:
            value = model.graph.initializers.pop(weight)
            value.const_value = None
            model.graph.inputs.append(value)
        ir.save(model, path / f"{name}.onnx")
    if program.blocks:
        save_blocks(program.blocks, path / BLOCKS)
    for file, content in program.router_weights.items():
        (path / Path(file).name).write_bytes(content)
    stored = StoredProgram(
        plan=program.plan,
        model_of=program.model_of,
        joined=tuple(sorted(program.joined)),
        modal=program.modal,
        draft=program.draft,
        history=program.history,
        gates=program.gates,
        routers=tuple(program.router_weights),
        views=views,
        records=tuple(records),
    )
    (path / PROGRAM).write_text(dumps(stored))


def _load(path: Path, sources: Mapping[str, Source], hashes: Mapping[str, str]) -> tuple[Program, list[PassRecord]]:
    stored = loads(StoredProgram, (path / PROGRAM).read_bytes())
    graphs, weights = {}, _viewed(sources, stored.views)
    drafts = [stored.draft] if stored.draft else []
    for name in [*(name for step in stored.plan for name in step.graphs), *drafts]:
        model = ir.load(path / f"{name}.onnx")
        _attach(model, _weights_of(name, stored.model_of.get(name, name), stored.joined, weights))
        graphs[name] = OnnxGraph(model)
    program = Program(
        graphs,
        stored.plan,
        backbones={name: backbone(source, hashes[name]) for name, source in sources.items()},
        blocks=load_blocks(path / BLOCKS) if (path / BLOCKS).exists() else {},
        gates=stored.gates,
        router_weights={file: (path / Path(file).name).read_bytes() for file in stored.routers},
        model_of=stored.model_of,
        joined=frozenset(stored.joined),
        history=stored.history,
        modal=stored.modal,
        draft=stored.draft,
        kept_adapters=_kept_adapters(sources, stored.views),
    )
    return program, list(stored.records)


def _kept_adapters(
    sources: Mapping[str, Source], views: Mapping[str, Mapping[str, WeightView]]
) -> dict[str, tuple[KeptAdapter, ...]]:
    """The adapters that requests choose among, of models that have some, by the names that their graphs use."""
    found = {name: source.kept_adapters(views.get(name, {})) for name, source in sources.items()}
    return {name: kept for name, kept in found.items() if kept}


def _viewed(sources: Mapping[str, Source], views: Mapping[str, Mapping[str, WeightView]]) -> dict[str, Weights]:
    """For each model, what reads its weights by the names that its graphs have for them."""
    return {name: partial(_read, source, views.get(name, {})) for name, source in sources.items()}


def _read(source: Source, views: Mapping[str, WeightView]) -> UnreadTensors:
    return ViewedTensors(source.tensors(), views) if views else source.tensors()


def _weights_of(graph: str, model: str, joined: Collection[str], sources: Mapping[str, Weights]) -> UnreadTensors:
    """The pretrained weights a graph may have, by their names in it; each is read when it is asked for."""
    if graph in joined:
        return JoinedTensors({name: read() for name, read in sources.items()})
    return sources[model]()


class JoinedTensors(UnreadTensors):
    """Several models' weights by their names in a graph that joins the models; each is read when it is asked for."""

    def __init__(self, models: Mapping[str, UnreadTensors]) -> None:
        """Join the weights of each model, by the model's name."""
        self._places = {
            named_after(model, name): (weights, name) for model, weights in models.items() for name in weights
        }

    def shape(self, name: str) -> tuple[int, ...]:
        weights, own = self._places[name]
        return weights.shape(own)

    def dtype(self, name: str) -> torch.dtype:
        weights, own = self._places[name]
        return weights.dtype(own)

    def stored(self, name: str) -> torch.Tensor:
        weights, own = self._places[name]
        return weights.stored(own)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, slots=True)
class _FloatRows:
    """Rows of a weight as float32, made as they are asked for."""

    stored: torch.Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    def __getitem__(self, rows: slice, /) -> Any:
        return self.stored[rows].to(self.dtype).float().numpy()


def _attach(model: ir.Model, tensors: UnreadTensors) -> None:
    """Give a graph its weights, which are read from their files when they are asked for."""
    for value in [v for v in model.graph.inputs if v.name in tensors]:
        model.graph.inputs.remove(value)
        name = value.name or ""
        value.const_value = UnreadConstant(name, ir.DataType.FLOAT, fixed(value), partial(_rows, tensors, name))
        model.graph.register_initializer(value)


def _rows(tensors: UnreadTensors, name: str) -> _FloatRows:
    return _FloatRows(tensors.stored(name), tensors.dtype(name))
