"""What a report says beyond the manifest: the machine, what layers read, and measurements that were added later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from adaptc.ir.program import SourceWeights
from adaptc.machine.description import Machine
from adaptc.machine.memory import memory_bytes
from adaptc.machine.processor import cpu_flags
from adaptc.runtime.bundle.manifest import Manifest
from adaptc.runtime.bundle.strict_json import parse, read_json, to_json

FROM_MANIFEST = (
    "models",
    "target",
    "passes",
    "versions",
    "bytes_per_token",
    "route_bytes",
    "gate_verdicts",
    "replaced_gates",
)
"""Keys of the manifest that `report.json` repeats, so that a program needs one file only."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """The machine something was measured on.

    Attributes:
        cpu: Name of the processor.
        flags: Instruction sets that kernels choose by.
        threads: Physical cores, which engines use a thread each of.
        memory_bytes: Memory in all; 0 if the system does not say.
        system: Operating system and architecture.
        python: Version of Python.
        date: When, as YYYY-MM-DD, in UTC.
    """

    cpu: str
    flags: tuple[str, ...]
    threads: int
    memory_bytes: int
    system: str
    python: str
    date: str

    @classmethod
    def here(cls) -> MachineRecord:
        """This machine, today."""
        machine = Machine.here()
        return cls(
            machine.cpu,
            tuple(cpu_flags()),
            machine.cores,
            memory_bytes()[0],
            machine.system,
            machine.python,
            datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What a decode step does in one part of a graph: a layer, or what stands before or after the layers.

    Attributes:
        name: "0", "1", … for a layer; else "before layers" or "after layers".
        bytes: Weight bytes that are read, by kind: "attention", "feed-forward", "gate" (with what it runs instead of
            the block), "other".
    """

    name: str
    bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds of a decode step, by part of a graph and kind, as in `PartRecord`.

    Attributes:
        graph: The graph.
        parts: (name of the part, seconds by kind), in order.
        context: Tokens in the cache.
        steps: Steps that were timed; times are their means.
        machine: Where.
    """

    graph: str
    parts: tuple[tuple[str, dict[str, float]], ...]
    context: int
    steps: int
    machine: MachineRecord


@dataclass(frozen=True, slots=True)
class SkipColumn:
    """What gates do under one budget.

    Attributes:
        budget: From 0 (cheapest) to 1 (dense).
        rates: For each gate, the share of tokens that skip its block.
    """

    budget: float
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SkipMap:
    """What gates do under several budgets, on a text.

    Attributes:
        columns: By falling budget.
        tokens: Tokens that were decoded one by one.
        text: Name of the text.
    """

    columns: tuple[SkipColumn, ...]
    tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a report says beyond the manifest.

    Attributes:
        title: What the page is headed with; "" for the names of the models.
        machine: Where the bundle was compiled, and gates were timed; None in bundles of earlier versions.
        parts: By graph that writes tokens, what a step reads.
        trained: By graph with learned gates, (share of blocks skipped, perplexity / dense) when they were trained.
        layer_times: By graph, seconds of a step by layer, as `adaptc report --measure` found them.
        skip_maps: By graph with gates, what they skip, from the same command.
        added: By what it is ("sweep", "bench", "quality", "eval"), the JSON of another command.
        source_weights: Of weights that are stored as their source has them, what became of each kind of tensor.
    """

    title: str = ""
    machine: MachineRecord | None = None
    parts: dict[str, tuple[PartRecord, ...]] = field(default_factory=dict)
    trained: dict[str, Points] = field(default_factory=dict)
    layer_times: dict[str, LayerTimes] = field(default_factory=dict)
    skip_maps: dict[str, SkipMap] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    source_weights: dict[str, SourceWeights] = field(default_factory=dict)


def report_json(manifest: Manifest, record: Record) -> str:
    """The text of `report.json`."""
    content = to_json(manifest)
    return json.dumps({key: content[key] for key in FROM_MANIFEST} | to_json(record), indent=2) + "\n"


def read_record(text: str | bytes) -> Record:
    """Read what `report_json` wrote; of an earlier version, what it has.

    Raises:
        BundleError: not JSON, or a value is of another type.
    """
    content = parse(text)
    names = {each.name for each in fields(Record)}
    known: Mapping[str, Any] = {key: value for key, value in content.items() if key in names}
    return read_json(Record, known, defaults=True)
