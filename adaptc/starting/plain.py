"""The spec that a model alone stands for, and that spec as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import SpecError
from adaptc.sources.folder.files import ADAPTER, read_object
from adaptc.sources.hub.names import hub_name
from adaptc.spec.positions import write_yaml
from adaptc.spec.reading import parse_spec
from adaptc.spec.schema import Spec
from adaptc.starting.argument import PlainModel

ONLY_MODEL = "lm"
"""What a model is called in a spec of one."""


@dataclass(frozen=True, slots=True)
class PlainOptions:
    """What options of the command line add to a model alone.

    Attributes:
        revision: Branch, tag or commit of a hub id, or None.
        adapters: Adapters to merge: folders or hub ids, or pairs `FOLDER=WEIGHT`.
        gates: File of trained gates, or None.
        budget: Default budget of `skip_ffn`, 0 to 1, or None for no `skip_ffn` unless there are gates.
    """

    revision: str | None = None
    adapters: tuple[str, ...] = ()
    gates: str | None = None
    budget: float | None = None


def plain_spec(model: PlainModel, options: PlainOptions, overrides: Iterable[str] = ()) -> Spec:
    """Return the spec that a model alone stands for.

    Args:
        model: The model.
        options: What is added to it.
        overrides: `a.b.0.c=value` each, as `--set` takes them, applied in order.

    Raises:
        SpecError: as in `parse_spec`; or the model is an adapter that does not say what its base is.
    """
    source, adapters = model.source, list(options.adapters)
    if model.adapter:
        adapters.insert(0, source)
        source = _base_of(source)
    entry: dict[str, Any] = {"source": source}
    if options.revision is not None:
        entry["revision"] = options.revision
    if adapters:
        entry["adapters"] = [_adapter(each) for each in adapters]
    values: dict[str, Any] = {"version": 1, "name": name_of(model.source), "models": {ONLY_MODEL: entry}}
    if (skip := _skip(options)) is not None:
        values["passes"] = [{"skip_ffn": skip}]
    return parse_spec(write_yaml(values), model.source, overrides)


def plain_yaml(spec: Spec) -> str:
    """Return a spec as the YAML that a person would write, with its target written out; it reads back equal."""
    values: dict[str, Any] = {"version": spec.version}
    if spec.name is not None:
        values["name"] = spec.name
    values["models"] = {
        name: model.model_dump(mode="json", exclude_defaults=True) for name, model in spec.models.items()
    }
    if spec.passes:
        values["passes"] = [{entry.name: entry.options} if entry.options else entry.name for entry in spec.passes]
    values["target"] = spec.target.model_dump(mode="json", exclude_none=True)
    if spec.quantize is not None:
        values["quantize"] = spec.quantize.model_dump(mode="json", exclude_defaults=True)
    if spec.calibration is not None:
        values["calibration"] = spec.calibration.model_dump(mode="json", exclude_defaults=True)
    return write_yaml(values)


def name_of(source: str) -> str:
    """Return what a person would call the model of a source: its folder's, file's or repository's last name."""
    if (hub := hub_name(source)) is not None and not Path(source).exists():
        last = hub.file or hub.repository
    else:
        last = source.partition(":")[2] if source.startswith("package:") else str(Path(source).expanduser().resolve())
    last = last.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"\.(Q\d\w*|IQ\d\w*|[FB]F?16|F32)$|-(q\d_\w+|f16|bf16|f32)$", "", last, flags=re.IGNORECASE) or last


def _skip(options: PlainOptions) -> Mapping[str, Any] | None:
    if options.gates is not None:
        return {"gates": options.gates} | ({} if options.budget is None else {"budget": options.budget})
    return None if options.budget is None else {"policy": "static", "budget": options.budget}


def _adapter(text: str) -> Any:
    """`FOLDER` or `FOLDER=WEIGHT` as a spec has it; a folder may have an equals sign of its own."""
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text
    try:
        return {"source": folder, "weight": float(weight)}
    except ValueError:
        raise SpecError(f"--adapter {text}: expected FOLDER or FOLDER=WEIGHT, e.g. my-lora=0.5") from None


def _base_of(folder: str) -> str:
    """The base that an adapter's own config names."""
    base = read_object(folder, Path(folder).expanduser() / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SpecError(
            f"{folder}: an adapter whose {ADAPTER} names no base; give the base as MODEL and --adapter {folder}"
        )
    if hub_name(base) is None and not Path(base).expanduser().exists():
        raise SpecError(f"{folder}: its base {base[:200]} is not here; give the base as MODEL and --adapter {folder}")
    return base
