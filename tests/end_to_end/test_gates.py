"""From a program with gates to a bundle: through the cache, the measurement and the manifest."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler import pipeline
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import Compiled, compile_spec
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import read_spec
from adaptc.verification.bundle_model import BundleModel
from tests.models import folder, skipping
from tests.repo import ROOT

GATES = SkipGates("learned", skipping.GATED, 3, 4, "rows", ((0.0, -math.inf), (0.1, -0.5), (0.5, 0.5)))
IDS = [5, 9, 40, 7, 101, 33, 8, 21]


class Gating(skipping.Gating):
    """Stands for `skip_ffn`."""

    gates: ClassVar[SkipGates] = GATES


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return folder.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def build(spec: Path, into: Path, root: Path, monkeypatch: pytest.MonkeyPatch, times: Payoff) -> Compiled:
    monkeypatch.setattr(pipeline, "build_passes", lambda _: (Gating(),))
    monkeypatch.setattr(pays, "payoff", lambda *_: times)
    cache = Cache(root)
    return compile_spec(read_spec(spec), spec.parent, into, cache)


def test_gates_that_pay_are_in_the_bundle(
    tiny: tuple[Path, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in range(2):  # the second time from the cache of lowered programs
        made = build(tiny[0], tmp_path / f"b{turn}", root, monkeypatch, Payoff(1e-3, 1.01e-3, 0.8e-3, 2))
        for entry in (root / "bundle").iterdir():
            Cache(root).drop("bundle", entry.name)
        manifest = made.bundle.manifest
        table = ((0.0, -math.inf), (0.1, -0.5), (0.5, 0.5))
        assert manifest.gates == {"lm": SkipGates("learned", skipping.GATED, 3, 4, "rows", table, dense="lm.dense")}
        assert [t.name for t in manifest.graphs["lm.dense"].inputs if t.name == "threshold"] == []
        assert manifest.graphs["lm.dense"].data == manifest.graphs["lm"].data[:1]
        assert [each.name for each in manifest.passes[-2:]] == ["branch", "verify_drafts"]
        assert manifest.gate_verdicts["lm"].pays is True
        assert len(manifest.graphs["lm"].skippable_bytes) == 2
    with runtime.load(made.bundle.path) as session:
        dense, cheap = session.score(IDS, step=True, budget=1), session.score(IDS, budget=0)
        assert cheap.skips is not None
        assert cheap.skips.ran.shape == (len(IDS) - 2 - 4 + 1, 2)
    assert (dense.values[:4] == cheap.values[:4]).all()
    report = json.loads((made.bundle.path / "report.json").read_text())["gate_verdicts"]["lm"]
    assert report["why"].startswith("a gate costs 5.0 µs a token, a skipped block saves 105.0 µs: it pays above 5%")
    assert "A gate costs" in (made.bundle.path / "report.html").read_text()


def test_a_session_loads_the_graph_that_its_budget_asks_for(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tiny[0], tmp_path / "b", tmp_path / "cache", monkeypatch, Payoff(1e-3, 1.01e-3, 0.8e-3, 2))
    loaded: list[str] = []

    class Named(OrtEngine):
        def __init__(self, file: Path, threads: int | None = None) -> None:
            loaded.append(file.name)
            super().__init__(file, threads)

    monkeypatch.setattr("adaptc.runtime.backends.onnxruntime_cpu.backend.OrtEngine", Named)
    answers = {}
    for budget, first, later in ((None, ["lm.dense.onnx"], ["lm.onnx"]), (0.5, ["lm.onnx"], [])):
        with runtime.load(made.bundle.path, budget=budget) as session:
            assert loaded == first
            answers[budget] = [session.generate(IDS, max_new_tokens=9, budget=each).ids for each in (1, 0.5)]
            assert loaded == first + later
        loaded.clear()
    assert answers[None] == answers[0.5]


def test_both_graphs_give_the_same_logits_bit_for_bit(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tiny[0], tmp_path / "b", tmp_path / "cache", monkeypatch, Payoff(1e-3, 1.01e-3, 0.8e-3, 2))
    dense, gated = (BundleModel(made.bundle, gated=gated) for gated in (False, True))
    ids = np.array(IDS * 3)
    np.testing.assert_array_equal(dense.logits(ids), gated.logits(ids))
    assert dense.greedy(IDS, 12) == gated.greedy(IDS, 12)
    dense.close()
    gated.close()


def test_sequences_say_beside_others_what_they_say_alone(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and decisions, at one budget and beside sequences of other budgets, dense ones among them."""
    made = build(tiny[0], tmp_path / "b", tmp_path / "cache", monkeypatch, Payoff(1e-3, 1.01e-3, 0.8e-3, 2))
    prompts, budgets = [IDS[at:] for at in range(4)], [1.0, 0.2, 0.0, 0.5]
    with runtime.load(made.bundle.path, batch=4, budget=0.5) as session:
        alone = [session.generate(prompt, max_new_tokens=12, budget=0.5) for prompt in prompts]
        together = session.generate(prompts, max_new_tokens=12, budget=0.5)
        for one, beside in zip(alone, together, strict=True):
            assert one.trace.skips is not None
            assert beside.trace.skips is not None
            assert one.ids == beside.ids
            assert one.trace.skips.ran.tolist() == beside.trace.skips.ran.tolist()
        expected = [written(session, [p], [b])[0] for p, b in zip(prompts, budgets, strict=True)]
        assert written(session, prompts, budgets) == expected
        ran = np.array([np.frombuffer(b"".join(steps), np.bool_).mean() for _, steps in expected])
        assert ran[0] == 1 > ran[2]
        assert len(set(ran.tolist())) > 2, "each has its own share"


