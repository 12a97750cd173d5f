"""From the text of a model.yaml to a `Spec`, and back.

::

    read_spec("model.yaml", ["target.weights=int8"])  ->  Spec  ->  build_passes(spec)   (adaptc.spec.passes)
                                                           └─────>  effective(spec): the YAML in the bundle
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adaptc.errors import SpecError
from adaptc.spec.faults import faults_of
from adaptc.spec.overrides import apply_set
from adaptc.spec.passes import build_pass
from adaptc.spec.positions import Fault, read_yaml, write_yaml
from adaptc.spec.schema import PassEntry, Spec

_MAX_BYTES = 1_000_000  # more is not a spec: a .gguf given by mistake
_OPTIONAL = ("name", "passes", "target", "quantize", "calibration")


def read_spec(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read and check a spec.

    Args:
        path: The YAML file.
        overrides: `a.b.0.c=value` each, applied in order; values are YAML.

    Returns:
        The spec; its passes are known and their options valid.

    Raises:
        SpecError: everything that is wrong, a line each: file, line, key, what is wrong, what would be right.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file; give the path of a model.yaml") from error
    except IsADirectoryError as error:
        raise SpecError(f"{path}: a folder; give the path of the model.yaml in it") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise SpecError(f"{path}: larger than {_MAX_BYTES:,} bytes; give the model.yaml, not the model")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8") from error
    return parse_spec(text, str(path), overrides)


def parse_spec(text: str, name: str = "model.yaml", overrides: Iterable[str] = ()) -> Spec:
    """Check the text of a spec, as `read_spec` does for a file.

    Args:
        text: YAML.
        name: What messages call it.
        overrides: As in `read_spec`.

    Raises:
        SpecError: as in `read_spec`.
    """
    document = read_yaml(text, name)
    for override in overrides:
        apply_set(document, override)
    if not isinstance(document.data, dict):
        raise SpecError(f"{name}:1: expected keys and values, beginning with 'version: 1'")
    values = {key: value for key, value in document.data.items() if key not in _OPTIONAL or value is not None}
    faults = list(document.faults)
    passes = _pass_entries(values.get("passes", []), faults)
    sections = {key: value for key, value in values.items() if key != "passes"}
    spec = None
    try:
        spec = Spec.model_validate_json(json.dumps(sections))
    except ValidationError as error:
        faults += faults_of(error, Spec, sections)
    for index, entry in passes.items():
        build_pass(entry, ("passes", index), faults)
    if faults or spec is None:
        raise document.error(faults)
    return spec.model_copy(update={"passes": tuple(passes.values())})


def _pass_entries(items: Any, faults: list[Fault]) -> dict[int, PassEntry]:
    """Return the passes by their index in the list, in one form; faulty ones are left out."""
    entries: dict[int, PassEntry] = {}
    if not isinstance(items, list):
        faults.append(Fault(("passes",), "expected a list; begin each pass with '- '"))
        return entries
    for index, item in enumerate(items):
        if isinstance(item, str):
            entries[index] = PassEntry(item, {})
        elif isinstance(item, dict) and len(item) == 1:
            [(name, options)] = item.items()
            if options is not None and not isinstance(options, dict):
                faults.append(Fault(("passes", index, name), "expected a mapping of options"))
            else:
                entries[index] = PassEntry(name, options or {})
        else:
            faults.append(Fault(("passes", index), "expected one pass: 'name' or 'name: {option: value}'"))
    return entries


def effective(spec: Spec) -> str:
    """Return the spec as YAML with every default written out; `parse_spec` reads it back equal."""
    values = spec.model_dump(mode="json", exclude_none=True, exclude={"passes"})
    values["passes"] = [{entry.name: entry.options} if entry.options else entry.name for entry in spec.passes]
    ordered = {key: values[key] for key in type(spec).model_fields if key in values}
    return write_yaml(ordered)
