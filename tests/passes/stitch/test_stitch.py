"""stitch: what its routes compute, what they share, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.errors import PassError, SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.ir.stored.stitch_file import StitchMetadata, save_stitches
from adaptc.passes import Pass, Pipeline
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.passes.stitch.graphs import stitched_graphs
from adaptc.passes.stitch.least_squares import fitted, normed
from adaptc.passes.stitch.options import JoinOptions, LayerRange, Route, RouterOptions, Slice
from adaptc.passes.stitch.slices import LayeredDecoder, states_graph
from adaptc.passes.stitch.states import feeds
from adaptc.passes.stitch.stitch import Stitch
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.spec.passes import build_passes
from adaptc.spec.reading import parse_spec
from tests.close import ENGINE, assert_close
from tests.models import stitched, tiny

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def run(graphs: dict[str, FxGraph], route: str, ids: Ids, threshold: float = -math.inf) -> Floats:
    """Logits of the trunk and a route's tail, one after the other."""
    both: dict[str, npt.NDArray[Any]] = {
        "input_ids": ids,
        "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1)),
        "threshold": np.full(ids.shape, threshold, np.float32),
    }
    both["hidden"] = graphs["trunk"].run(both)["hidden"]
    logits: Floats = graphs[f"tail.{route}"].run(both)["logits"].astype(np.float32)
    return logits


