"""`verify` of a bundle whose blocks are skipped on purpose: lowering and loss are told apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from adaptc.compiler import pipeline, tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.spec import passes as spec_passes
from adaptc.spec.reading import read_spec
from adaptc.verification import probes
from adaptc.verification.bundle_model import BundleModel
from adaptc.verification.kinds.decisions import DecidedGraph
from adaptc.verification.kinds.verify import verify_bundle
from adaptc.verification.parity import Passage
from tests.models import folder, skipping

GATES = SkipGates("learned", skipping.GATED, 3, 4, "rows", ((0.0, -math.inf), (0.1, -0.5), (0.5, 0.5)), budget=0.5)
PAYS = Payoff(1e-3, 1.01e-3, 0.8e-3, 2)


class Gating(skipping.Gating):
    """Stands for `skip_ffn`."""

    gates: ClassVar[SkipGates] = GATES


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with gates, int4."""
    for module in (pipeline, spec_passes):
        monkeypatch.setattr(module, "build_passes", lambda _: (Gating(),))
    monkeypatch.setattr(tuning, "payoff", lambda *_: PAYS)
    monkeypatch.setattr("adaptc.verification.kinds.steps.PROMPTS", probes.PROMPTS[:1])
    spec, _ = folder.write(tmp_path, weights="int4")
    return compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache")).bundle


def test_a_sample_that_ends_before_the_gates_decide_ran_every_block(bundle: Bundle) -> None:
    model = BundleModel(bundle, threads=1, gated=True, budget=0.0)
    logits, ran = model.decided(Passage(np.array([1, 2]), 1, 2))
    model.close()
    gates = bundle.manifest.gates[bundle.manifest.reader]
    assert gates.warmup > 2
    assert len(logits) == 2
    assert ran.tolist() == [[True] * len(gates.layers)]


def test_lowering_and_loss_are_told_apart(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.manifest.gates, bundle.manifest.gate_verdicts
    found = {part.name: part for part in verify_bundle(bundle, tmp_path, threads=1).parts}
    for budget in ("0", "0.5"):
        lowering, loss = found[f"gates at budget {budget}"], found[f"loss at budget {budget}"]
        assert (lowering.verdict, lowering.why) == ("passed", ())
        assert lowering.figures["skipped"] > 0
        assert loss.figures["mean_kl"] > 100 * max(lowering.figures["mean_kl"], 1e-9)
    assert found["gates' weights"].figures["tensors"] > 0
    assert found["lowering"].verdict == "passed", "every block run, against transformers"

    run = DecidedGraph.run

    def wrong(self: DecidedGraph, *given: Any) -> Any:
        """As if what stands in for a block were another."""
        logits, said = run(self, *given)
        return logits + 0.01 * np.sign(logits), {layer: each + 10 for layer, each in said.items()}

    monkeypatch.setattr(DecidedGraph, "run", wrong)
    found = {part.name: part for part in verify_bundle(bundle, tmp_path, threads=1).parts}
    assert found["gates at budget 0"].verdict == "failed"
    assert any("a logit is off by" in why for why in found["gates at budget 0"].why)
    assert any("decisions are not those of the gates" in why for why in found["gates at budget 0"].why)
