"""The sweep: whole windows with per-token thresholds give what a bundle gives token by token."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptc.compiler.weights_file import write_graphs
from adaptc.errors import RequestError
from adaptc.evaluation.sweep.oracle import Rule, constant, layers, score, walk
from adaptc.evaluation.sweep.policies import Learned, policies
from adaptc.evaluation.sweep.speed import Timing, speeds
from adaptc.evaluation.sweep.subject import Subject
from adaptc.evaluation.sweep.sweep import SweepSettings, quality
from adaptc.evaluation.sweep.table import columns_and_rows
from adaptc.passes.skip_ffn import gating
from adaptc.runtime import Session, SkipGates
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.model.budget import threshold_at
from tests.close import ENGINE, FLOAT32, assert_close
from tests.models import gated_bundle, skipping, tiny
from tests.models.sessions import session_of

IDS = np.random.default_rng(3).integers(0, tiny.VOCAB, 150)
SAMPLE = np.random.default_rng(7).integers(0, tiny.VOCAB, 512).reshape(8, 64)
TABLE = ((0.0, -math.inf), (0.2, -0.4), (0.6, 0.6))
WARMUP = 4


def learned(family: str = "llama") -> Learned:
    names = dict(skipping.gated(family, low_rank=True).module.named_parameters())
    weights = {name: value.detach() for name, value in names.items() if ".skip." in name}
    return Learned(skipping.GATED, weights, TABLE, skipping.GATED)


def session(folder: Path, warmup: int) -> Session:
    """The tiny model's float bundle graph, as it runs when text is written."""
    graph = skipping.onnx(skipping.branched("llama", low_rank=True))
    for name, content in write_graphs({"lm": graph}, folder, "lm.data").items():
        (folder / f"{name}.onnx").write_bytes(content)
    gates = SkipGates("learned", skipping.GATED, 3, warmup, "any", TABLE)
    return session_of(OrtEngine(folder / "lm.onnx", 1), gated_bundle.DECODER, gates=gates)


@pytest.mark.parametrize("warmup", [0, 4])
def test_whole_windows_give_what_steps_of_one_token_give(warmup: int, tmp_path: Path) -> None:
    given = learned()
    graph = gating.learned(tiny.fx("llama"), given.layers, given.weights)
    differences = []
    with session(tmp_path, warmup) as running:
        for budget in (0.8, 0.5, 0.2, 0.0):
            level = threshold_at(TABLE, budget)
            rule = Rule(graph, constant(level))
            scores, ran = walk(rule, 0, IDS[:60], max(1, warmup))
            scored = running.score(IDS[:60], budget=budget)
            stepped = scored.values
            assert scored.skips is not None
            np.testing.assert_array_equal(scored.skips.ran, ran[:, max(1, warmup) : -1].T)
            assert_close(scores, stepped, **ENGINE)
            found = score(rule, IDS[:60], 60, max(1, warmup))
            assert found.skipped == pytest.approx(scored.skips.share)
            assert found.loss[0] == pytest.approx(-float(stepped.sum()), rel=1e-5)
            differences.append(np.abs(stepped - running.score(IDS[:60]).values).max())
        # Or it would compare dense with dense, and the warm-up with itself:
        assert max(differences) > 0.1
        other = walk(Rule(graph, constant(level)), 0, IDS[:60], max(1, warmup) + 9)[0]
        assert np.abs(other - stepped).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_dropped_layer_is_a_model_without_it(family: str) -> None:
    dense = tiny.fx(family)
    assert len(layers(dense)) == len(gating.ffn_blocks(dense))
    scores, ran = walk(Rule(dense, constant(0.0), dropped=(1,)), 0, IDS[:20], 0)
    assert ran.shape == (0, 20)
    model = copy.deepcopy(tiny.model(family))
    del model.model.layers[1]
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    with torch.no_grad():
        logits = model(torch.from_numpy(IDS[None, :20]), use_cache=False).logits[0].float().log_softmax(-1).numpy()
    assert_close(scores, logits[np.arange(19), IDS[1:20]], FLOAT32["rtol"], 1e-4)
    assert np.abs(scores - walk(Rule(dense, constant(0.0)), 0, IDS[:20], 0)[0]).max() > 1e-3