Written = list[tuple[list[int], list[bytes]]]


def written(session: runtime.Session, prompts: list[list[int]], budgets: list[float]) -> Written:
    """What each slot of the session's decoder writes greedily under its own budget, and what ran."""
    decoder = session._decoder
    newest = [
        int(decoder.start(slot, np.array(prompt), RequestOptions(budget)).argmax())
        for slot, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
    ]
    found: Written = [([token], []) for token in newest]
    for _ in range(10):
        newest = [int(logits.argmax()) for logits in decoder.decode(newest)]
        for slot, token in enumerate(newest):
            found[slot][0].append(token)
            found[slot][1].append(decoder.ran(slot) or b"")
    return found


def test_gates_that_do_not_pay_are_removed_and_the_report_says_so(
    tiny: tuple[Path, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tiny[0], tmp_path / "b", root, monkeypatch, Payoff(1e-3, 1.2e-3, 1.2e-3, 2))
    manifest = made.bundle.manifest
    assert manifest.gates == {}
    assert [t.name for t in manifest.graphs["lm"].inputs if t.name == "threshold"] == []
    assert manifest.gate_verdicts["lm"].pays is False
    assert manifest.gate_verdicts["lm"].payoff.break_even == math.inf
    assert ">Removed.</strong>" in (made.bundle.path / "report.html").read_text()
    with pytest.raises(RequestError, match="neither gates nor a router"):
        runtime.load(made.bundle.path, budget=0)
    with runtime.load(made.bundle.path) as whole:
        assert np.isfinite(whole.score(IDS, step=True).values).all()


def test_the_demo_writes_whether_gates_pay_or_not(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Makefile's own command on a bundle that kept its gates, and on one whose gates were removed."""
    [line] = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "--trace" in line]
    words = shlex.split(line.replace("$(PROMPT)", "a lighthouse"))
    assert words[:3] == ["$(BIN)/adaptc", "generate", "$(BUNDLE)-skip"]
    for name, skipped in (("kept", 0.8e-3), ("removed", 1.2e-3)):
        made = build(
            tiny[0], tmp_path / name, tmp_path / f"cache-{name}", monkeypatch, Payoff(1e-3, 1.01e-3, skipped, 2)
        )
        assert bool(made.bundle.manifest.gates) is (name == "kept")
        done = CliRunner().invoke(main, ["generate", str(made.bundle.path), *words[3:]])
        assert done.exit_code == 0, done.output
