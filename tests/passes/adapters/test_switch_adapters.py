"""adapter_places and switch_adapters: which products adapters add to, and what a step of several adapters computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.low_rank import Array, KeptAdapter, LowRank
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.adapters.adapter_places import AdapterPlaces
from adaptc.passes.adapters.switch_adapters import SwitchAdapters
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from adaptc.passes.device.device_steps import DeviceSteps, cpu_only
from adaptc.passes.match import projections
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.runtime.bundle.names import ADAPTER
from tests.close import ENGINE, assert_close
from tests.models import tiny

RANKS = {"one": 3, "two": 2}
TARGETS = {
    "one": ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"),
    "two": ("self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj"),
}
IDS = np.random.default_rng(3).integers(0, tiny.VOCAB, (3, 6))


def matrix(seed: int, rows: int, columns: int) -> Array:
    return np.random.default_rng(seed).normal(0, 0.2, (rows, columns)).astype(np.float32)


def kept(program: Program, head: bool = False) -> tuple[KeptAdapter, ...]:
    """Two adapters of random matrices, of other ranks and for other layers; the second for the head too if `head`."""
    shapes = {str(p.weight.name): fixed(p.weight) for p in projections(tiny.onnx(program).model.graph)}
    made = []
    for number, (name, ends) in enumerate(TARGETS.items()):
        ends = (*ends, "lm_head") if head and number else ends
        changes = {
            weight: LowRank(
                weight.removesuffix(".weight"),
                RANKS[name],
                columns,
                rows,
                partial(matrix, 2 * place, RANKS[name], columns),
                partial(matrix, 2 * place + 1, rows, RANKS[name]),
            )
            for place, (weight, (rows, columns)) in enumerate(sorted(shapes.items()), 100 * number)
            if weight.removesuffix(".weight").endswith(ends)
        }
        made.append(KeptAdapter(name, f"folder of {name}", changes))
    return tuple(made)


@cache
def given(head: bool = False) -> Program:
    program = tiny.cached("llama")
    return replace(program, kept_adapters={"lm": kept(program, head)})


@cache
def switched(*weights: Pass, head: bool = False, side_by_side: int = 4) -> Program:
    before = FuseNorms(), FuseProjections(), AdapterPlaces()
    return Pipeline((*before, *weights, SwitchAdapters(side_by_side))).run(given(head))


def merged(adapter: int | None, head: bool = False) -> OnnxGraph:
    """The graph with one of the adapters added to its weights, before any pass."""
    fork = tiny.onnx(tiny.cached("llama")).fork()
    chosen = {} if adapter is None else kept(tiny.cached("llama"), head)[adapter].changes
    for name, change in chosen.items():
        value = fork.model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + change.b() @ change.a(), name=name)
    return fork


def logits(graph: OnnxGraph, chosen: list[int] | None = None) -> Array:
    feeds: dict[str, Any] = {
        "input_ids": IDS[:, :1],
        "seqlens_k": np.zeros(len(IDS), np.int32),
        "total_sequence_length": np.array(1, np.int32),
        "logits_from": np.array([0]),
        **tiny.empty_cache(graph, len(IDS)),
    }
    given = {} if chosen is None else {ADAPTER: np.array(chosen)}
    return graph.run({**feeds, **given})["logits"].astype(np.float32)


@pytest.mark.parametrize(("name", "most"), [("llama", 4), ("llama-gathered", 0)])
def test_golden(name: str, most: int, golden: Callable[[str, str], None]) -> None:
    graph = switched(FloatWeights(), side_by_side=most).graph("lm.adapted", OnnxGraph)
    golden(f"switch_adapters/{name}", graph.text())


@pytest.mark.parametrize("most", [4, 0], ids=["side by side", "gathered"])
@pytest.mark.parametrize("head", [False, True], ids=["blocks", "blocks and head"])
def test_each_row_has_its_adapter(head: bool, most: int) -> None:
    graph = switched(FloatWeights(), head=head, side_by_side=most).graph("lm.adapted", OnnxGraph)
    found = logits(graph, [2, 0, 1])
    for row, adapter in enumerate((1, None, 0)):
        assert_close(found[row], logits(merged(adapter, head))[row], **ENGINE)
    # A negative control: it is not what another adapter gives.
    assert abs(found[0] - logits(merged(0, head))[0]).max() > 1e-2


@pytest.mark.parametrize("most", [4, 0], ids=["side by side", "gathered"])
def test_no_adapter_changes_no_bit(most: int) -> None:
    program = switched(FloatWeights(), side_by_side=most)
    plain, adapted = (program.graph(name, OnnxGraph) for name in ("lm", "lm.adapted"))
    assert (logits(adapted, [0, 0, 0]) == logits(plain)).all()


def test_codes_stay_as_they_are() -> None:
    program = switched(Quantize("int8", 16))
    plain, adapted = (program.graph(name, OnnxGraph) for name in ("lm", "lm.adapted"))
    difference = logits(adapted, [1, 1, 2]) - logits(plain)
    wanted = np.stack([logits(merged(each))[row] for row, each in enumerate((0, 0, 1))]) - logits(merged(None))
    assert abs(difference - wanted).max() < 0.1 * abs(wanted).max()
    codes = [name for name in plain.model.graph.initializers if name.endswith(".codes")]
    assert len(codes) > 10
    for name in codes:
        old, new = (each.model.graph.initializers[name].const_value for each in (plain, adapted))
        assert old is new


def test_input_is_untouched_and_the_plain_form_stays() -> None:
    before = Pipeline((FuseNorms(), FuseProjections(), AdapterPlaces(), FloatWeights())).run(given())
    text = str(before)
    after = SwitchAdapters().apply(before)
    assert str(before) == text
    assert after.graphs["lm"] is before.graphs["lm"]
    assert after.forms == {"lm.adapted"}
    assert after.model("lm.adapted") == "lm"
    assert [each.rank for each in after.adapters["lm"].adapters] == [3, 2]


@pytest.mark.parametrize("pass_", [AdapterPlaces(), SwitchAdapters()], ids=lambda p: p.name)
def test_without_adapters_the_program_is_the_same(pass_: Pass) -> None:
    program = Pipeline((FuseProjections(),)).run(tiny.cached("llama"))
    assert pass_.apply(program) is program
    assert pass_.apply(switched(FloatWeights())) is switched(FloatWeights())


def test_what_is_no_product_is_refused() -> None:
    adapters = kept(tiny.cached("llama"))
    change = next(iter(adapters[0].changes.values()))
    wrong = replace(adapters[0], changes={"model.encoder.q_proj.weight": change})
    program = replace(tiny.cached("llama"), kept_adapters={"lm": (wrong,)})
    with pytest.raises(PassError, match=r"^adapter 'one' changes model\.encoder\.q_proj, which is no product of"):
        AdapterPlaces().apply(program)


def test_no_graph_verifies_with_adapters_and_no_kernels_compute_them() -> None:
    program = switched(FloatWeights())
    verified = VerifyDrafts((4,)).apply(program)
    assert verified.graphs.keys() == {"lm", "lm.adapted", "lm.verify4"}
    assert DeviceSteps().apply(program) is program
    assert cpu_only(program)["lm"] == "adapters that requests choose among have no kernels"
    with pytest.raises(PassError, match="have no kernels"):
        DeviceSteps(required=True).apply(program)
