"""What an export is made of, whatever it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import ENCODER
from adaptc.runtime.encoding.spec import read_encoder_spec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import load_targets_of
from adaptc.runtime.loading import served_batch
from adaptc.runtime.model.plan import check_budget_fits, is_encoder, is_modal
from adaptc.runtime.pools import check_pools
from adaptc.runtime.validation import check_count, check_seconds, shown

_NO_NAME = re.compile(r"[/=@\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export; those that `adaptc serve` has mean the same.

    Attributes:
        name: What clients call the model.
        copy: Whether the bundle's files are copied into the folder; else it is named by its absolute path.
        threads: Cores of a replica.
        max_batch: Sequences that a replica decodes together; None for what `adaptc serve` takes.
        max_queue: Requests that wait.
        target_ttft: Seconds to the first token that a replica keeps by lowering budgets; None for any.
        target_tpot: The same for each further token.
        min_budget: Lowest budget under load for requests that name none; None for the usual one.
        drain_seconds: Time to finish when a replica is told to end.
        min_replicas: The smallest number of replicas, from 1.
        max_replicas: The largest number of replicas.
        pools: The routes that each pool's replicas load, by the pool's name; none for all.
        image: Name of the container image.

    Raises:
        RequestError: one is out of range.
    """

    name: str
    copy: bool = True
    threads: int = 2
    max_batch: int | None = None
    max_queue: int = 64
    target_ttft: float | None = None
    target_tpot: float | None = None
    min_budget: float | None = None
    drain_seconds: float = 30.0
    min_replicas: int = 1
    max_replicas: int = 4
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"replicas": ()})
    image: str | None = None

    def __post_init__(self) -> None:
        if not self.name or _NO_NAME.search(self.name):
            raise RequestError(f"--name: {shown(self.name)}; a name without /, = and @ is needed")
        check_count("--threads", self.threads, 1024)
        if self.max_batch is not None:
            check_count("--max-batch", self.max_batch, 1 << 16)
        check_count("--max-queue", self.max_queue, 1 << 20, 0)
        check_seconds("--drain-seconds", self.drain_seconds)
        check_count("--min-replicas", self.min_replicas, 1 << 16)
        check_count("--max-replicas", self.max_replicas, 1 << 16, self.min_replicas)
        check_pools(self.pools)
        load_targets_of(self.target_ttft, self.target_tpot, self.min_budget)

    @property
    def slug(self) -> str:
        """The name as DNS takes names: small letters, digits and hyphens, 40 at most."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].strip("-")
        return plain if plain[:1].isalpha() else f"adaptc-{plain}".strip("-")

    @property
    def load_control(self) -> dict[str, float]:
        """The options of load control that were given, by name."""
        named = {"target_ttft": self.target_ttft, "target_tpot": self.target_tpot, "min_budget": self.min_budget}
        return {name: value for name, value in named.items() if value is not None}

    def batch(self, bundle: Bundle) -> int:
        """Sequences that a replica decodes together."""
        if answers_inputs(bundle):
            return 1
        return self.max_batch or served_batch(bundle)

    def check(self, bundle: Bundle) -> None:
        """Refuse what has no meaning for a bundle.

        Raises:
            RequestError: naming the option; or the bundle is an encoder that no server answers with.
        """
        if is_encoder(bundle.manifest):
            gives = read_encoder_spec(bundle.read(ENCODER), str(bundle.path / ENCODER)).gives
            if gives != "vectors":
                raise RequestError(f"{bundle.path}: an encoder that gives {gives}, which no server answers with")
        if self.max_batch is not None and answers_inputs(bundle):
            raise RequestError(f"--max-batch: {bundle.path} answers each input by itself; leave it out")
        for name in self.load_control:
            check_budget_fits(bundle, name, f"--{name.replace('_', '-')}")

    def place(self, bundle: Bundle) -> str:
        """Where the exported folder has the bundle."""
        return BUNDLE if self.copy else str(bundle.path.resolve())


def answers_inputs(bundle: Bundle) -> bool:
    """Whether a bundle answers each input by itself, and decodes no sequences."""
    return is_modal(bundle.manifest) or is_encoder(bundle.manifest)


def engine_extra(bundle: Bundle) -> str:
    """The extra of adaptc that installs a bundle's engine."""
    return {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}.get(bundle.manifest.target.backend, "cpu")


BUNDLE = "bundle"
"""Folder of a copied bundle."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The content of an exported folder.

    Attributes:
        files: By name, relative to the folder; a Path is copied, or linked to a file that was copied from it before.
        bundle: A bundle to copy into the folder; None to copy none.
        place: Where the bundle comes in it.
    """

    files: Mapping[str, str | bytes | Path]
    bundle: Bundle | None = None
    place: str = BUNDLE
