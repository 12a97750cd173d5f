"""Bundles with something that drafts: what they write with it is what they write without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler import pipeline
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import AdaptcError
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.generation.session import Session
from adaptc.spec.reading import read_spec
from tests.end_to_end.test_gates import Gating
from tests.models import folder, stitched
from tests.models.tiny_tokenizer import byte_level
from tests.models.verifying_lm import FreeDrafts

PROMPTS = [np.random.default_rng(n).integers(2, 250, n).tolist() for n in (5, 3, 9)]


def speculating(bundle: Bundle, how: str) -> Session:
    session = runtime.load(bundle.path, speculate=how, batch=3)
    assert session.speculation is not None
    session.speculation.costs = FreeDrafts()
    return session


def both(session: Session, how: str, **options: Any) -> tuple[list[runtime.Result], list[runtime.Result]]:
    """Answers without and with drafts."""
    plain = session.generate(PROMPTS, max_new_tokens=24, seed=3, speculate="off", **options)
    return plain, session.generate(PROMPTS, max_new_tokens=24, seed=3, speculate=how, **options)


def same(session: Session, how: str, **options: Any) -> tuple[int, int]:
    """Tokens drafted and accepted in answers that have to be the same as without, greedily and with a temperature."""
    drafted = accepted = 0
    for temperature in (0.0, 0.7):
        plain, found = both(session, how, temperature=temperature, **options)
        assert [each.ids for each in found] == [each.ids for each in plain]
        assert all(each.trace.drafted == 0 and each.trace.drafter is None for each in plain)
        assert {each.trace.drafter for each in found} <= {how, None}
        drafted += sum(each.trace.drafted for each in found)
        accepted += sum(each.trace.accepted for each in found)
    return drafted, accepted


def pair(where: Path, weights: str = "fp32", **small: Any) -> Bundle:
    """A model, and beside it one that drafts: the same one unless options say otherwise."""
    for name, options in (("large", {}), ("small", small)):
        (where / name).mkdir()
        folder.write(where / name, **options)
    spec = where / "model.yaml"
    spec.write_text(
        "version: 1\nmodels:\n  large: {source: large/model}\n  small: {source: small/model}\n"
        f"passes:\n  - draft_with: {{model: small}}\ntarget: {{weights: {weights}, max_tokens: 64}}\n"
    )
    return compile_spec(read_spec(spec), where, where / "bundle", Cache(where / "cache")).bundle


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_model_drafts_for_its_equal_and_is_always_right(tmp_path: Path, weights: str) -> None:
    bundle = pair(tmp_path, weights)
    assert bundle.manifest.draft == "small"
    assert [step.graphs for step in bundle.manifest.plan] == [("large",)]
    with speculating(bundle, "model") as session:
        plain, found = both(session, "model")
        assert [each.ids for each in found] == [each.ids for each in plain]
        for each in found:
            assert each.trace.drafter == "model"
            assert each.trace.accepted == each.trace.drafted > 12
            assert each.trace.tokens_per_step > 2
        assert same(session, "model")[1]


def test_a_smaller_model_is_right_or_wrong_and_changes_nothing(tmp_path: Path) -> None:
    bundle = pair(tmp_path, num_hidden_layers=1)
    assert {name: graph.data for name, graph in bundle.manifest.graphs.items()}["small"][-1] == "graphs/small.data"
    with speculating(bundle, "auto") as session:
        assert session.speculation is not None
        assert session.speculation.drafters == ("lookup", "model")
        assert same(session, "model")[0]


def test_a_model_with_other_tokens_does_not_draft(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    folder.write(tmp_path / "large")
    folder.write(tmp_path / "small")
    other = byte_level()
    other.add_tokens(["another"])
    other.save(str(tmp_path / "small/model/tokenizer.json"))
    spec = tmp_path / "model.yaml"
    spec.write_text(
        "version: 1\nmodels:\n  large: {source: large/model}\n  small: {source: small/model}\n"
        "passes:\n  - draft_with: {model: small}\ntarget: {weights: fp32, max_tokens: 64}\n"
    )
    with pytest.raises(AdaptcError, match="'small' has other tokens than 'large'"):
        compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "line"), [("medium", "no model 'medium'"), ("lm", "'lm' is the only one")])
def test_what_drafts_must_be_there_beside_what_answers(tmp_path: Path, name: str, line: str) -> None:
    spec, _ = folder.write(tmp_path)
    spec.write_text(spec.read_text() + f"passes:\n  - draft_with: {{model: {name}}}\n")
    with pytest.raises(AdaptcError, match=line):
        compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    where = tmp_path_factory.mktemp("stitched")
    stitched.write(where)
    bundle = compile_spec(read_spec(where / "model.yaml"), where, where / "bundle", Cache(where / "cache")).bundle
    with speculating(bundle, "auto") as session:
        yield session


def test_routes_verify_drafts_of_the_text_itself(routes: Session) -> None:
    for route in routes.routes:
        assert same(routes, "lookup", route=route)[0]


def test_the_cheapest_route_drafts_for_all_others(routes: Session) -> None:
    drafted = {route: same(routes, "route", route=route)[0] for route in routes.routes}
    assert drafted.pop("small") == 0
    assert sum(drafted.values())


def test_a_model_drafts_for_itself_with_blocks_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = folder.write(tmp_path, num_hidden_layers=3)
    monkeypatch.setattr(pipeline, "build_passes", lambda _: (Gating(),))
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.01e-3, 0.8e-3, 2))
    bundle = compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache")).bundle
    assert bundle.manifest.gates["lm"].batch == "rows"
    with speculating(bundle, "budget") as session:
        assert same(session, "budget", budget=1.0)[0]
        assert same(session, "budget", budget=0.0)[0]
        for each in both(session, "budget", budget=0.0)[1]:
            assert each.trace.accepted == each.trace.drafted > 12  # a gated step guesses what gated steps write
        plain, found = both(session, "budget", budget=0.3)
        for alone, each in zip(plain, found, strict=True):
            assert alone.trace.skips is not None
            assert each.trace.skips is not None
            assert (each.trace.skips.ran == alone.trace.skips.ran).all()
