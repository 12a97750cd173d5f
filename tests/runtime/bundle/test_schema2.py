"""Bundles of schema 2, as an older adaptc wrote them, open and say the same."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from adaptc.runtime import BundleError
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.bundle.gate_verdict import GateDecision, GateVerdict, Payoff, RowTimes
from adaptc.runtime.bundle.manifest import SCHEMA, GatesFile, Manifest
from adaptc.runtime.bundle.plan import RouterRecord, Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates

GRAPH: dict[str, Any] = {
    "file": "graphs/x.onnx",
    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "tokens"]}],
    "outputs": [],
    "data": [],
    "decoder": None,
}
OLD: dict[str, Any] = {
    "schema": 2,
    "adaptc": "0.1.0",
    "models": {},
    "passes": [{"name": "branch", "options": {}, "changed": True, "seconds": 0.5}],
    "plan": [
        {"run": "trunk"},
        {
            "switch": "router",
            "routes": {
                "small": {"graph": "tail.small", "bytes_per_token": 60},
                "large": {"graph": "tail.large", "bytes_per_token": 100},
            },
            "router": {
                "file": "gates/router.safetensors",
                "threshold": 0.25,
                "levels": [[1.0, None], [0.8, 0.1], [0.6, None]],
                "bound": {"target_share": 0.5, "share": 0.4},
            },
        },
    ],
    "graphs": dict.fromkeys(("trunk", "tail.small", "tail.large"), GRAPH),
    "gates": {
        "trunk": {
            "policy": "learned",
            "layers": [1, 2],
            "blocks": 3,
            "warmup": 4,
            "batch": "any",
            "thresholds": [[0.0, None], [0.5, 0.25]],
            "rows": 2,
            "budget": 1.0,
            "dense": "",
        }
    },
    "target": {"backend": "onnxruntime", "weights": "fp32", "max_tokens": 64, "batch": 1},
    "versions": {"numpy": "2.4"},
    "report": {
        "bytes_per_token": 100,
        "skippable_bytes": {"trunk": [7, 8], "tail.small": [], "tail.large": []},
        "nodes": {"trunk": 5, "tail.small": 3, "tail.large": 4},
        "gates": {
            "trunk": {
                "dense": 0.001,
                "run": 0.002,
                "skipped": 0.0005,
                "gates": 2,
                "shared": 0.0,
                "break_even": None,
                "kept": True,
                "why": "it pays",
                "each": [{"layer": 1, "rate": 0.5, "leader": None, "why": "removed"}],
                "rows": [{"rows": 2, "adaptive": 0.1, "dense": 0.2}],
            }
        },
        "gates_replaced": {"trunk": {"file": "new.safetensors", "sha256": "ab"}},
    },
    "files": {},
    "modal": {},
}


def sealed(content: dict[str, Any]) -> str:
    """The text as schema 2 sealed it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()})


def test_an_old_manifest_says_the_same_in_the_present_schema() -> None:
    manifest = Manifest.from_json(sealed(OLD))
    router = RouterRecord(
        "gates/router.safetensors",
        0.25,
        ((1.0, -math.inf), (0.8, 0.1), (0.6, math.inf)),
        {"target_share": 0.5, "share": 0.4},
    )
    routes = {"small": "tail.small", "large": "tail.large"}
    assert manifest.schema == SCHEMA
    assert manifest.plan == (Run("trunk"), Switch("router", routes, router))
    assert manifest.bytes_per_token == 100
    assert manifest.route_bytes == {"router": {"small": 60, "large": 100}}
    assert {name: graph.nodes for name, graph in manifest.graphs.items()} == OLD["report"]["nodes"]
    assert manifest.graphs["trunk"].skippable_bytes == (7, 8)
    table = ((0.0, -math.inf), (0.5, 0.25))
    assert manifest.gates == {"trunk": SkipGates("learned", (1, 2), 3, 4, "any", table, rows=2)}
    decision = GateDecision(1, 0.5, None, "removed")
    payoff = Payoff(0.001, 0.002, 0.0005, 2)
    assert manifest.gate_verdicts == {
        "trunk": GateVerdict(payoff, True, "it pays", (decision,), (RowTimes(2, 0.1, 0.2),))
    }
    assert manifest.replaced_gates == {"trunk": GatesFile("new.safetensors", "ab")}
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_an_old_bundle_opens(tmp_path: Path) -> None:
    content = b"graph"
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs/x.onnx").write_bytes(content)
    plain = OLD | {"plan": [{"run": "trunk"}], "files": {"graphs/x.onnx": record}, "report": {"bytes_per_token": 9}}
    (tmp_path / "manifest.json").write_text(sealed(plain))
    manifest = open_bundle(tmp_path).manifest
    assert manifest.plan == (Run("trunk"),)
    assert (manifest.bytes_per_token, manifest.route_bytes, manifest.gate_verdicts) == (9, {}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"report": None}, r"^not a manifest of schema 2 \(.*\); compile again$"),
        ({"plan": [{"walk": "trunk"}]}, r"^not a manifest of schema 2 \(KeyError.*\); compile again$"),
        ({"more": 1}, r"^more: unknown key"),
        ({"versions": {"numpy": 2}}, r"^versions\.numpy: 2; a string is needed$"),
    ],
)
def test_what_schema_2_never_was(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(sealed(OLD | change))


def test_an_old_seal_still_holds() -> None:
    text = sealed(OLD).replace('"bytes_per_token": 60', '"bytes_per_token": 61')
    with pytest.raises(BundleError, match="changed since it was written"):
        Manifest.from_json(text)
