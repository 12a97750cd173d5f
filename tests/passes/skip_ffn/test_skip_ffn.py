"""skip_ffn: what its gates compute, whom they skip, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.cli import main
from adaptc.errors import PassError, SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.ir.stored.gates_file import GatesMetadata, load_gates, load_gates_metadata, save_gates
from adaptc.passes import Pipeline
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.gating import BLOCKS
from adaptc.passes.skip_ffn.importance import decisions, ffn_cosines, ffn_importance
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.spec.json_schema import json_schema
from adaptc.spec.passes import build_passes
from adaptc.spec.reading import effective, parse_spec, read_spec
from tests.close import ENGINE, FLOAT32, assert_close
from tests.models import skipping, tiny
from tests.repo import ROOT

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
HEAD = "version: 1\nmodels: {lm: {source: x}}\n"
SAMPLE = np.random.default_rng(7).integers(0, tiny.VOCAB, 512)


def program(family: str = "llama") -> Program:
    return dataclasses.replace(tiny.program(family), samples={"lm": SAMPLE})


def metadata(layers: tuple[int, ...] = (1, 2), blocks: int = 3, rank: int = 4) -> GatesMetadata:
    return GatesMetadata("tiny", "", layers, blocks, rank, 4, ((0.1, -0.5), (0.6, 0.5)))


def gates_file(folder: Path, family: str = "llama", rank: int = 4, **changed: Any) -> Path:
    """Random gates for a tiny model."""
    about = metadata(rank=rank)
    blocks = gating.ffn_blocks(tiny.fx(family))
    random = torch.Generator().manual_seed(5)
    shapes = {name: s for layer in about.layers for name, s in gating.parameters(blocks[layer], rank).items()}
    weights = {name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()}
    save_gates(dataclasses.replace(about, **changed), weights, folder / "gates.safetensors")
    return folder / "gates.safetensors"


def one(result: Program) -> FxGraph:
    return result.graph("lm", FxGraph)


def run(graph: FxGraph, ids: Ids, threshold: Floats) -> Floats:
    positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    logits = graph.run({"input_ids": ids, "position_ids": positions, "threshold": threshold})["logits"]
    return logits.astype(np.float32)


def level(ids: Ids, value: float) -> Floats:
    return np.full(ids.shape, value, np.float32)


class Hooked:
    """transformers' model with its feed-forward blocks replaced by a function of (layer, state, before, block)."""

    def __init__(self, family: str, choose: Callable[[int, Any, Any, Any, Any], Any]) -> None:
        self.model = copy.deepcopy(tiny.model(family))
        for index, layer in enumerate(self.model.model.layers):
            seen: dict[str, Any] = {}
            layer.input_layernorm.register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(state=out))
            names = ("pre_feedforward_layernorm", "post_attention_layernorm", "input_layernorm")
            before = next(filter(None, (getattr(layer, name, None) for name in names)))
            before.register_forward_pre_hook(lambda _m, given, seen=seen: seen.update(before=given[0]))
            block = next(filter(None, (getattr(layer, name, None) for name in BLOCKS)))

            def forward(x: Any, i: int = index, seen: Any = seen, full: Any = block.forward) -> Any:
                result = full(x)
                if not isinstance(result, tuple):
                    return choose(i, seen["state"], seen["before"], x, result)
                # Llama 4's blocks tell what their routers chose beside it.
                return choose(i, seen["state"], seen["before"], x, result[0].view_as(x)), result[1]

            block.forward = forward

    def __call__(self, ids: Ids) -> Floats:
        with torch.no_grad():
            logits: Floats = self.model(torch.from_numpy(ids), use_cache=False).logits.float().numpy()
        return logits


