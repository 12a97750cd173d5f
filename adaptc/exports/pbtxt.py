"""Protocol buffers as text, as Triton reads its `config.pbtxt`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """A value of an enumeration: it stands without quotation marks."""

    name: str


Message = Mapping[str, Any]
"""Fields by name: text, numbers, truth values, `Word`, messages, and sequences of these."""


def message_text(message: Message, indent: str = "") -> str:
    """A message as text, a field on each line.

    Args:
        message: Fields by name; a sequence repeats its field.
        indent: What each line begins with.
    """
    lines = []
    for name, value in message.items():
        repeated = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for each in repeated:
            if isinstance(each, Mapping):
                lines += [f"{indent}{name} {{", message_text(each, indent + "  ").rstrip("\n"), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}")
    return "".join(f"{line}\n" for line in lines if line)


def _scalar(value: str | int | Word) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(map(_character, value)) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def parameters(values: Mapping[str, object]) -> list[Message]:
    """The field `parameters` of a model: text by name; what is no text is JSON, what is None is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    return [
        {"key": name, "value": {"string_value": value if isinstance(value, str) else json.dumps(value)}}
        for name, value in known.items()
    ]
