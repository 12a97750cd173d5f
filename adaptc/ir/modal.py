"""Which graphs run for which modalities; the same values in a program and in a bundle's manifest."""

from __future__ import annotations

from typing import Any

from adaptc.runtime.bundle.manifest import ModalitySpec, ModalSpec, SubsetSpec

__all__ = ["ModalSpec", "ModalitySpec", "SubsetSpec", "modal_from_json"]


def modal_from_json(fields: dict[str, Any]) -> ModalSpec:
    """Read back what `dataclasses.asdict` and JSON made of it."""
    modalities = {
        name: ModalitySpec(tuple(each["inputs"]), each["encoder"], tuple(each["features"]))
        for name, each in fields["modalities"].items()
    }
    subsets = tuple(SubsetSpec(tuple(each["modalities"]), each["graph"]) for each in fields["subsets"])
    return ModalSpec(modalities, subsets)
