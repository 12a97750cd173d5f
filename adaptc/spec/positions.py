"""YAML as plain values with the line of each, and every fault in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from adaptc.errors import SpecError

Path = tuple[str | int, ...]
"""Keys and list indices from the top: `("passes", 0, "skip_ffn")`."""

_MAX_VALUES = 20_000  # aliases of aliases can name billions
_MOST_BITS = 64  # Python does not even print numbers of 15,000
_PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and leaves dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(values: Any) -> str:
    """Return values of JSON's kinds as YAML that `read_yaml` reads back equal."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        path: Its place in the document.
        what: What is wrong, and what would be right.
    """

    path: Path
    what: str


@dataclass(slots=True)
class Document:
    """A YAML document as values of JSON's kinds.

    Attributes:
        name: File name, for messages.
        data: The values.
        lines: Line, from 1, of each key and list entry.
        set_by: The `--set` text of each path that one has changed.
        faults: Faults that reading the document already showed.
    """

    name: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    set_by: dict[Path, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def error(self, faults: Sequence[Fault]) -> SpecError:
        """Return the error that states the first fault of each place, a line each, in the order of the file."""
        first: dict[Path, Fault] = {}
        for fault in faults:
            first.setdefault(fault.path, fault)
        ordered = sorted(
            first.values(), key=lambda fault: (self._set_by(fault.path) is not None, self._line(fault.path))
        )
        return SpecError("\n".join(self._sentence(fault) for fault in ordered))

    def _sentence(self, fault: Fault) -> str:
        where = self._set_by(fault.path)
        where = f"--set {where}" if where else f"{self.name}:{self._line(fault.path)}"
        key = ".".join(map(str, fault.path))
        return f"{where}: {key}: {fault.what}" if key else f"{where}: {fault.what}"

    def _line(self, path: Path) -> int:
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), 1)

    def _set_by(self, path: Path) -> str | None:
        return next((self.set_by[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.set_by), None)


def read_yaml(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: The document.
        name: What messages call it.

    Returns:
        Its values; repeated keys and values that are not plain are in `faults`.

    Raises:
        SpecError: it is not YAML, or there is nothing in it; the message has line and column.
    """
    document = Document(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise SpecError(f"{name}:1: the file is empty; a spec begins with 'version: 1'")
        document.data = _NodeWalk(loader, document).value(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise SpecError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise SpecError(f"{name}:{line}: not valid YAML: a control character, {error.character:#04x}") from error
    except RecursionError as error:
        raise SpecError(f"{name}: nested too deeply to be a spec") from error
    return document


class _NodeWalk:
    """Turns nodes of YAML into values, and records their lines."""

    __slots__ = ("count", "document", "loader")

    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader, self.document, self.count = loader, document, 0

    def value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES or id(node) in above:
            what = "an alias that contains itself" if id(node) in above else f"more than {_MAX_VALUES:,} values"
            raise SpecError(f"{self.document.name}:{node.start_mark.line + 1}: {what}; a spec has neither")
        above = (*above, id(node))
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), above) for index, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(f"{self.document.name}:{line}: a key must be a name, not a list or mapping")
            if key.tag.endswith(":merge"):
                continue
            if key.value in first:
                twice: Path = (*path, key.value)
                self.document.lines[twice] = line
                what = f"the key stands twice; it is on line {first[key.value]} already"
                self.document.faults.append(Fault(twice, what))
            first.setdefault(key.value, line)
        self.loader.flatten_mapping(node)
        values = {}
        for key, value in node.value:
            self.document.lines.setdefault((*path, key.value), key.start_mark.line + 1)
            values[key.value] = self.value(value, (*path, key.value), above)
        return values

    def scalar(self, node: yaml.Node, path: Path) -> Any:
        if node.tag not in _PLAIN:
            self.document.faults.append(Fault(path, f"the tag {node.tag} is not understood; write a plain value"))
            return None
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError):
            self.document.faults.append(Fault(path, f"{node.value[:60]!r} is not a value of its tag {node.tag}"))
            return None
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            self.document.faults.append(Fault(path, f"a whole number of {value.bit_length()} bits; no key takes one"))
            return None
        return value
