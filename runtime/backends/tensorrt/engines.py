"""Engines on disk: where they lie in a bundle, which one serves which shapes, and why one does not serve here.

`engines/FLAVOUR/KEY.plan` is an engine and `KEY.json` beside it says what it is. Each file is written whole or not at
all, and one that is there is not built again; so a build that was cut off goes on where it was. The manifest does not
list them: they belong to a machine, and a bundle without them is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptc.runtime.backends.cuda.kernels.skinny_gemm import LEAST_SM, ROWS
from adaptc.runtime.backends.tensorrt.build_report import MODES, BuildReport
from adaptc.runtime.backends.tensorrt.library import Profile
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, GraphSpec
from adaptc.runtime.bundle.partitions import PartitionGraph, Partitions
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.bundle.replace import write_whole
from adaptc.runtime.bundle.strict_json import dumps, loads, parse, read_json
from adaptc.runtime.errors import BundleError, EngineError

FIRST_BUCKET = 256
"""Fewest positions of the cache that engines are built for: smaller caches cost no less."""


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What an engine is; the JSON beside it.

    Attributes:
        graph: sha256 of the graph it was built from.
        name: What the bundle calls that graph.
        flavour: "tensorrt" or "tensorrt-rtx".
        library: Version of the library that built it, the only one that runs it.
        device: GPU it was built on, by name; "" for one that serves every GPU of its capabilities.
        sm: Compute capabilities.
        sizes: Least, best and most of "batch", "tokens" and "kv_bucket", those that the graph has.
        sha256: Of the engine.
        bytes: Its size.
        seconds: What building took.
        layers: What was compiled, a line a step.
    """

    graph: str
    name: str
    flavour: str
    library: str
    device: str
    sm: tuple[int, ...]
    sizes: dict[str, tuple[int, int, int]]
    sha256: str
    bytes: int
    seconds: float
    layers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its file's name: what it was built from, by what, and for what."""
        built = self.graph, self.flavour, self.library, self.device, self.sm
        # "regions" was the mode when each had engines of its own; it stays, so that those are found.
        given = (*built, "regions", sorted(self.sizes.items()))
        return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether it takes these sizes."""
        return all(least <= sizes[name] <= most for name, (least, _, most) in self.sizes.items())

    def fits(self, sm: int, device: str) -> bool:
        """Whether it runs on this GPU."""
        return sm in self.sm and self.device in ("", device)


def content_of(bundle: Bundle, file: str) -> str:
    """A hash of a graph and of the weights that it has beside it; a partition's are inputs."""
    files = bundle.manifest.files
    data = next((graph.data for graph in bundle.manifest.graphs.values() if graph.file == file), ())
    if not data:
        return files[file].sha256
    return hashlib.sha256(" ".join(files[name].sha256 for name in (file, *data)).encode()).hexdigest()


def plain_graph(spec: GraphSpec) -> PartitionGraph:
    """A graph with its weights, in the form of a partition."""
    return PartitionGraph(spec.file, spec.inputs, spec.outputs, weights=0)


def buckets(max_tokens: int) -> tuple[int, ...]:
    """KV buckets of a step by default: doubled from 256 up to `max_tokens`."""
    sizes = []
    size = FIRST_BUCKET
    while size < max_tokens:
        sizes.append(size)
        size *= 2
    return (*sizes, max_tokens)


def sizes_of(graph: PartitionGraph) -> set[str]:
    """The sizes that a graph is built for: "batch", "tokens", "kv_bucket"."""
    return {size for spec in graph.inputs for size in spec.shape if isinstance(size, str)}


def profile(graph: PartitionGraph, sizes: Mapping[str, tuple[int, int, int]]) -> Profile:
    """Shapes of a graph's inputs for a range of sizes."""

    def shapes(which: int) -> dict[str, tuple[int, ...]]:
        return {
            spec.name: tuple(size if isinstance(size, int) else sizes[size][which] for size in spec.shape)
            for spec in graph.inputs
        }

    return Profile(shapes(0), shapes(1), shapes(2))


