"""The adapter_config.json of a LoRA adapter: which modules it changes, by which scale, and what is refused.

The rules for names are PEFT's: a list of ends of module names, or one regular expression for the whole name; patterns
of rank and alpha match the end of a name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.folder.files import ADAPTER, read_object

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base's weights as they are."""

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "use_dora": "DoRA, which scales columns by their length; merge it with merge_and_unload of peft and give the "
        "folder of the merged model",
        "target_parameters": "LoRA on parameters that are no linear layer's",
        "trainable_token_indices": "trained rows of the embedding",
        "layer_replication": "layers that stand more than once",
        "use_qalora": "QALoRA",
        "alora_invocation_tokens": "an activated LoRA, which begins within a text",
        "use_bdlora": "block-diagonal LoRA",
        "arrow_config": "Arrow, which chooses among adapters for each token",
        "kasa_config": "KaSA, which changes the base's weights too",
    }
)
"""Keys that, if they are set, make another model than W + s B A, and what they stand for."""

_LISTS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter's config says.

    Attributes:
        origin: The adapter's name in the spec, for errors.
        values: The content of adapter_config.json.
    """

    origin: str
    values: Mapping[str, Any]

    @property
    def base(self) -> str:
        """Name of the model it was trained on; "" if it does not say."""
        return str(self.values.get("base_model_name_or_path") or "")

    @property
    def ties_head(self) -> bool:
        """Whether what changes a tied embedding changes the head too."""
        return bool(self.values.get("ensure_weight_tying"))

    def targets(self, linear: Callable[[str], bool]) -> Callable[[str], bool]:
        """Return the test of whether a module has matrices A and B, by its name in the model.

        Args:
            linear: Whether a name is of a linear layer other than the head: what `all-linear` stands for.
        """
        wanted = self.values.get("target_modules")
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            return lambda name: linear(name) and not self._left_out(name)
        return lambda name: self._wanted(wanted, name) and not self._left_out(name)

    def scale(self, module: str, rank: int) -> float:
        """Return what B A of a module is multiplied by.

        Args:
            module: Its name in the model.
            rank: Rows of A.

        Raises:
            LoadError: A has another rank than the config says.
        """
        stated = self._of_pattern("rank_pattern", module, self.values.get("r", 8))
        alpha = self._of_pattern("alpha_pattern", module, self.values.get("lora_alpha", 8))
        if rank != stated:
            raise LoadError(
                f"{self.origin}: {module} has rank {rank}; by its config it should be {one_line(stated)[:20]}"
            )
        return float(alpha) / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _of_pattern(self, key: str, module: str, otherwise: Any) -> Any:
        for pattern, value in (self.values.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return otherwise

    def _left_out(self, name: str) -> bool:
        excluded, saved = self.values.get("exclude_modules"), self.values.get("modules_to_save") or ()
        if isinstance(excluded, str) and re.fullmatch(excluded, name):
            return True
        if isinstance(excluded, list) and _ends_with(name, excluded):
            return True
        return any(re.match(rf"(^|.*\.){each}($|\..*)", name) for each in saved)

    def _wanted(self, wanted: Any, name: str) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        if name in wanted:
            return True
        layers = self.values.get("layers_to_transform")
        found = _ends_with(name, wanted)
        if not found or layers is None or layers == []:
            return found
        patterns = self.values.get("layers_pattern") or ()
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        rules = [rf"(?:^|.*?\.){each}\.(\d+)\." for each in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        place = next((match for rule in rules if (match := re.match(rule, name)) is not None), None)
        return place is not None and int(place[1]) in ([layers] if isinstance(layers, int) else layers)


def _ends_with(name: str, ends: list[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def lora_config(origin: str, folder: Path) -> LoraConfig:
    """Read an adapter's config.

    Args:
        origin: The adapter's name in the spec, for errors.
        folder: Its folder.

    Raises:
        LoadError: it is not there or damaged, or it is of an adapter that is no plain LoRA.
    """
    values = read_object(origin, folder / ADAPTER, needed=True)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise LoadError(f"{origin}: an adapter of type {one_line(kind)[:40]}; adaptc merges LORA")
    for key, what in _REFUSED.items():
        if values.get(key):
            raise LoadError(f"{origin}: {key}: {what}{'' if '; ' in what else '; adaptc merges plain LoRA'}")
    start = values.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise LoadError(
            f"{origin}: init_lora_weights is {one_line(start)[:40]}: its training changed the base's weights too; "
            "peft's save_pretrained with path_initial_model_for_weight_conversion writes it as plain LoRA"
        )
    _check_values(origin, values)
    return LoraConfig(origin, values)


def _check_values(origin: str, values: Mapping[str, Any]) -> None:
    """Refuse values of other kinds than PEFT writes, which would end in an exception of Python's."""

    def refuse(key: str, right: str) -> LoadError:
        return LoadError(f"{origin}: {ADAPTER}: {key} is {one_line(values.get(key))[:40]}; {right} is right")

    for key in _LISTS:
        value = values.get(key)
        named = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
        if not (named or (value is None and key != "target_modules")):
            raise refuse(key, "a list of names")
    for key in ("r", "lora_alpha"):
        value = values.get(key, 8)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0 or not math.isfinite(value):
            raise refuse(key, "a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = values.get(key) or {}
        if not isinstance(pattern, dict) or not all(isinstance(each, int | float) for each in pattern.values()):
            raise refuse(key, "names with numbers")
    layers = values.get("layers_to_transform")
    if not (layers is None or isinstance(layers, int) or (isinstance(layers, list) and _whole(layers))):
        raise refuse("layers_to_transform", "a list of layers")
    saved = values.get("modules_to_save")
    if isinstance(saved, str):
        raise refuse("modules_to_save", "a list of names")
    wanted, left_out = values.get("target_modules"), values.get("exclude_modules")
    rules = [each for each in (wanted, left_out) if isinstance(each, str) and each.lower() != "all-linear"]
    rules += [*(values.get("rank_pattern") or {}), *(values.get("alpha_pattern") or {}), *(saved or ())]
    layers_pattern = values.get("layers_pattern") or ()
    rules += [layers_pattern] if isinstance(layers_pattern, str) else list(layers_pattern)
    for rule in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise LoadError(f"{origin}: {ADAPTER}: {rule[:60]!r} is no regular expression: {error}") from error


def _whole(values: list[Any]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in values)