def test_golden(golden: Callable[[str, str], None], tmp_path: Path) -> None:
    result = SkipFfn(gates=str(gates_file(tmp_path))).apply(program())
    golden("skip_ffn/learned", str(result))
    golden("skip_ffn/identity", str(SkipFfn(gates=str(gates_file(tmp_path, rank=0))).apply(program())))
    golden("skip_ffn/cosine", str(SkipFfn("cosine", layers=(0, 1, 2), k=1).apply(program())))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("olmo2", r"model\.layers\.0: no norm at 'model\.layers\.0\.input_layernorm'; gates read its result"),
        ("gpt2", r"transformer\.h\.0: no gated feed-forward block at 'transformer\.h\.0\.mlp' \(2 linear layers"),
        ("gpt_neox", r"gpt_neox\.layers\.0: no gated feed-forward block at .* \(2 linear layers"),
        ("falcon-new", r"transformer\.h\.0: no gated feed-forward block at .* \(2 linear layers"),
    ],
)
def test_refuses_blocks_of_another_form(family: str, expected: str) -> None:
    with pytest.raises(PassError, match=expected):
        SkipFfn("static", layers=(1, 2), warmup=0).apply(program(family))


@pytest.mark.parametrize(
    ("family", "rank"), [*((family, 4) for family in tiny.WITH_GATES), ("llama", 0), ("gemma2", 0)]
)
def test_learned_equals_eager(family: str, rank: int, tmp_path: Path) -> None:
    path = gates_file(tmp_path, family, rank, blocks=len(gating.ffn_blocks(tiny.fx(family))))
    _, weights = load_gates(path)
    ids = tiny.feeds(2, 9)["input_ids"]
    threshold = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)

    def choose(layer: int, state: Any, before: Any, x: Any, full: Any) -> Any:
        stem = f"model.layers.{layer}.skip"
        if layer not in (1, 2):
            return full
        cheap = torch.zeros_like(full)
        if rank:
            gate, up, down, bias = (weights[f"{stem}.cheap.{leaf}"] for leaf in ("gate", "up", "down", "bias"))
            cheap = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T + bias
        runs = (state @ weights[f"{stem}.gate.weight"] + weights[f"{stem}.gate.bias"]) >= torch.from_numpy(threshold)[
            ..., None
        ]
        return torch.where(runs, full, cheap)

    graph = one(SkipFfn(gates=str(path)).apply(program(family)))
    expected = Hooked(family, choose)(ids)
    assert_close(run(graph, ids, threshold), expected, FLOAT32["rtol"], 1e-4)
    assert abs(expected - tiny.eager(family, {"input_ids": ids})).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@settings(max_examples=12, deadline=None)
@given(tau=st.floats(0.02, 0.98), k=st.integers(1, 3), left=st.integers(0, 1), seed=st.integers(0, 99))
def test_cosine_is_the_papers_algorithm(family: str, tau: float, k: int, left: int, seed: int) -> None:
    ids = tiny.feeds(2, 6, seed)["input_ids"]
    close: list[float] = []
    skip = torch.zeros(ids.shape)

    def choose(layer: int, state: Any, before: Any, x: Any, full: Any) -> Any:
        given = full
        for row, token in np.ndindex(*ids.shape):
            if skip[row, token] > left:
                skip[row, token] -= 1
                full[row, token] = 0
                continue
            after = before[row, token] + normed(layer, given)[row, token]
            similar = float(torch.nn.functional.cosine_similarity(before[row, token], after, dim=0))
            close.append(abs(similar - tau))
            skip[row, token] = (k if similar >= tau else 0) if skip[row, token] <= 0 or left else 0
        return full

    hooked = Hooked(family, choose)

    def normed(layer: int, value: Any) -> Any:
        after = getattr(hooked.model.model.layers[layer], "post_feedforward_layernorm", None)
        return value if after is None else after(value)

    expected = hooked(ids)
    if min(close) < 1e-4:
        return  # a rounding error may decide
    graph = gating.cosine(tiny.fx(family), (0, 1, 2), tau, k)
    assert_close(run(graph, ids, level(ids, -left - 0.5)), expected, FLOAT32["rtol"], 1e-4)


