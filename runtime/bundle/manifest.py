"""What a bundle says about itself: the dataclasses behind `manifest.json`, in a strict JSON form (`strict_json.py`).

Every key is required and every type is checked, so a manifest that reads is a manifest that can be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptc.runtime.bundle.adapters import AdaptedGraph
from adaptc.runtime.bundle.cache_window import CacheWindow
from adaptc.runtime.bundle.gate_verdict import GateVerdict
from adaptc.runtime.bundle.older_schemas import UPGRADES, upgraded
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.bundle.strict_json import parse, read_json, to_json
from adaptc.runtime.errors import BundleError

SCHEMA = 8
"""The version of `manifest.json` that this adaptc writes; it reads earlier ones as well (`older_schemas.py`)."""

JsonObject = dict[str, Any]
"""A JSON object the runtime carries but does not interpret."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        dtype: As numpy spells it: "float32", "int64".
        shape: Sizes; a string names a size that is only known at run time, such as "batch".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What the runtime must know to generate text with a graph.

    Attributes:
        vocab_size: Width of the logits.
        max_tokens: Positions in the KV cache: prompt and answer together.
        kv: (kv_heads, head_dim) of each layer.
        bos_token_id: Stands for an empty prompt; None if the model has none.
        eos_token_ids: Generating any of these ends the answer.
        pad_token_id: None if the model has none.
        windows: Layers whose cache holds fewer positions, one for each width of window.
    """

    vocab_size: int
    max_tokens: int
    kv: tuple[tuple[int, int], ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    windows: tuple[CacheWindow, ...] = ()

    @property
    def positions(self) -> tuple[int, ...]:
        """How many positions each layer's cache holds."""
        held = {layer: window.positions for window in self.windows for layer in window.layers}
        return tuple(held.get(layer, self.max_tokens) for layer in range(len(self.kv)))

    def cache_entries(self, tokens: int | None = None) -> int:
        """How many numbers the cache of one sequence of so many tokens has; of the longest by default."""
        most = self.max_tokens if tokens is None else tokens
        return sum(
            2 * heads * width * min(most, held) for (heads, width), held in zip(self.kv, self.positions, strict=True)
        )


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph of a bundle.

    Attributes:
        file: The ONNX file, relative to the bundle.
        inputs: In the graph's order.
        outputs: In the graph's order.
        data: External data files the graph reads, relative to the bundle; graphs may share them.
        decoder: Set if the graph follows the decoder form of docs/bundle.md.
        nodes: Number of nodes, those inside branches included.
        skippable_bytes: Weight bytes that each gate of the graph saves when its block is skipped, in order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    data: tuple[str, ...]
    decoder: DecoderSpec | None
    nodes: int = 0
    skippable_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModalitySpec:
    """One modality of a model.

    Attributes:
        inputs: The model's inputs that belong to it.
        encoder: Name of the graph from these to `features`; None where subsets read the inputs as they are.
        features: What subsets read of it.
    """

    inputs: tuple[str, ...]
    encoder: str | None
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SubsetSpec:
    """Some modalities of a model, and the graph that does with these.

    Attributes:
        modalities: Their names, in the model's order.
        graph: Name of the graph from their features to the model's outputs.
    """

    modalities: tuple[str, ...]
    graph: str


@dataclass(frozen=True, slots=True)
class ModalSpec:
    """How a model runs on subsets of its modalities.

    Attributes:
        modalities: By name, in the model's order.
        subsets: From small to large.
    """

    modalities: dict[str, ModalitySpec]
    subsets: tuple[SubsetSpec, ...]


@dataclass(frozen=True, slots=True)
class VerificationGraph:
    """A graph that reads several tokens of one sequence as steps of another graph would, for drafted tokens.

    Attributes:
        tokens: The largest number of them.
        graph: Its name.
    """

    tokens: int
    graph: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Where a pretrained model came from."""

    source: str
    revision: str | None
    licence: str | None
    architecture: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass as it ran."""

    name: str
    options: JsonObject
    changed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """What the bundle was compiled for."""

    backend: str
    weights: str
    max_tokens: int
    batch: int