def ids_of(batch: int, tokens: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(2, 300, (batch, tokens))


def fx(program: Program) -> dict[str, FxGraph]:
    return program.at_level(FxGraph)


def test_golden(golden: Callable[[str, str], None]) -> None:
    options = {name: stitched.ROUTES[name] for name in ("short", "small")}
    golden("stitch/pair", str(stitched.stitch(routes=options).apply(stitched.program("llama"))))


@settings(max_examples=8, deadline=None)
@given(family=st.sampled_from(["qwen2", "llama", "qwen3"]), batch=st.integers(1, 3), tokens=st.integers(1, 12))
def test_equals_eager(family: str, batch: int, tokens: int) -> None:
    plan = stitched.stitch().plan(stitched.program(family))
    given_ = stitched.weights(plan)
    graphs = stitched_graphs(plan, given_)
    ids = ids_of(batch, tokens)
    for route in stitched.ROUTES:
        assert_close(run(graphs, route, ids), stitched.eager(route, ids, given_, family), atol=1e-4)


@pytest.mark.parametrize("family", ["phi3", "phi3-long", "olmo2", "granite", "smollm3"])
def test_a_route_of_its_own_layers_is_the_model(family: str) -> None:
    """Multipliers, layers without RoPE, tables: what lies outside of layers goes to the right side of a cut."""
    own = Stitch(Slice("lm", (0, 1)), {"own": Route((Slice("lm", (1, 3)),))})
    ids = tiny.feeds(2, 9)["input_ids"]
    found = run(fx(own.apply(tiny.program(family))), "own", ids)
    assert_close(found, tiny.eager(family, {"input_ids": ids}), **ENGINE)


@pytest.mark.parametrize("family", ["stablelm", "cohere", "gpt2", "gpt_neox", "falcon"])
def test_families_with_layer_norms_are_refused(family: str) -> None:
    assert not LayeredDecoder("lm", tiny.fx(family)).rms_norm
    with pytest.raises(PassError, match="RMS"):
        Stitch(Slice("lm", (0, 1)), {"own": Route((Slice("lm", (1, 3)),))}).apply(tiny.program(family))


def test_a_route_of_the_donors_own_layers_is_the_donor() -> None:
    program = stitched.program()
    ids = ids_of(2, 9)
    positions = np.tile(np.arange(9), (2, 1))
    donor = program.graph("large", FxGraph).run({"input_ids": ids, "position_ids": positions})["logits"]
    assert_close(run(fx(stitched.stitch().apply(program)), "large", ids), donor.astype(np.float32))


def test_input_is_untouched_and_weights_are_shared() -> None:
    program = stitched.program()
    before = str(program)
    result = Pipeline((stitched.stitch(),)).run(program)
    assert str(program) == before
    assert result.history == ("stitch",)
    place = "large.model.layers.5.mlp.up_proj.weight"
    shared = program.graph("large", FxGraph).module.get_parameter(place.removeprefix("large."))
    for graph in ("tail.large", "tail.short", "tail.sandwich"):
        assert result.graph(graph, FxGraph).module.get_parameter(place) is shared
    assert result.plan[1] == Switch("router", {route: f"tail.{route}" for route in stitched.ROUTES})


def test_no_match_returns_the_same_program() -> None:
    from adaptc.passes.lower.lower import Lower

    program = dataclasses.replace(stitched.program(), graphs={"small": stitched.program().graphs["small"]})
    lowered = Lower().apply(program)
    assert stitched.stitch().apply(lowered) is lowered


def test_the_start_is_the_least_squares_map() -> None:
    """Against numpy's own solution of the same weighted problem, which has no ridge."""
    routes = {
        "small": Route((Slice("small", (1, 4)),), JoinOptions()),
        "short": Route((Slice("large", (5, 6)),), JoinOptions()),
    }
    program = stitched.program()
    plan = stitched.stitch(routes=routes).plan(program)
    ids = program.samples["large"]
    found = fitted(plan, ids)
    rows = torch.from_numpy(ids[: len(ids) // 256 * 256].reshape(-1, 256))
    for route, name, layer in (("small", "small", 1), ("short", "large", 5)):
        h = state(plan.decoders["large"], 3, rows)
        y = state(plan.decoders[name], layer, rows)
        x = torch.cat([normed(h), torch.ones(len(h), 1)], 1).double()
        weight = 1 / y.double().norm(dim=1, keepdim=True)
        target = y.double() - (h.double() if name == "large" else 0)
        expected = np.linalg.lstsq((x * weight).numpy(), (target * weight).numpy(), rcond=None)[0]

        def error(solution: npt.NDArray[Any], x: Any = x, weight: Any = weight, target: Any = target) -> float:
            return float(((x @ torch.from_numpy(solution) - target) * weight).square().sum())

        ours = np.concatenate([found[f"stitch.{route}.0.weight"].T, found[f"stitch.{route}.0.bias"][None]])
        best, nothing = error(expected), error(np.zeros_like(expected))
        assert best <= error(ours.astype(np.float64)) < best + 0.01 * (nothing - best)
        assert best < 0.9 * nothing, "or there would be nothing to fit"


def state(backbone: LayeredDecoder, layer: int, rows: torch.Tensor) -> torch.Tensor:
    graph = states_graph(backbone, {"x": layer}, logits=False)
    with torch.no_grad():
        [found] = graph.module(*feeds(graph, rows))
    return found.flatten(0, 1)  # type: ignore[no-any-return]


def test_skipping_inside_a_backbone_goes_with_it(tmp_path: Path) -> None:
    """Gates of the large model, shared out to the trunk and to the routes that have its layers."""
    program = stitched.program()
    gated = gated_backbone(program, (1, 2, 4))
    result = Pipeline((stitched.stitch(),)).run(gated)
    table = ((0.0, -math.inf), (0.5, 0.0))
    assert result.gates == {
        "trunk": SkipGates("learned", (1, 2), 3, 2, "any", table),
        "tail.large": SkipGates("learned", (1,), 3, 2, "any", table),
        "tail.sandwich": SkipGates("learned", (1,), 3, 2, "any", table),
    }
    ids = ids_of(2, 9)
    for level in (-math.inf, 0.0, math.inf):
        backbone = gated.graph("large", FxGraph)
        positions = np.tile(np.arange(9), (2, 1))
        threshold = np.full(ids.shape, level, np.float32)
        whole = backbone.run({"input_ids": ids, "position_ids": positions, "threshold": threshold})["logits"]
        assert_close(run(fx(result), "large", ids, level), whole.astype(np.float32))
    assert np.abs(run(fx(result), "large", ids, math.inf) - run(fx(result), "large", ids)).max() > 1e-3


@dataclass(frozen=True, slots=True)
class Gating(Pass):
    """Stands for `skip_ffn` on the large model, whose layers are in the trunk and in two tails."""

    name: ClassVar[str] = "gating"

    def apply(self, program: Program) -> Program:
        return gated_backbone(program, (1, 2, 4))


def gated_backbone(program: Program, layers: tuple[int, ...]) -> Program:
    blocks = gating.ffn_blocks(program.graph("large", FxGraph))
    random = torch.Generator().manual_seed(5)
    shapes = {n: s for layer in layers for n, s in gating.parameters(blocks[layer], 4).items()}
    weights = {name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()}
    fork = gating.learned(program.graph("large", FxGraph), layers, weights)
    gates = SkipGates("learned", layers, 6, 2, "any", ((0.0, -math.inf), (0.5, 0.0)))
    return dataclasses.replace(program.with_graph("large", fork), gates={"large": gates})


def test_skip_ffn_gates_the_model_that_is_named() -> None:
    result = SkipFfn("static", model="small").apply(stitched.program())
    assert list(result.gates) == ["small"]
    assert result.graphs["large"] is stitched.program().graphs["large"]


def test_each_weight_gets_its_codes_once() -> None:
    """gptq sees the states that the trunk gives; a block of two routes is rounded for the first."""
    result = Pipeline((stitched.stitch(), Gptq(block_size=16))).run(stitched.program())
    names = {name for graph in fx(result).values() for name, _ in graph.module.named_parameters()}
    assert set(result.blocks) <= names
    assert {"large.lm_head.weight", "small.model.embed_tokens.weight", "stitch.small.0.weight"} <= set(result.blocks)
    assert result.blocks["large.lm_head.weight"].block_size == 64
    assert result.blocks["large.model.layers.2.mlp.down_proj.weight"].block_size == 16, "it is no head"


def large(first: int, end: int) -> Slice:
    return Slice("large", (first, end))


def small(first: int, end: int) -> Slice:
    return Slice("small", (first, end))


@pytest.mark.parametrize(
    ("trunk", "route", "message"),
    [
        (
            large(0, 0),
            Route((large(3, 6),)),
            "trunk: layer_range [0, 0] of large is empty; [FIRST, END] with END above FIRST is right",
        ),
        (large(1, 3), Route((large(3, 6),)), "trunk: layer_range [1, 3]; the trunk begins at layer 0"),
        (
            large(0, 3),
            Route((large(5, 4),)),
            "routes.r: layer_range [5, 4] of large is empty; [FIRST, END] with END above FIRST is right",
        ),
        (
            large(0, 3),
            Route((large(2, 6),)),
            "routes.r: layer 2 of large runs twice; ranges that do not overlap are right",
        ),
        (large(0, 3), Route(()), "routes.r: slices: none; the layers that follow the trunk are right"),
        (
            large(0, 3),
            Route((small(2, 3), small(0, 2), small(3, 4))),
            (
                "routes.r: a cycle: layer 2 of small runs before layer 0 of small, which it follows in its own model; "
                "rising layers are right"
            ),
        ),
        (large(0, 3), Route((Slice("middle", (0, 2)),)), "routes.r: no model 'middle'; there are: large, small"),
        (
            large(0, 3),
            Route((large(3, 7),)),
            "routes.r: layer_range [3, 7] of large; it has layers 0 to 5, so END is at most 6",
        ),
        (
            large(0, 3),
            Route((small(1, 3),)),
            "routes.r: ends at layer 3 of small; a route ends with its model's last layer, 4, as the head reads that",
        ),
        (
            large(0, 3),
            Route((large(3, 6),), JoinOptions()),
            "routes.r: stitch: it goes on where the trunk ends; leave the stitch out",
        ),
    ],
)
def test_refuses_layers_that_cannot_run(trunk: Slice, route: Route, message: str) -> None:
    with pytest.raises(PassError) as caught:
        Stitch(trunk=trunk, routes={"r": route}).apply(stitched.program())
    assert str(caught.value) == message


def test_refuses_no_routes_and_names_that_are_none() -> None:
    with pytest.raises(PassError, match=r"^routes: none; at least one path after the trunk is right$"):
        Stitch(trunk=large(0, 3), routes={})
    with pytest.raises(PassError, match=r"^routes.a-b: no name"):
        Stitch(trunk=large(0, 3), routes={"a-b": Route((large(3, 6),))})


def test_refuses_slices_of_two_forms() -> None:
    with pytest.raises(PassError, match=r"^sources: beside model and layer_range"):
        Slice("large", (0, 2), (LayerRange("large", (0, 2)),))
    with pytest.raises(PassError, match=r"^sources: 2 models in one slice"):
        Slice(sources=(LayerRange("large", (0, 2)), LayerRange("small", (0, 2))))
    with pytest.raises(PassError, match=r"^a slice without model and layer_range; \{model: NAME"):
        Slice("large")


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("adapters", -1), ("adapters", 5000)])
def test_refuses_ranks(field: str, value: int) -> None:
    with pytest.raises(PassError, match=rf"^{field}: {value}; [01] to 4096 is right$"):
        JoinOptions(**{field: value})  # type: ignore[arg-type]


def test_refuses_other_vocabularies() -> None:
    def backbone(size: int, vocabulary: str) -> Backbone:
        return Backbone("x.gguf", "qwen2", size, None, (), None, 128, "", vocabulary)

    for other, message in (
        (backbone(9, "a"), "'small' has 9 token ids, 'large' 300; models with one vocabulary are right"),
        (backbone(300, "b"), "'small' and 'large' call other tokens by one id; models with one vocabulary are right"),
    ):
        program = dataclasses.replace(stitched.program(), backbones={"large": backbone(300, "a"), "small": other})
        with pytest.raises(PassError) as caught:
            stitched.stitch().apply(program)
        assert str(caught.value) == message


def test_refuses_gates_of_two_models_in_one_route() -> None:
    gated = gated_backbone(stitched.program(), (4,))
    both = SkipFfn("static", model="small", layers=(1,)).apply(gated)
    with pytest.raises(PassError, match=r"^tail.sandwich: gates of large and small in one route"):
        stitched.stitch().apply(both)


def test_refuses_gates_that_hand_on_a_second_value() -> None:
    cosine = SkipFfn("cosine", model="large", layers=(2, 3), tau=0.5).apply(stitched.program())
    with pytest.raises(PassError, match=r"^'large': 2 values leave layer 2"):
        stitched.stitch().apply(cosine)


def test_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    program = stitched.program()
    given_ = stitched.weights(stitched.stitch().plan(program))
    path = tmp_path / "stitch.safetensors"
    pass_ = stitched.stitch(weights=str(path))
    with pytest.raises(PassError, match=r"no such file; `adaptc train` makes one$"):
        pass_.apply(program)
    path.write_bytes(b"no")
    with pytest.raises(PassError, match=r"cannot be read .*a file of `adaptc train` is right$"):
        pass_.apply(program)
    name = "stitch.small.0.weight"
    save_stitches(StitchMetadata({}, {}), {**given_, name: torch.zeros(3, 4)}, path)
    with pytest.raises(PassError) as caught:
        pass_.apply(program)
    assert str(caught.value) == (f"stitch.safetensors: {name}: [3, 4]; shape [32, 48] is right: train for these routes")
    save_stitches(StitchMetadata({}, {}), {**given_, name: torch.full((32, 48), math.nan)}, path)
    with pytest.raises(PassError, match=r"stitch.small.0.weight has NaN or infinite values"):
        pass_.apply(program)
    backbone = Backbone("x.gguf", "qwen2", 300, None, (), None, 128, "1234")
    save_stitches(StitchMetadata({"large": "5678"}, {}), given_, path)
    with pytest.raises(PassError, match=r"^stitch.safetensors: stitches of other weights than x.gguf"):
        pass_.apply(dataclasses.replace(program, backbones={"large": backbone}))
    save_stitches(StitchMetadata({"large": "1234"}, {}), given_, path)
    pass_.apply(dataclasses.replace(program, backbones={"large": backbone}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "router: none given; one of target_share, mean_cost, max_loss is right"),
        (
            {"target_share": 0.1, "mean_cost": 0.5},
            "router: target_share and mean_cost given; one of target_share, mean_cost, max_loss is right",
        ),
        ({"target_share": 1.5}, "router: target_share: 1.5; 0 to 1 is right"),
        ({"max_loss": 0.0}, "router: max_loss: 0.0; nats above 0 are right"),
        ({"max_loss": 0.1, "confidence": 1.0}, "router: confidence: 1.0; from 0.5 to below 1 is right"),
    ],
)
def test_refuses_wishes_of_a_router(options: dict[str, float], message: str) -> None:
    with pytest.raises(PassError) as caught:
        RouterOptions("r", **options)
    assert str(caught.value) == message


