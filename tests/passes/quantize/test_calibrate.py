"""Calibration: the walk quantizes each layer on what it really gets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.fx_graph import FxGraph, assign
from adaptc.ir.unread.tensors import UnreadTensor
from adaptc.passes.quantize.blockwise import dequantize, quantize_blocks
from adaptc.passes.quantize.calibrate import calibration_ids, quantize_linears
from adaptc.passes.quantize.linears import alone, linear_weights
from adaptc.passes.store import Memory
from tests.fakes.progress import Told
from tests.models import tiny

GATE = "model.layers.0.mlp.gate_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def ids(sequences: int = 24, tokens: int = 16) -> npt.NDArray[np.int64]:
    return tiny.feeds(sequences, tokens, seed=3)["input_ids"].astype(np.int64)


def parameter(graph: FxGraph, name: str) -> npt.NDArray[np.float32]:
    value: npt.NDArray[np.float32] = dict(graph.module.named_parameters(remove_duplicate=False))[name].detach().numpy()
    return value


def logits(graph: FxGraph, blocks: Mapping[str, Blocks]) -> npt.NDArray[np.float32]:
    """Logits, on other tokens than those of the calibration, with these weights in place of the graph's own."""
    fork = graph.fork()
    for name, each in blocks.items():
        owner, _, leaf = name.rpartition(".")
        weight = torch.nn.Parameter(torch.from_numpy(dequantize(each)), requires_grad=False)
        fork.module.get_submodule(owner).register_parameter(leaf, weight)
    return fork.run(tiny.feeds(8, 16, seed=4))["logits"]  # type: ignore[return-value]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_linear_layer_of_every_family(family: str) -> None:
    graph = tiny.fx(family)
    shapes = linear_weights(graph)
    least = 4 if family in tiny.WITH_EXPERTS else 6 if family in tiny.UNGATED else 7
    assert len(shapes) >= least * 3 + 1
    blocks = quantize_linears(graph, ids(4, 8), dict.fromkeys(shapes, 4))
    assert set(blocks) == set(shapes)
    assert {name: (each.rows, each.columns) for name, each in blocks.items()} == shapes


def test_outputs_change_less_than_by_plain_rounding() -> None:
    graph = tiny.fx("llama")
    names = [name for name in linear_weights(graph) if "layers" in name]
    plain = {name: quantize_blocks(parameter(graph, name), 4) for name in names}
    walked = quantize_linears(graph, ids(64, 16), dict.fromkeys(names, 4))
    dense = logits(graph, {})
    errors = [float(np.square(logits(graph, blocks) - dense).mean()) for blocks in (plain, walked)]
    assert errors[1] < 0.7 * errors[0]


def test_later_layers_see_earlier_ones_quantized() -> None:
    graph = tiny.fx("llama")
    alone = quantize_linears(graph, ids(), {DOWN: 4})
    after = quantize_linears(graph, ids(), {GATE: 4, UP: 4, DOWN: 4})
    assert (alone[DOWN].packed != after[DOWN].packed).any()


def test_layers_of_one_input_are_rounded_by_one_hessian_each_for_itself() -> None:
    graph = tiny.fx("llama")
    both = quantize_linears(graph, ids(), {GATE: 4, UP: 4})
    gate = quantize_linears(graph, ids(), {GATE: 4})
    mixed = quantize_linears(graph, ids(), {GATE: 4, UP: 8})
    np.testing.assert_array_equal(dequantize(both[GATE]), dequantize(gate[GATE]))
    np.testing.assert_array_equal(dequantize(both[GATE]), dequantize(mixed[GATE]))
    assert mixed[UP].bits == 8
    np.testing.assert_allclose(dequantize(mixed[UP]), parameter(graph, UP), atol=0.01)


def test_threads_change_nothing() -> None:
    graph = tiny.fx("qwen2")
    bits: dict[str, Bits] = dict.fromkeys(linear_weights(graph), 4)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(quantize_linears(graph, ids(), bits))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name, blocks in results[0].items():
        rows = (blocks.packed == results[1][name].packed).all(axis=(1, 2))
        # Products are summed in another order: a code on the edge may fall the other way, the rest of its row with it,
        # and later layers read what it gives.
        assert rows.mean() > (0.95 if "layers.0.self_attn.q" in name else 0.8), name


