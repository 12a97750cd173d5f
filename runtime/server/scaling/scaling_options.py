"""What a scaled-out application is told: bundles, pools and limits, in a strict form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import load_targets_of
from adaptc.runtime.pools import check_pools
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.entrance import Entrance
from adaptc.runtime.server.serving.models import Model, Models, load_model
from adaptc.runtime.server.serving.settings import Settings, read_keys
from adaptc.runtime.validation import shown

_LIMITS = ("max_body", "max_tokens", "max_seconds", "max_queue", "max_prompts", "drain_seconds", "log_json")
_EVERYWHERE = "0.0.0.0"  # replicas and their entrance are called by many names


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """Options of an application; those that `adaptc serve` has mean the same here.

    Attributes:
        bundles: Folders by the name that clients use.
        pools: The routes that each pool's replicas load, by the pool's name; none for all.
        api_key_file: File with API keys; None lets everybody in who reaches the entrance.
        allow_templates: Whether requests may bring chat templates.
        max_batch: Sequences of a replica that are decoded together.
        threads: Threads of a replica.
        target_ttft: Seconds to the first token that a replica keeps by lowering budgets; None for any.
        target_tpot: The same for each further token.
        min_budget: Lowest budget under load for requests that name none; None for the usual one.
        verify: Whether replicas compare the bundles' files with their hashes.
        slack: See `PrefixTable`.
        limits: The limits that `Settings` has under the same name.

    Raises:
        RequestError: one is wrong.
    """

    bundles: Mapping[str, str]
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"replicas": ()})
    api_key_file: str | None = None
    allow_templates: bool = False
    max_batch: int | None = None
    threads: int | None = None
    target_ttft: float | None = None
    target_tpot: float | None = None
    min_budget: float | None = None
    verify: bool = True
    limits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise RequestError("bundles: none; a name and a folder are needed")
        check_pools(self.pools)
        self.settings()
        load_targets_of(self.target_ttft, self.target_tpot, self.min_budget)

    @classmethod
    def read(cls, given: Mapping[str, Any], base: Path) -> ScalingOptions:
        """Options as a configuration file has them.

        Args:
            given: By name; limits stand among them.
            base: The folder that paths start from.

        Raises:
            RequestError: one is unknown or wrong.
        """
        own = {each.name for each in fields(cls)} - {"limits"}
        for name in given:
            if name not in own and name not in _LIMITS:
                raise RequestError(f"args: no option {shown(name)}; there are: {', '.join(sorted({*own, *_LIMITS}))}")
        for name in ("bundles", "pools"):
            if not isinstance(given.get(name, {}), Mapping):
                raise RequestError(f"args.{name}: {shown(given[name])}; a mapping from names is needed")
        options = {name: value for name, value in given.items() if name in own}
        options["bundles"] = {str(name): str(base / str(path)) for name, path in given.get("bundles", {}).items()}
        if given.get("pools"):
            options["pools"] = {str(name): tuple(routes or ()) for name, routes in given["pools"].items()}
        if given.get("api_key_file") is not None:
            options["api_key_file"] = str(base / str(given["api_key_file"]))
        return cls(**options, limits={name: given[name] for name in _LIMITS if name in given})

    def settings(self, *, keys: bool = False) -> Settings:
        """The settings of a server.

        Args:
            keys: Whether it asks for API keys, as the entrance does.

        Raises:
            RequestError: one is out of range, or the file of keys cannot be read.
        """
        known = read_keys(Path(self.api_key_file)) if keys and self.api_key_file is not None else frozenset()
        return Settings(host=_EVERYWHERE, keys=known, templates=self.allow_templates, **self.limits)

    def replica(self, pool: str) -> ServerParts:
        """The parts of one replica, its bundles loaded.

        Args:
            pool: Of which it is one.

        Raises:
            AdaptcError: as `load_model`.
        """
        routes = self.pools[pool] or None
        targets = load_targets_of(self.target_ttft, self.target_tpot, self.min_budget)
        load = partial(
            load_model, batch=self.max_batch, threads=self.threads, verify=self.verify, routes=routes, targets=targets
        )
        models: list[Model] = []
        try:
            for name, path in self.bundles.items():
                models.append(load(Path(path), name))
            settings = self.settings()
            return ServerParts(settings, Models(models), Entrance(settings.max_queue))
        except BaseException:
            for model in models:
                model.close()
            raise