@pytest.mark.parametrize("policy", ["learned", "static", "cosine"])
def test_without_a_threshold_it_is_dense_bit_for_bit(policy: Any, tmp_path: Path) -> None:
    gates = str(gates_file(tmp_path)) if policy == "learned" else None
    graph = one(SkipFfn(policy, gates, tau=0.01).apply(program()))
    given = tiny.feeds()
    np.testing.assert_array_equal(
        run(graph, given["input_ids"], level(given["input_ids"], -np.inf)), tiny.fx("llama").run(given)["logits"]
    )


def test_input_is_untouched_and_weights_are_shared(tmp_path: Path) -> None:
    before = program()
    text = str(before)
    after = SkipFfn(gates=str(gates_file(tmp_path))).apply(before)
    assert str(before) == text
    assert before.gates == {}
    kept = dict(one(before).module.named_parameters())
    assert all(dict(one(after).module.named_parameters())[name] is value for name, value in kept.items())


def test_nothing_to_do_gives_the_same_object() -> None:
    assert SkipFfn("off").apply(off := program()) is off
    assert SkipFfn("static").apply(lowered := tiny.lowered("llama")) is lowered


def test_it_trains_gates_and_cheap_paths_through_a_frozen_model() -> None:
    graph = tiny.fx("llama")
    shapes = gating.parameters(gating.ffn_blocks(graph)[1], 4)
    weights = {name: torch.nn.Parameter(torch.full(shape, 0.01)) for name, shape in shapes.items()}
    gated = gating.learned(graph, (1,), weights)
    given = [torch.from_numpy(value) for value in tiny.feeds().values()]
    threshold = torch.zeros(given[0].shape)
    gated.module(*given, threshold)[0].square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights.values())
    slope = weights["model.layers.1.skip.gate.weight"].grad
    assert slope is not None
    assert slope.abs().max() > 0
    assert all(p.grad is None for p in graph.module.parameters())


@pytest.mark.parametrize("policy", ["learned", "static", "cosine"])
def test_lowered_it_computes_the_same(policy: Any, tmp_path: Path) -> None:
    gates = str(gates_file(tmp_path)) if policy == "learned" else None
    layers: Any = (0, 1, 2) if policy == "cosine" else "auto"
    result = SkipFfn(policy, gates, layers, tau=0.5, k=1).apply(program())
    onnx = Pipeline((Lower(), KvCache(max_tokens=64), LogitsFrom(), Branch())).run(result)
    ids = tiny.feeds(1, 1)["input_ids"]
    for value in (-np.inf, -0.5, 0.0, 0.5, np.inf):
        graph = tiny.onnx(onnx)
        outputs = graph.run(
            {
                "input_ids": ids,
                "seqlens_k": np.zeros(1, np.int32),
                "total_sequence_length": np.array(1, np.int32),
                "logits_from": np.array([0]),
                "threshold": level(ids, value),
                **tiny.empty_cache(graph, 1),
            }
        )
        assert_close(outputs["logits"].astype(np.float32), run(one(result), ids, level(ids, value)), **ENGINE)


def test_gptq_takes_gated_graphs(tmp_path: Path) -> None:
    result = Gptq(block_size=16).apply(SkipFfn(gates=str(gates_file(tmp_path))).apply(program()))
    assert "model.layers.1.skip.cheap.gate" in result.blocks
    assert "model.layers.1.skip.gate.weight" not in result.blocks


def test_importance_is_the_loss_without_a_block() -> None:
    """The Fisher estimate ranks blocks as leaving each of them out does."""
    graph = tiny.fx("qwen3")
    ids = SAMPLE.reshape(16, 32)
    importance = ffn_importance(graph, ids)
    dense = torch.from_numpy(graph.run(feeds(ids))["logits"].astype(np.float32)).log_softmax(-1)
    losses = []
    for layer in range(3):
        without = gating.static(graph, {layer: 0.0}, {})
        logits = torch.from_numpy(run(without, ids, level(ids, 1.0))).log_softmax(-1)
        losses.append(float((dense.exp() * (dense - logits)).sum(-1).mean()))
    assert min(losses) > 0
    assert np.argmax(importance) == np.argmax(losses)