def test_what_is_not_read_yet_is_read_once_for_all_threads() -> None:
    graph, read = tiny.fx("llama").fork(), list[str]()
    for name, value in list(graph.module.named_parameters(remove_duplicate=False)):
        assign(graph.module, name, UnreadTensor.of(value.shape, value.dtype, partial(_read, read, name, value), name))
    names = [name for name in linear_weights(graph) if "layers" in name]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            read.clear()
            results.append(quantize_linears(graph, ids(), dict.fromkeys(names, 4), store=Memory()))
            # Keys of codes are made from what tensors are known by, so that not even these read them.
            assert max(map(read.count, read)) == 1
            assert set(names) <= set(read)
    finally:
        torch.set_num_threads(before)
    whole = quantize_linears(tiny.fx("llama"), ids(), dict.fromkeys(names, 4))
    first = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(results[0][first].packed, whole[first].packed)


def _read(read: list[str], name: str, value: torch.Tensor) -> torch.Tensor:
    read.append(name)
    return value


def test_one_walk_over_all_sequences_as_on_a_gpu_gives_the_same() -> None:
    graph = tiny.fx("llama")
    names = [name for name in linear_weights(graph) if "layers.0" in name]
    apart = quantize_linears(graph, ids(), dict.fromkeys(names, 4))
    whole = quantize_linears(graph, ids(), dict.fromkeys(names, 4), device="cpu:0")  # by its name no CPU's threads
    for name in names:
        assert (whole[name].packed == apart[name].packed).all(axis=(1, 2)).mean() > 0.8, name


def test_graph_is_untouched_and_progress_is_told() -> None:
    graph = tiny.fx("llama")
    text, weight, told = graph.text(), parameter(graph, GATE).copy(), Told()
    quantize_linears(graph, ids(), {GATE: 4, DOWN: 4}, progress=told)
    assert graph.text() == text
    np.testing.assert_array_equal(parameter(graph, GATE), weight)
    assert told.steps_of("") == [(0, 2), (1, 2), (2, 2)]


def test_symmetric_weights_have_no_zero_points() -> None:
    blocks = quantize_linears(tiny.fx("llama"), ids(), {GATE: 4, DOWN: 4}, block_size=16, symmetric={GATE})
    assert blocks[GATE].zero_points is None
    assert blocks[DOWN].zero_points is not None
    assert blocks[GATE].scales.shape == (64, 2)


def test_only_projections_that_share_their_input_keep_zero_points() -> None:
    layer = "model.layers.1"
    found = {name for name in alone(tiny.fx("llama")) if name.startswith((layer, "lm_head"))}
    assert found == {f"{layer}.self_attn.o_proj.weight", f"{layer}.mlp.down_proj.weight", "lm_head.weight"}


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(PassError, match=r"model\.layers\.9\.x"):
        quantize_linears(tiny.fx("llama"), ids(), {GATE: 4, "model.layers.9.x": 4})


def test_a_text_becomes_sequences() -> None:
    text = np.arange(1000)
    assert calibration_ids(text, 512, 128).shape == (4, 128)
    assert calibration_ids(text, 5000, 128).shape == (7, 128)
    assert calibration_ids(text, 100, 128).shape == (1, 128)
    assert calibration_ids(text[:50], 512, 128).shape == (1, 50)
    np.testing.assert_array_equal(calibration_ids(text, 256, 128).reshape(-1), text[:256])
    with pytest.raises(PassError, match="1 tokens"):
        calibration_ids(text[:1])


def test_a_walk_that_was_stopped_goes_on_where_it_was() -> None:
    graph, store = tiny.fx("llama"), Memory()
    bits: dict[str, Bits] = dict.fromkeys(linear_weights(graph), 4)
    whole = quantize_linears(graph, ids(), bits)
    half = len(bits) // 2
    stopped = Told(stop_at=next(done for done, _ in _steps(graph, bits) if done >= half))
    with pytest.raises(KeyboardInterrupt):
        quantize_linears(graph, ids(), bits, store=store, progress=stopped)
    told = Told()
    resumed = quantize_linears(graph, ids(), bits, store=store, progress=told)
    first, total = told.steps_of("")[0]
    assert (first, total) == (stopped.steps_of("")[-1][0], len(bits)), "codes from before the stop are chosen again"
    for name, blocks in whole.items():
        np.testing.assert_array_equal(resumed[name].packed, blocks.packed)


def _steps(graph: FxGraph, bits: Mapping[str, Bits]) -> list[tuple[int, int]]:
    told = Told()
    quantize_linears(graph, ids(), bits, progress=told)
    return told.steps_of("")