def test_refuses_to_fit_to_nothing() -> None:
    program = dataclasses.replace(stitched.program(), samples={})
    with pytest.raises(PassError, match=r"^no calibration text"):
        stitched.stitch().apply(program)


def test_options_come_from_yaml_and_are_checked() -> None:
    [built] = build_passes(parse_spec(stitched.SPEC))
    forms = {
        "small": Route((Slice(sources=(LayerRange("small", (1, 4)),)),), JoinOptions("residual", rank=6, adapters=4))
    }
    router = RouterOptions("router.safetensors", target_share=0.25)
    assert built == stitched.stitch(weights="stitch.safetensors", routes=stitched.ROUTES | forms, router=router)
    assert built.files() == {"weights": "stitch.safetensors", "router": "router.safetensors"}
    at = built.at(Path("/x"))
    assert at.files() == {"weights": "/x/stitch.safetensors", "router": "/x/router.safetensors"}
    with pytest.raises(SpecError, match=r"model.yaml:15: passes.0.stitch.routes.short.stitch.kid: unknown key"):
        parse_spec(stitched.SPEC.replace("stitch: {}}", "stitch: {kid: linear}}", 1))
    with pytest.raises(SpecError, match=r"runs twice"):
        parse_spec(stitched.SPEC.replace("[3, 6]", "[2, 6]"))


def test_the_old_name_of_the_trunk_is_refused_with_its_new_one() -> None:
    with pytest.raises(SpecError, match=r"passes.0.stitch.bottom: unknown key.*'trunk'") as caught:
        parse_spec(stitched.SPEC.replace("trunk:", "bottom:"))
    assert "missing" not in str(caught.value)