def feeds(ids: Ids) -> dict[str, Ids]:
    return {"input_ids": ids, "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1))}


def test_static_skips_the_least_important_first() -> None:
    result = SkipFfn("static", layers=(0, 1, 2), warmup=3).apply(program())
    gates = result.gates["lm"]
    importance = ffn_importance(tiny.fx("llama"), SAMPLE.reshape(-1, 128))
    assert [share for share, _ in gates.thresholds] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for skipped, (_, threshold) in enumerate(gates.thresholds):
        ran = decisions(one(result), SAMPLE.reshape(4, 128), threshold, 3)
        assert ran.shape == (3, 4 * 125)
        assert {layer for layer in range(3) if not ran[layer].any()} == set(np.argsort(importance)[:skipped])


def test_options_reach_the_gates(tmp_path: Path) -> None:
    learned = SkipFfn(gates=str(gates_file(tmp_path)), warmup=30, batch="off").apply(program()).gates["lm"]
    assert (learned.policy, learned.layers, learned.blocks, learned.warmup) == ("learned", (1, 2), 3, 30)
    assert (learned.batch, learned.thresholds) == ("off", ((0.0, -np.inf), (0.1, -0.5), (0.6, 0.5)))
    assert SkipFfn("static").apply(program()).gates["lm"].layers == (int(np.argmin(importances())),)
    assert SkipFfn("cosine", layers=(0, 2)).apply(program()).gates["lm"].layers == (0, 2)


def importances() -> list[float]:
    return ffn_importance(tiny.fx("llama"), SAMPLE.reshape(-1, 128))


def test_cosines_are_those_of_the_whole_state() -> None:
    found = ffn_cosines(tiny.fx("llama"), SAMPLE.reshape(-1, 128))
    assert len(found) == 3
    assert all(-1 <= each <= 1 for each in found)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "static", "gates": "x"}, "gates: policy 'static' has none"),
        ({"warmup": -1}, "warmup: -1"),
        ({"budget": 1.5}, r"budget: 1\.5; a number from 0"),
        ({"budget": float("nan")}, "budget: nan"),
        ({"tau": 0.0}, "tau: 0.0"),
        ({"k": 0}, "k: 0"),
        ({"layers": (2, 1)}, r"layers: \[2, 1\]"),
        ({"layers": ()}, r"layers: \[\]"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PassError, match=text):
        SkipFfn(**options)


