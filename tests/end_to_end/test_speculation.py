"""From a folder to a bundle that drafts: real engines; drafts are what is written without any, and some are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler import tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.verifier import Verifier
from adaptc.runtime.speculation.drafter import Draft
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.self_check import self_check
from adaptc.runtime.speculation.speculation import Speculation
from adaptc.spec.reading import read_spec
from tests.compiler.test_swap import gates_file
from tests.models import folder, stitched, vlm
from tests.models.verifying_lm import FreeDrafts

PROMPTS = [[5, 9, 40, 7, 101, 33, 8, 21], [3], [60, 61, 62], [9] * 20]
Answers = list[Sequence[int]]
"""What is written without drafts, of every request of a test."""


class Told:
    """A `Drafter` that goes on as one of some answers does, with some errors."""

    def __init__(self, sequence: Any, answers: Answers) -> None:
        self._sequence, self._answers = sequence, answers
        self._random = np.random.default_rng(len(sequence.all_ids()))

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook | None = None) -> Draft:
        """See `Drafter.draft`."""
        written = [*self._sequence.ids]
        goes_on = [answer for answer in self._answers if [*answer[: len(written)]] == written]
        if not goes_on:
            return Draft()
        tokens = [*goes_on[0][len(written) : len(written) + int(self._random.integers(1, most + 1))]]
        for place in range(len(tokens)):
            if self._random.random() < 0.15:
                tokens[place] = (tokens[place] + 1) % 100
        return Draft(tuple(tokens), (1.0,) * len(tokens))

    def close(self) -> None:
        """See `Drafter.close`."""


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., runtime.Session]:
    """Loads a bundle with such drafts, which always pay."""

    def load(bundle: Path, answers: Answers, **options: Any) -> runtime.Session:
        def made(decoder: BatchDecoder, *_: Any) -> Speculation:
            assert isinstance(decoder, Verifier)
            found = self_check(decoder, decoder)
            if not found.exact:
                pytest.skip("this processor rounds steps of several tokens otherwise")
            makers = {"told": lambda sequence: Told(sequence, answers)}
            return Speculation(decoder, FreeDrafts(), makers, found.close)

        monkeypatch.setattr("adaptc.runtime.loading.speculation_of", made)
        return runtime.load(bundle, threads=1, speculate="auto", **options)

    return load


def compiled(spec: Path, *settings: str) -> Path:
    given = read_spec(spec, [*settings])
    return compile_spec(given, spec.parent, spec.parent / "bundle", Cache(spec.parent / "cache")).bundle.path


def ids(results: Sequence[runtime.Result]) -> list[tuple[int, ...]]:
    return [each.ids for each in results]


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_a_model_writes_the_same_with_drafts(
    weights: str, tmp_path: Path, drafted: Callable[..., runtime.Session]
) -> None:
    bundle = compiled(folder.write(tmp_path, weights=weights, eos_token_id=None)[0], "target.block_size=16")
    ways: list[dict[str, Any]] = [
        {"max_new_tokens": 1000},
        {"max_new_tokens": 30, "temperature": 1.0, "top_p": 0.9, "seed": 3},
        {"max_new_tokens": 30, "repetition_penalty": 1.3},
        {"max_new_tokens": 2},
    ]
    with runtime.load(bundle, threads=1, batch=3) as session:
        expected = [[session.generate(prompt, **way) for prompt in PROMPTS] for way in ways]
        together = [session.generate(PROMPTS, **way) for way in ways]
    answers = [each.ids for way in (*expected, *together) for each in way]
    with drafted(bundle, answers, batch=3) as session:
        for way, alone, batch in zip(ways, expected, together, strict=True):
            found = [session.generate(prompt, **way) for prompt in PROMPTS]
            assert ids(found) == ids(alone)
            assert [each.text for each in found] == [each.text for each in alone]
            assert ids(session.generate(PROMPTS, **way)) == ids(batch)
            assert way["max_new_tokens"] == 2 or all(each.trace.accepted for each in found)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with gates that pay."""
    root = tmp_path_factory.mktemp("gated")
    spec, _ = folder.write(root, weights="int4", eos_token_id=None)
    gates_file(spec, root / "gates.safetensors", 1)
    passes = "passes: [{skip_ffn: {gates: gates.safetensors, cheap: low_rank(4), warmup: 11, batch: BATCH}}]\n"
    for batch in ("rows", "any"):
        (root / f"{batch}.yaml").write_text(spec.read_text() + passes.replace("BATCH", batch))
    return root


