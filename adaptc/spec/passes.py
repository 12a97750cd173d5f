"""The passes that a spec names: adaptc's own, and those of other packages, built from their options.

Passes need torch, so they are looked up when a spec first names one: a spec without passes is read without torch.
A package offers a pass as an entry point of the group `adaptc.passes`; it is loaded only for a spec that names it.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from adaptc.errors import AdaptcError, SpecError
from adaptc.spec.faults import faults_of, nearest, unknown_keys
from adaptc.spec.positions import Document, Fault, Path
from adaptc.spec.schema import PassEntry, Spec

if TYPE_CHECKING:
    from adaptc.passes import Pass

GROUP = "adaptc.passes"
"""The entry points by which packages offer passes."""


def build_passes(spec: Spec) -> tuple[Pass, ...]:
    """Return the spec's passes, ready to run.

    Raises:
        SpecError: a pass is unknown or an option is wrong; never for a spec from `read_spec`.
    """
    faults: list[Fault] = []
    passes = [build_pass(entry, ("passes", index), faults) for index, entry in enumerate(spec.passes)]
    if faults:
        raise Document("spec").error(faults)
    return tuple(each for each in passes if each is not None)


def build_pass(entry: PassEntry, path: Path, faults: list[Fault]) -> Pass | None:
    """Return a pass with its options, ready to run; None where faults were added.

    Args:
        entry: The pass's name and options.
        path: Where the entry stands in the document.
        faults: Takes what is wrong with it.

    Raises:
        SpecError: what adaptc's own passes need is not installed.
    """
    try:
        kind = pass_class(entry.name)
        if isinstance(kind, str):
            faults.append(Fault(path, kind))
            return None
        # Pydantic lets unknown keys of plain dataclasses pass, so they are looked for here.
        faults += unknown_keys(kind, entry.options, (*path, entry.name))
        # JSON's strictness: a list becomes a tuple, but "3" does not become a number.
        adapter: TypeAdapter[Pass] = TypeAdapter(kind)
        built = adapter.validate_json(json.dumps(entry.options), strict=True)
    except ValidationError as error:
        faults += faults_of(error, kind, entry.options, (*path, entry.name))
    except AdaptcError as error:  # a pass may check its options together
        faults.append(Fault((*path, entry.name), str(error)))
    else:
        return built
    return None


def pass_class(name: str) -> type[Pass] | str:
    """Return the pass of this name: adaptc's, else an installed package's; or what is wrong with the name."""
    known = known_passes()
    if name in known:
        return known[name]
    outside = importlib.metadata.entry_points(group=GROUP)
    for entry_point in outside:
        if entry_point.name == name:
            try:
                kind: type[Pass] = entry_point.load()
            except (ImportError, AttributeError) as error:
                return f"pass {name!r} of package {entry_point.value} cannot be loaded: {error}"
            return kind
    return f"no pass {name!r}" + nearest(name, {*known, *outside.names})


def outside_passes() -> tuple[str, ...]:
    """Return the names of passes that other installed packages offer."""
    return tuple(sorted(importlib.metadata.entry_points(group=GROUP).names))


def known_passes() -> Mapping[str, type[Pass]]:
    """Return adaptc's own passes by name.

    Raises:
        SpecError: what they need is not installed.
    """
    try:
        from adaptc.passes import PASSES
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adaptc":
            raise  # ours, and not the user's to install
        raise SpecError(f"passes need {error.name}, which is not installed; pip install 'adaptc[compile]'") from error
    return PASSES