@pytest.mark.parametrize(
    "cheap", ["", "none", "low_rank", "low_rank()", "low_rank(0)", "low_rank(-1)", "low_rank(4097)", "low_rank(1e9)"]
)
def test_other_cheap_paths_are_refused(cheap: str) -> None:
    with pytest.raises(PassError) as caught:
        SkipFfn(cheap=cheap)
    assert str(caught.value) == f"cheap: {cheap!r}; identity, or low_rank(N) with N from 1 to 4096, is right"


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ("{}", 64),
        ("{cheap: identity}", 0),
        ("{cheap: low_rank(384)}", 384),
        ("{cheap: low_rank( 1 )}", 1),
        ("{cheap: 'low_rank(4096)'}", 4096),
    ],
)
def test_the_cheap_path_is_said_in_yaml(options: str, rank: int) -> None:
    spec = parse_spec(HEAD + f"passes: [skip_ffn: {options}]")
    [pass_] = build_passes(spec)
    assert isinstance(pass_, SkipFfn)
    assert pass_.rank == rank
    assert parse_spec(effective(spec)) == spec
    set_ = f"passes.0.skip_ffn.cheap={pass_.cheap}"
    assert build_passes(parse_spec(HEAD + "passes: [skip_ffn]", overrides=[set_])) == (pass_,)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("{cheap: low_rank(0)}", ": cheap: 'low_rank(0)'; identity, or low_rank(N) with N from 1 to 4096, is right"),
        ("{cheap: {low_rank: 8}}", ".cheap: expected text, got a mapping"),
        ("{cheap: 8}", ".cheap: expected text, got 8"),
        ("{chaep: identity}", ".chaep: unknown key; did you mean 'cheap'?"),
    ],
)
def test_a_wrong_cheap_path_is_one_line(options: str, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(HEAD + f"passes: [skip_ffn: {options}]")
    assert str(caught.value) == f"model.yaml:3: passes.0.skip_ffn{fault}"


def test_schema_and_help_know_the_cheap_path() -> None:
    options = json_schema()["$defs"]["skip_ffn"]["properties"]
    assert options["cheap"] == {"default": "low_rank(64)", "title": "Cheap", "type": "string"}
    assert "rank" not in options
    told = CliRunner().invoke(main, ["passes", "skip_ffn"]).stdout
    assert "cheap: str  (default 'low_rank(64)')" in told


def test_the_example_with_gates_has_the_cheap_paths_that_its_spec_says() -> None:
    path = ROOT / "examples" / "smollm2_skip" / "model.yaml"
    [pass_] = build_passes(read_spec(path))
    assert isinstance(pass_, SkipFfn)
    assert pass_.gates is not None
    assert load_gates_metadata(path.parent / pass_.gates).rank == pass_.rank


@pytest.mark.parametrize(("name", "rank"), [("0.5b", 256), ("1.5b", 128)])
def test_the_example_whose_gates_are_trained_first_says_how(name: str, rank: int) -> None:
    """The README's command writes the file that the spec names."""
    folder = ROOT / "examples" / "qwen_skip"
    [pass_] = build_passes(read_spec(folder / f"{name}.yaml"))
    assert isinstance(pass_, SkipFfn)
    assert (pass_.gates, pass_.rank) == (f"{name}.safetensors", rank)
    assert f"$ adaptc train {name}.yaml --set" in (folder / "README.md").read_text()


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="needs a file"):
        SkipFfn().apply(program())
    with pytest.raises(PassError, match="layers are 0 to 2"):
        SkipFfn("static", layers=(1, 3)).apply(program())
    with pytest.raises(PassError, match="no calibration text"):
        SkipFfn("static").apply(tiny.program("llama"))
    with pytest.raises(PassError, match="no two neighbouring layers"):
        SkipFfn("cosine", tau=1.0).apply(program())
    gated = program().with_graph("lm", skipping.gated("llama"))
    with pytest.raises(PassError, match="applied once"):
        SkipFfn("cosine", layers=(0, 1)).apply(gated)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"blocks": 4}, "a model with 4 layers; this one has 3"),
        ({"layers": (0, 1)}, r"model\.layers\.0\.skip.*missing"),
        ({"rank": 8}, r"cheap\.gate: \[4, 32\]; shape \[8, 32\]"),
        ({"thresholds": ((0.1, 0.5), (0.6, -0.5))}, "rising"),
    ],
)
def test_gates_of_another_model_are_refused(changed: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = gates_file(tmp_path)
    _, weights = load_gates(path)
    save_gates(dataclasses.replace(metadata(), **changed), weights, path)
    with pytest.raises(PassError, match=text):
        SkipFfn(gates=str(path)).apply(program())


def test_damaged_gates_are_refused(tmp_path: Path) -> None:
    path = gates_file(tmp_path)
    assert load_gates_metadata(path) == metadata()
    _, weights = load_gates(path)
    weights["model.layers.1.skip.gate.weight"][3] = float("nan")
    save_gates(metadata(), weights, path)
    for content, text in [
        (path.read_bytes(), "has NaN"),
        (path.read_bytes()[:-9], "cannot be read"),
        (b"", "cannot be read"),
        (None, "no such file"),
    ]:
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(PassError, match=text):
            SkipFfn(gates=str(path)).apply(program())
