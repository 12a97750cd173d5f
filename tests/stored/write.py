"""Write the stored bundles of today's format: python -m tests.stored.write OUT.

A gated and a stitched bundle of tiny random models, in int4, and `expected.json` with what they score.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from adaptc import runtime
from adaptc.compiler import pipeline, tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.spec.reading import read_spec
from tests.end_to_end.test_gates import Gating
from tests.models import folder, stitched

IDS = [5, 9, 40, 7, 101, 33, 8, 21]


def compile_gated(scratch: Path, into: Path) -> None:
    """A model with gates that pay, whatever this machine would say of them."""
    spec, _ = folder.write(scratch, weights="int4")
    times = Payoff(1e-3, 1.01e-3, 0.8e-3, 2)
    with (
        mock.patch.object(pipeline, "build_passes", return_value=(Gating(),)),
        mock.patch.object(tuning, "payoff", return_value=times),
    ):
        compile_spec(read_spec(spec), spec.parent, into, Cache(scratch / "cache"))


def compile_stitched(scratch: Path, into: Path) -> None:
    """Two models with four routes and a router."""
    scratch.mkdir()
    stitched.write(scratch)
    spec = read_spec(scratch / "model.yaml", ["target.weights=int4"])
    compile_spec(spec, scratch, into, Cache(scratch / "cache"))


def scores(bundle: Path) -> list[dict[str, Any]]:
    """What a bundle says of `IDS`, by each budget or route: natural logarithms, to four digits."""
    with runtime.load(bundle, threads=1) as session:
        ways: list[dict[str, Any]] = [{"route": route} for route in session.routes]
        ways = ways or [{"budget": budget} for budget in (1.0, 0.5, 0.0)]
        return [
            {"options": way, "scores": [round(float(x), 4) for x in session.score(IDS, **way).values]} for way in ways
        ]


def main(into: Path) -> None:
    """Write both bundles and what they score."""
    into.mkdir(parents=True)
    expected: dict[str, Any] = {"ids": IDS}
    with tempfile.TemporaryDirectory() as folder_name:
        for name, write in (("gated", compile_gated), ("stitched", compile_stitched)):
            write(Path(folder_name) / name, into / name)
            expected[name] = scores(into / name)
    (into / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