def with_gates(gated: Path, batch: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "payoff", lambda *_: Payoff(1e-3, 1e-3, 0.5e-3, 2))
        patch.setattr(tuning, "TOKENS", 0)
        given = read_spec(gated / f"{batch}.yaml", ["target.block_size=16"])
        return compile_spec(given, gated, gated / f"bundle-{batch}", Cache(gated / "cache")).bundle.path


def test_every_budget_writes_the_same_with_drafts(gated: Path, drafted: Callable[..., runtime.Session]) -> None:
    """Also beside others, and where the budget changes in the middle."""
    bundle, budgets = with_gates(gated, "rows"), (1.0, 0.7, 0.3, 0.0)
    with runtime.load(bundle, threads=1) as session:
        expected = [session.generate(PROMPTS[0], max_new_tokens=40, budget=budget) for budget in budgets]
    assert len({each.ids for each in expected}) > 1, "or a budget would change nothing"
    with drafted(bundle, [each.ids for each in expected], batch=4) as session:
        for budget, each in zip(budgets, expected, strict=True):
            found = session.generate(PROMPTS[0], max_new_tokens=40, budget=budget)
            assert found.ids == each.ids
            assert found.trace.accepted > 0
            assert found.trace.skips is not None
            assert each.trace.skips is not None
            np.testing.assert_array_equal(found.trace.skips.ran, each.trace.skips.ran)
        streams = [session.generate(PROMPTS[0], max_new_tokens=40, budget=b, stream=True) for b in budgets]
        for _ in range(60):
            for stream in streams:
                next(stream, None)
        assert [stream.result.ids for stream in streams] == [each.ids for each in expected]
        stream = session.generate(PROMPTS[0], max_new_tokens=40, budget=1.0, stream=True)
        next(stream)
        stream.set_budget(0.0)
        assert [*stream]
        known = stream.result.trace.skips
        assert known is not None
        assert known.ran[:2].all() or known.share > 0
        changed = stream.result.ids
        assert len(changed) == 40


def test_gates_that_decide_together_draft_whole_only(gated: Path, drafted: Callable[..., runtime.Session]) -> None:
    bundle = with_gates(gated, "any")

    def both(session: runtime.Session) -> list[runtime.Result]:
        streams = [session.generate(PROMPTS[0], max_new_tokens=40, budget=b, stream=True) for b in (1.0, 0.2)]
        for _ in range(60):
            for stream in streams:
                next(stream, None)
        return [stream.result for stream in streams]

    with runtime.load(bundle, threads=1, batch=2) as session:
        whole, cheap = (session.generate(PROMPTS[0], max_new_tokens=40, budget=budget) for budget in (1.0, 0.2))
        together = both(session)
    assert together[0].ids == whole.ids
    assert together[1].ids != cheap.ids, "or that they decide together would show nowhere"
    with drafted(bundle, [whole.ids, cheap.ids], batch=2) as session:
        alone = [session.generate(PROMPTS[0], max_new_tokens=40, budget=budget) for budget in (1.0, 0.2)]
        assert ids(alone) == ids([whole, cheap])
        assert alone[0].trace.accepted > 0
        assert alone[1].trace.drafted == 0
        first, second = both(session)  # what the second one writes depends on when the first one ends
        assert first.ids == whole.ids
        assert len(second.ids) == 40
        assert second.ids != cheap.ids


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_model_that_takes_images_drafts_after_them(
    family: str, tmp_path: Path, drafted: Callable[..., runtime.Session]
) -> None:
    vlm.write(tmp_path, family)
    bundle = compiled(tmp_path / "model.yaml")
    with runtime.load(bundle, threads=1) as session:
        assert session.images is not None
        token = session.images.spec.token
        prompts = [[5, 6, token, 40, 33], [5, 6, 40, 33]]
        images = [vlm.pixels(1), None]
        expected = [
            session.generate(prompt, images=image, max_new_tokens=60)
            for prompt, image in zip(prompts, images, strict=True)
        ]
    with drafted(bundle, [each.ids for each in expected], batch=3) as session:
        for _ in range(2):
            for prompt, image, each in zip(prompts, images, expected, strict=True):
                found = session.generate(prompt, images=image, max_new_tokens=60)
                assert found.ids == each.ids
                assert found.trace.accepted > 0 or len(each.ids) < 3