def test_every_policy_skips_its_share() -> None:
    ways = policies(tiny.fx("llama"), SAMPLE, WARMUP, learned())
    assert list(ways) == ["learned", "cosine", "static", "random", "random+", "layers"]
    for name, shares, slack in (
        ("static", (0.1, 0.5), 0.05),
        ("random", (0.1, 0.5), 0.05),
        ("random+", (0.1, 0.5), 0.05),
        ("layers", (1 / 3, 2 / 3), 1e-6),
    ):
        for share in shares:
            rule = ways[name](share)
            assert rule is not None
            assert score(rule, IDS, 50, WARMUP).skipped == pytest.approx(share, abs=slack), name
    assert ways["learned"](0.7) is None
    assert ways["random"](0.7) is None, "two of three blocks have a gate"
    assert ways["cosine"](0.9) is None
    rule = ways["layers"](1 / 3)
    assert rule is not None
    assert rule.about == f"layers {rule.dropped[0]}"


def test_cosine_finds_its_share() -> None:
    dense = tiny.fx("llama")
    way = policies(dense, SAMPLE, WARMUP, None)["cosine"]
    rule = way(0.2)
    assert rule is not None
    found = score(rule, SAMPLE[:4].reshape(-1), 64, WARMUP).skipped
    assert 0 < found < 0.5
    assert "tau" in rule.about


def test_coins_are_drawn_anew_for_each_window_and_alike_for_each_run() -> None:
    rule = policies(tiny.fx("llama"), SAMPLE, WARMUP, None, seed=5)["random"](0.3)
    assert rule is not None
    first, again, second = (walk(rule, index, IDS[:40], WARMUP)[1] for index in (0, 0, 1))
    assert (first == again).all()
    assert (first != second).any()
    assert first[:, :WARMUP].all()


def test_a_sweep_as_a_table() -> None:
    given = Subject(tiny.fx("llama"), SAMPLE, WARMUP, learned())
    result = quality(given, IDS, SweepSettings(window=50, shares=(0.2, 0.5)))
    assert result["tokens"] == 147
    assert result["tokens_after_warmup"] == 3 * (49 - WARMUP)
    assert result["missing"] == {}
    [one, other] = result["policies"]["learned"]
    expected = score(Rule(given.dense, constant(-math.inf)), IDS, 50, WARMUP)
    assert result["dense_perplexity"] == pytest.approx(math.exp(expected.loss[0] / 147))
    assert (one["share"], other["share"]) == (0.2, 0.5)
    assert one["ffn_skipped"] < other["ffn_skipped"]
    assert other["ratio"] != 1
    heads, rows = columns_and_rows(result)
    assert heads == ["skipped", "learned", "cosine", "static", "random", "random+", "layers"]
    assert [row[0] for row in rows] == ["20%", "50%"]
    json.dumps(result, allow_nan=False)


def test_without_trained_gates_their_columns_are_missing_and_said_so() -> None:
    result = quality(Subject(tiny.fx("llama"), SAMPLE, WARMUP, None), IDS, SweepSettings(window=50, shares=(0.3,)))
    assert list(result["policies"]) == ["cosine", "static", "random", "layers"]
    assert result["missing"] == {"learned": "the bundle has no trained gates"}


def test_a_window_within_the_warm_up_is_refused() -> None:
    with pytest.raises(RequestError, match=r"window: 5 tokens; more than the 4 of the warm-up are needed"):
        quality(Subject(tiny.fx("llama"), SAMPLE, WARMUP, None), IDS, SweepSettings(window=5))


def test_speeds_are_of_each_budget_beside_the_dense_twin(tmp_path: Path) -> None:
    bundle = gated_bundle.write(tmp_path / "bundle", dense=True)
    found = speeds(bundle, IDS, (0.0, 0.1, 0.5, 0.9), Timing(context=8, steps=20, turns=2, threads=1))
    assert [row["share"] for row in found["rows"]] == [0.0, 0.1, 0.5], "0.9 is more than these gates can skip"
    dense, _, most = found["rows"]
    assert (dense["budget"], dense["ffn_skipped"], dense["bytes_not_read"]) == (1, 0, 0)
    assert 0.9 < dense["ceiling"] < 1, "gates are read too"
    assert most["ffn_skipped"] > 0.1
    assert most["ceiling"] > dense["ceiling"]
    assert all(row["tokens_per_second"] > 0 for row in found["rows"])
    twin = gated_bundle.write(tmp_path / "twin", gated=False)
    assert found["dense_bytes_per_token"] == twin.manifest.bytes_per_token
    with pytest.raises(RequestError, match="no graph without gates"):
        speeds(gated_bundle.write(tmp_path / "alone"), IDS, (0.1,), Timing())
    with pytest.raises(RequestError, match="no gates"):
        speeds(twin, IDS, (0.1,), Timing())
    with pytest.raises(RequestError, match=r"text: 20 tokens; 28 are needed"):
        speeds(bundle, IDS[:20], (0.1,), Timing(context=8, steps=20))
