"""Bundles that earlier versions wrote are read by today's runtime, and say what they said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adaptc import runtime
from adaptc.runtime.bundle.manifest import SCHEMA
from tests.repo import ROOT

STORED = ROOT / "tests" / "stored"
SCHEMAS = ("schema2", "schema3", "schema4", "schema5", "schema6", "schema7")
TOLERANCE = 0.05
"""Nats: 4-bit kernels of other processors round activations otherwise; routes differ by 0.3 and more."""


@pytest.mark.parametrize("name", ["gated", "stitched"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_stored_bundle_scores_what_it_did(schema: str, name: str, tmp_path: Path) -> None:
    expected = json.loads((STORED / schema / "expected.json").read_text())
    bundle = shutil.copytree(STORED / schema / name, tmp_path / name)
    with runtime.load(bundle, threads=1) as session:
        for way in expected[name]:
            scores = session.score(expected["ids"], **way["options"]).values
            np.testing.assert_allclose(scores, way["scores"], rtol=0, atol=TOLERANCE)
        assert len(session.generate(expected["ids"], max_new_tokens=4).ids) == 4


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_stored_bundle_drafts_if_it_can(schema: str, tmp_path: Path) -> None:
    """Where it has no graphs that verify, or this processor rounds otherwise, "auto" is plain steps."""
    bundle = shutil.copytree(STORED / schema / "gated", tmp_path / "gated")
    ids = json.loads((STORED / schema / "expected.json").read_text())["ids"] * 3
    with runtime.load(bundle, threads=1) as session:
        expected = [session.generate(ids, max_new_tokens=20, budget=budget).ids for budget in (1.0, 0.5, 0.0)]
    with runtime.load(bundle, threads=1, speculate="auto") as session:
        found = [session.generate(ids, max_new_tokens=20, budget=budget) for budget in (1.0, 0.5, 0.0)]
    assert [each.ids for each in found] == expected
    if schema in SCHEMAS[:3]:
        assert all(each.trace.drafter is None for each in found)
        with pytest.raises(runtime.RequestError, match=r"^speculate: 'lookup'; this bundle .*compile it again"):
            runtime.load(bundle, threads=1, speculate="lookup")


def test_todays_format_is_among_the_stored() -> None:
    manifest = json.loads((STORED / f"schema{SCHEMA}" / "gated" / "manifest.json").read_text())
    assert manifest["schema"] == SCHEMA


def test_the_ways_of_a_bundle_differ_by_more_than_the_tolerance() -> None:
    """A negative control: a bundle that took another route would fail."""
    for schema in SCHEMAS:
        routes = [way["scores"] for way in json.loads((STORED / schema / "expected.json").read_text())["stitched"]]
        for place, scores in enumerate(routes):
            for others in routes[:place]:
                assert np.abs(np.subtract(scores, others)).max() > 4 * TOLERANCE