class EngineFolder:
    """The engines of one flavour in a bundle."""

    def __init__(self, bundle: Path, flavour: str) -> None:
        self.path = bundle / "engines" / flavour
        self.flavour = flavour
        self._report = bundle / "engines" / f"{flavour}.json"

    def records(self) -> list[EngineRecord]:
        """All engines that are there whole.

        Raises:
            EngineError: a record cannot be read, or is of an older adaptc and of no use to this one.
        """
        found = []
        for file in sorted(self.path.glob("*.json")):
            try:
                content = parse(file.read_bytes())
                if isinstance(content, dict):
                    content.pop("mode", None)  # of an older adaptc, where each mode had engines of its own
                record = read_json(EngineRecord, content)
            except (OSError, BundleError) as error:
                raise EngineError(f"{file}: damaged ({error}); remove it and run adaptc build again") from error
            there = self.plan(record).exists()
            if there and file.stem == record.key:
                found.append(record)
            elif not there and file.with_suffix(".plan").exists():
                raise EngineError(f"{file}: of an older adaptc; remove {self.path} and run adaptc build again")
        return found

    def report(self) -> BuildReport:
        """What the newest build decided; "on_device" if there was none.

        Raises:
            EngineError: it cannot be read.
        """
        try:
            found = loads(BuildReport, self._report.read_bytes(), defaults=True)
        except FileNotFoundError:
            return BuildReport(MODES[0], "nothing was built")
        except (OSError, BundleError) as error:
            raise EngineError(f"{self._report}: damaged ({error}); run adaptc build again") from error
        if found.mode not in MODES:
            raise EngineError(f"{self._report}: damaged (mode {found.mode!r}); run adaptc build again")
        return found

    def decide(self, report: BuildReport) -> None:
        """Have sessions run so from now on."""
        self._report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._report, dumps(report).encode())

    def plan(self, record: EngineRecord) -> Path:
        """Where an engine lies."""
        return self.path / f"{record.key}.plan"

    def read(self, record: EngineRecord) -> bytes:
        """An engine, compared with its record.

        Raises:
            EngineError: it is damaged.
        """
        file = self.plan(record)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise EngineError(f"{file}: cannot read: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise EngineError(f"{file}: damaged; remove {self.path} and run adaptc build again")
        return content

    def write(self, record: EngineRecord, plan: bytes) -> None:
        """Put an engine there; the record comes last, so that one with a record is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.plan(record), plan)
        write_whole(self.path / f"{record.key}.json", dumps(record, indent=1).encode())

    def find(
        self,
        records: Iterable[EngineRecord],
        bundle: Bundle,
        graph: PartitionGraph,
        sizes: Mapping[str, int],
        here: tuple[str, int, str],
    ) -> EngineRecord:
        """The tightest engine of a graph for these sizes.

        Args:
            records: Of this folder.
            bundle: Whose graph it is.
            graph: The graph.
            sizes: Of "batch", "tokens" and "kv_bucket".
            here: Version of the library, compute capability and name of the GPU.

        Raises:
            EngineError: none serves; what there is, and the command that builds it.
        """
        library, sm, device = here
        sha256 = content_of(bundle, graph.file)
        mine = [record for record in records if record.graph == sha256]
        mend = f"run adaptc build {bundle.path} --target {self.flavour} on this machine"
        if not mine:
            raise EngineError(f"{bundle.path}: no {self.flavour} engines; {mend}")
        if not (right := [record for record in mine if record.library == library]):
            raise EngineError(f"{bundle.path}: its engines are of {mine[0].library}, here is {library}; {mend}")
        if not (fitting := [record for record in right if record.fits(sm, device)]):
            made = right[0].device or f"compute capability {', '.join(map(str, right[0].sm))}"
            raise EngineError(f"{bundle.path}: its engines are for {made}, here is {device} ({sm}); {mend}")
        serving = [record for record in fitting if record.serves(sizes)]
        if not serving:
            wanted = ", ".join(f"{name} {sizes[name]}" for name in sorted(sizes_of(graph)))
            raise EngineError(f"{bundle.path}: no engine for {wanted}; {mend} with these sizes")
        return min(serving, key=_slack)


def _slack(record: EngineRecord) -> int:
    """How much more than one shape an engine serves."""
    return sum(most - least for least, _, most in record.sizes.values())


def decoder_graphs(bundle: Bundle) -> dict[str, DecoderSpec]:
    """The decoder of a bundle, or the parts of a stitched one, the trunk first: how to generate with each, by name.

    Raises:
        BundleError: the plan is another one.
    """
    first, *rest = bundle.manifest.plan
    known = isinstance(first, Run) and all(isinstance(step, Switch) for step in rest) and len(rest) < 2
    specs = {name: bundle.manifest.graphs[name].decoder for step in bundle.manifest.plan for name in step.graphs}
    found = {name: spec for name, spec in specs.items() if spec is not None}
    if not known or len(found) < len(specs):
        raise BundleError(f"{bundle.path}: its plan is not one decoder, with or without routes; TensorRT runs no other")
    return found


def decoder_graph(bundle: Bundle) -> tuple[str, DecoderSpec]:
    """The graph of a bundle that reads token ids: its name, and how to generate with it.

    Raises:
        BundleError: the plan is not one decoder, with or without routes.
    """
    return next(iter(decoder_graphs(bundle).items()))


def read_partitions(bundle: Bundle, name: str) -> Partitions:
    """The partitions of a graph.

    Raises:
        BundleError: the bundle was not compiled for TensorRT, or the file is damaged.
    """
    file = f"partitions/{name}.json"
    if file not in bundle.manifest.files:
        if f"regions/{name}.json" in bundle.manifest.files:
            raise BundleError(f"{bundle.path}: compiled by an older adaptc; compile it again")
        backend = bundle.manifest.target.backend
        raise BundleError(f"{bundle.path}: compiled for {backend}; compile with target.backend: tensorrt")
    try:
        partitions = Partitions.from_json((bundle.path / file).read_bytes())
    except (OSError, BundleError) as error:
        raise BundleError(f"{bundle.path / file}: {error}") from error
    for graph in partitions.graphs.values():
        if graph.file not in bundle.manifest.files:
            raise BundleError(f"{bundle.path / file}: {graph.file!r} is not among the bundle's files")
    return partitions


def wanted(
    graph: PartitionGraph,
    batches: Sequence[int],
    kv_buckets: Sequence[int],
    chunk: int,
    sm: Sequence[int] = (LEAST_SM,),
) -> list[dict[str, tuple[int, int, int]]]:
    """The sizes that a graph's engines are built for: steps of fixed sizes, and prompts of any length up to `chunk`.

    A skinny GEMM needs none (cuda/kernels/skinny_gemm.py), if all the capabilities `sm` have the instructions for it.
    """
    names = sizes_of(graph)
    few = ROWS if graph.gemm and min(sm) >= LEAST_SM else 0
    found: list[dict[str, tuple[int, int, int]]] = []
    for batch in batches:
        for bucket in kv_buckets if batch > few else ():
            full = {"batch": (batch,) * 3, "tokens": (1, 1, 1), "kv_bucket": (bucket,) * 3}
            found.append({name: full[name] for name in sorted(names)})
    if chunk > max(1, few):
        best = min(chunk, 128)
        full = {
            "batch": (1, 1, 1),
            "tokens": (1, best, chunk),
            "kv_bucket": (kv_buckets[0], kv_buckets[0], kv_buckets[-1]),
        }
        found.append({name: full[name] for name in sorted(names)})
    return [sizes for index, sizes in enumerate(found) if sizes not in found[:index]]