def test_a_model_that_is_told_positions_goes_on_without_drafts(tmp_path: Path) -> None:
    vlm.write(tmp_path, "qwen2_vl")
    bundle = compiled(tmp_path / "model.yaml")
    assert runtime.open_bundle(bundle).manifest.verification == {}
    with runtime.load(bundle, threads=1, speculate="auto") as session:
        result = session.generate([5, 6, 7, 5, 6], max_new_tokens=9)
        assert result.trace.drafter is None
        with pytest.raises(runtime.RequestError, match=r"^speculate: 'lookup'; there are: off, auto"):
            session.generate([5, 6], speculate="lookup")
    with pytest.raises(runtime.RequestError, match=r"^speculate: 'lookup'; this bundle has no graphs that verify"):
        runtime.load(bundle, threads=1, speculate="lookup")


def test_every_route_writes_the_same_with_drafts(tmp_path: Path, drafted: Callable[..., runtime.Session]) -> None:
    stitched.write(tmp_path)
    bundle = compiled(tmp_path / "model.yaml")
    with runtime.load(bundle, threads=1) as session:
        expected = {route: session.generate(PROMPTS[0], max_new_tokens=30, route=route).ids for route in session.routes}
    for routes in (None, ("small", "short"), ("large",)):
        with runtime.load(bundle, threads=1, speculate="auto", routes=routes) as session:
            found = {r: session.generate(PROMPTS[0], max_new_tokens=30, route=r).ids for r in session.routes}
            assert found == {route: expected[route] for route in session.routes}
    with drafted(bundle, [*expected.values()], batch=4) as session:
        for route, each in expected.items():
            alone = session.generate(PROMPTS[0], max_new_tokens=30, route=route)
            assert alone.ids == each
            assert alone.trace.accepted > 0
        streams = [session.generate(PROMPTS[0], max_new_tokens=30, route=route, stream=True) for route in expected]
        for _ in range(40):
            for stream in streams:
                next(stream, None)
        assert [stream.result.ids for stream in streams] == [*expected.values()]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_prompts_of_any_length_and_ends_of_any_kind(count: int, tmp_path: Path) -> None:
    """With the drafts and costs of the session itself; a repetitive prompt has something to look up."""
    bundle = compiled(folder.write(tmp_path, eos_token_id=None)[0])
    prompts = [[3], [3, 4], [7, 8, 9] * 10, [299] * 5, [0], [5] * 64, [5, 6] * 31]
    with runtime.load(bundle, threads=1, batch=4) as session:
        expected = [session.generate(prompt, max_new_tokens=count) for prompt in prompts]
    with runtime.load(bundle, threads=1, batch=4, speculate="auto") as session:
        assert ids([session.generate(prompt, max_new_tokens=count) for prompt in prompts]) == ids(expected)
        assert ids(session.generate(prompts, max_new_tokens=count)) == ids(expected)
