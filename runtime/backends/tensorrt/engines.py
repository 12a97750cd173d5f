"""Engines on disk: where they lie in a bundle, which one serves which shapes, and why one does not serve here.

`engines/FLAVOUR/KEY.plan` is an engine and `KEY.json` beside it says what it is. Each file is written whole or not at
all, and one that is there is not built again; so a build that was cut off goes on where it was. The manifest does not
list them: they belong to a machine, and a bundle without them is whole. The index of what was built names them
(runtime/bundle/built.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptc.runtime.backends.tensorrt.build_report import MODES, BuildReport
from adaptc.runtime.backends.tensorrt.sizes import sizes_of
from adaptc.runtime.bundle.built import add_built, built_files, read_built
from adaptc.runtime.bundle.files.replace import write_whole
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import FileRecord
from adaptc.runtime.bundle.partitions import PartitionGraph
from adaptc.runtime.bundle.reading import read_checked
from adaptc.runtime.bundle.strict_json import dumps, loads, parse, read_json
from adaptc.runtime.errors import BundleError, EngineError


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


class EngineFolder:
    """The engines of one flavour in a bundle."""

    def __init__(self, bundle: Path, flavour: str) -> None:
        self.path = bundle / "engines" / flavour
        self.flavour = flavour
        self._bundle = bundle
        self._report = f"engines/{flavour}.json"
        self._prefix = f"engines/{flavour}/"

    def records(self) -> list[EngineRecord]:
        """All engines that are there whole.

        Raises:
            EngineError: a record cannot be read.
        """
        found = []
        built = self._built()
        for name, file in sorted(built.items()):
            if not (name.startswith(self._prefix) and name.endswith(".json")):
                continue
            try:
                content = read_checked(self._bundle, name, file, verify=True)
                record = read_json(EngineRecord, parse(content))
            except BundleError as error:
                path = self._bundle / name
                raise EngineError(f"{path}: damaged ({error}); remove it and run adaptc build again") from error
            if self._plan(record) in built and self.plan(record).exists():
                found.append(record)
        return found

    def report(self) -> BuildReport:
        """What the newest build decided; "on_device" if there was none.

        Raises:
            EngineError: it cannot be read.
        """
        path = self._bundle / self._report
        try:
            content = read_built(self._bundle, self._report)
            if content is None:
                return BuildReport(MODES[0], "nothing was built")
            found = loads(BuildReport, content, defaults=True)
        except BundleError as error:
            raise EngineError(f"{path}: damaged ({error}); run adaptc build again") from error
        if found.mode not in MODES:
            raise EngineError(f"{path}: damaged (mode {found.mode!r}); run adaptc build again")
        return found

    def decide(self, report: BuildReport) -> None:
        """Have sessions run so from now on."""
        path = self._bundle / self._report
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, dumps(report).encode())
        add_built(self._bundle, (self._report,))

    def plan(self, record: EngineRecord) -> Path:
        """Where an engine lies."""
        return self._bundle / self._plan(record)

    def read(self, record: EngineRecord) -> bytes:
        """An engine, compared with its record and with the index of what was built.

        Raises:
            EngineError: it is damaged.
        """
        file = self.plan(record)
        try:
            content = read_built(self._bundle, self._plan(record))
        except BundleError as error:
            raise EngineError(f"{file}: damaged; remove {self.path} and run adaptc build again") from error
        if content is None or hashlib.sha256(content).hexdigest() != record.sha256:
            raise EngineError(f"{file}: damaged; remove {self.path} and run adaptc build again")
        return content

    def write(self, record: EngineRecord, plan: bytes) -> None:
        """Put an engine there; the index comes last, so that one that it names is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        about = f"{self._prefix}{record.key}.json"
        write_whole(self.plan(record), plan)
        write_whole(self._bundle / about, dumps(record, indent=1).encode())
        add_built(self._bundle, (self._plan(record), about))

    def _plan(self, record: EngineRecord) -> str:
        return f"{self._prefix}{record.key}.plan"

    def _built(self) -> Mapping[str, FileRecord]:
        try:
            return built_files(self._bundle)
        except BundleError as error:
            raise EngineError(str(error)) from error

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
            records: Records of this folder.
            bundle: Whose graph it is.
            graph: The graph.
            sizes: Sizes of "batch", "tokens" and "kv_bucket".
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
