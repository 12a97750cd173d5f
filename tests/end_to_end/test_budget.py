"""A bundle with gates, run by ONNX Runtime: budgets, the dense twin, and what was not read."""

from __future__ import annotations

import numpy as np
import pytest

from adaptc.compiler.weights_file import read_bytes_per_token, skippable_bytes
from adaptc.evaluation.perplexity import bundle_perplexity
from adaptc.runtime import Bundle, load
from tests.models import gated_bundle, skipping, tiny

IDS = tiny.feeds(1, 60, seed=8)["input_ids"][0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("gated") / "bundle")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("dense") / "bundle", gated=False)


@pytest.mark.parametrize("step", [False, True])
def test_budget_one_is_the_dense_twin_bit_for_bit(bundle: Bundle, twin: Bundle, step: bool) -> None:
    with load(bundle.path, threads=1) as gated, load(twin.path, threads=1) as dense:
        expected = dense.score(IDS, step=step).values
        assert (gated.score(IDS, step=step, budget=1).values == expected).all()
        assert (gated.score(IDS, budget=0).values != expected).any(), "or this would compare nothing"


def test_less_budget_skips_more(bundle: Bundle) -> None:
    found = [bundle_perplexity(bundle, IDS, 60, budget=budget, threads=1) for budget in (1, 0.75, 0.5, 0.25, 0)]
    shares = [each.ffn_skipped for each in found]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.1 < shares[-1] <= 2 / 3
    assert [each.tokens for each in found] == [59] * 5
    assert found[0].bytes_not_read == 0
    saved = skippable_bytes(skipping.onnx(gated_bundle.program(gated=True)))
    assert found[-1].bytes_not_read == pytest.approx(found[-1].ffn_skipped * 3 * saved[0])


def test_bytes_of_a_step_are_those_of_the_dense_twin_and_its_gates(bundle: Bundle, twin: Bundle) -> None:
    gated, dense = (skipping.onnx(gated_bundle.program(gated=given)) for given in (True, False))
    gates = 2 * (32 + 1) * 4  # a weight for each of 32 inputs, and a bias
    squeeze = read_bytes_per_token(gated) - read_bytes_per_token(dense) - gates
    assert 0 <= squeeze <= 16, "constants of the gates' shapes"
    one, other = skippable_bytes(gated)
    block = sum(
        v.const_value.nbytes
        for name, v in skipping.onnx(gated_bundle.program(gated=False)).model.graph.initializers.items()
        if name.startswith("model.layers.1.mlp.") and v.const_value is not None
    )
    assert one == other
    assert 0.5 * block < one < block


def test_writing_under_a_budget_traces_what_ran(bundle: Bundle) -> None:
    with load(bundle.path, threads=1, budget=0) as session:
        result = session.generate(IDS[:3].tolist(), max_new_tokens=20)
        skips = result.trace.skips
        assert skips is not None
        assert skips.ran.shape == (18, 2)  # the first token comes from the prompt, one more is in the warm-up
        assert result.trace.ffn_skipped == (~skips.ran).sum() / (18 * 3)
        batch = session.generate([IDS[:3].tolist(), IDS[:7].tolist()], max_new_tokens=20)
        assert all(0 <= each.trace.ffn_skipped <= 2 / 3 for each in batch)
        assert np.mean([len(each.trace.skips.ran) for each in batch if each.trace.skips]) == 18.5


def test_a_prompt_is_read_the_same_under_any_budget(bundle: Bundle) -> None:
    with load(bundle.path, threads=1) as session:
        first = {session.generate(IDS[:9].tolist(), max_new_tokens=1, budget=b).ids for b in (0, 0.5, 1)}
    assert len(first) == 1