@dataclass(frozen=True, slots=True)
class GatesFile:
    """A file of trained gates, as it was put into the bundle in the place of another: its name and its hash (hex)."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """How a file of the bundle must look: its hash (hex) and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a bundle says about itself.

    Attributes:
        schema: Version of this format.
        adaptc: Version of the adaptc that wrote the bundle.
        models: Pretrained models by their name in the spec.
        passes: The passes in the order they ran.
        plan: How the graphs are run.
        graphs: By name.
        gates: By the name of the graph that has them.
        modal: By the name of the model that runs on subsets of its modalities.
        target: What the bundle was compiled for.
        versions: Versions of the libraries that took part.
        bytes_per_token: Weight bytes that a decode step of one row reads with every block run; of several routes, by
            the dearest.
        route_bytes: The same of each route, by the name of the switch's gate; the steps before it are included.
        gate_verdicts: Whether skip gates paid, by the name of the graph that had them.
        verification: By the name of a decoder's graph, the graphs that verify drafted tokens for it, small ones first.
        draft: Name of the graph that drafts tokens for the plan's decoder; "" if none does.
        adapters: By the name of a decoder's graph, its form with the adapters that requests choose among.
        replaced_gates: Gates that were put in after compiling, by the name of the graph.
        files: Every other file of the bundle; filled in by `write_bundle`.
    """

    schema: int = SCHEMA
    adaptc: str
    models: dict[str, ModelRecord]
    passes: tuple[PassRecord, ...]
    plan: tuple[Run | Switch, ...]
    graphs: dict[str, GraphSpec]
    gates: dict[str, SkipGates]
    target: TargetRecord
    versions: dict[str, str]
    bytes_per_token: int
    route_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    gate_verdicts: dict[str, GateVerdict] = field(default_factory=dict)
    replaced_gates: dict[str, GatesFile] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    modal: dict[str, ModalSpec] = field(default_factory=dict)
    verification: dict[str, tuple[VerificationGraph, ...]] = field(default_factory=dict)
    draft: str = ""
    adapters: dict[str, AdaptedGraph] = field(default_factory=dict)

    @property
    def reader(self) -> str:
        """Name of the graph that reads token ids: the plan's first decoder, or its first graph if there is none."""
        names = [name for step in self.plan for name in step.graphs]
        return next((name for name in names if self.graphs[name].decoder is not None), names[0])

    @property
    def weights(self) -> frozenset[str]:
        """Names of the files that are bytes of weights and no more."""
        files = {graph.file for graph in self.graphs.values()}
        return frozenset(name for graph in self.graphs.values() for name in graph.data if name not in files)

    @property
    def verifying(self) -> Mapping[str, str]:
        """By the name of a graph that verifies drafted tokens, the graph that it does so for."""
        return verifying(self.verification)

    def pays_from(self, graph: str) -> float:
        """The share of all blocks from which a graph's gates pay, as measured; 0 if that is not known."""
        verdict, gates = self.gate_verdicts.get(graph), self.gates.get(graph)
        return 0.0 if verdict is None or gates is None else verdict.payoff.pays_from(gates)

    @property
    def forms(self) -> frozenset[str]:
        """Names of the graphs that are other forms of a decoder, over its weights and its cache."""
        return forms(self.gates, self.verification, self.adapters)

    @property
    def switch(self) -> Switch | None:
        """Where the plan divides into routes; None if it does not."""
        return next((step for step in self.plan if isinstance(step, Switch)), None)

    def to_json(self) -> str:
        """The text of `manifest.json`, sealed with a hash of its own content.

        Raises:
            BundleError: a field is not of its type, or holds something that JSON cannot.
        """
        try:
            content = to_json(self)
        except BundleError as error:
            raise BundleError(f"manifest: {error}") from error
        return json.dumps(content | {"sha256": _seal(content)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Read `manifest.json`.

        Raises:
            BundleError: not JSON, another schema version, changed since it was written, or a key that
                is missing, unknown or of the wrong type.
        """
        content = parse(text)
        if not isinstance(content, dict) or "schema" not in content:
            raise BundleError("not a manifest: no key 'schema'")
        if content["schema"] not in (*UPGRADES, SCHEMA):
            raise BundleError(
                f"schema: {content['schema']!r}; this adaptc reads {min(UPGRADES)} to {SCHEMA}: compile again, or "
                "install the adaptc that wrote it"
            )
        seal = content.pop("sha256", None)
        manifest = read_json(Manifest, upgraded(content, SCHEMA))
        if seal != _seal(content):
            raise BundleError("changed since it was written; compile again")
        return manifest


def verifying(verification: Mapping[str, tuple[VerificationGraph, ...]]) -> Mapping[str, str]:
    """See `Manifest.verifying`; of a program too."""
    return {each.graph: name for name, graphs in verification.items() for each in graphs}


def adapted(adapters: Mapping[str, AdaptedGraph]) -> Mapping[str, str]:
    """By the name of a graph with adapters, or of its dense twin, the graph that it is a form of."""
    return {form: name for name, each in adapters.items() for form in (each.graph, each.dense) if form}


def forms(
    gates: Mapping[str, SkipGates],
    verification: Mapping[str, tuple[VerificationGraph, ...]],
    adapters: Mapping[str, AdaptedGraph],
) -> frozenset[str]:
    """See `Manifest.forms`; of a program too."""
    twins = {each.dense for each in gates.values() if each.dense}
    return frozenset(twins | verifying(verification).keys() | adapted(adapters).keys())


def _seal(content: JsonObject) -> str:
    """A hash of what the manifest says, whatever its spacing and order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
