"""Codes of experts: each is rounded by what its router sends to it, and the block's outputs change less."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.fx_graph import assign
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.passes import Pipeline
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.blockwise import concatenate, dequantized, quantize_blocks
from adaptc.passes.quantize.calibrate import quantize_linears
from adaptc.passes.quantize.expert_codes import RoutedRows, quantize_expert
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.quantize.kept_codes import Form
from adaptc.passes.quantize.linears import mixtures_of
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.store import Memory
from adaptc.sources.calibration_text import OWN
from tests.fakes.progress import Told
from tests.models import tiny
from tests.passes.quantize.test_calibrate import ids

FORMS = Form(4, 16, symmetric=False), Form(4, 16, symmetric=True)
WIDTH, INNER, EXPERTS, USED = 64, 32, 12, 2
WINDOW = 48
GATE_UP, DOWN = (f"model.layers.{{}}.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj"))


@cache
def trained() -> Any:
    """A small model after some steps on bytes of a text: what its experts read has few directions."""
    options = {"vocab_size": 256, "hidden_size": WIDTH, "num_experts": EXPERTS, "moe_intermediate_size": INNER}
    losses = {"output_router_logits": True, "router_aux_loss_coef": 0.02, "num_hidden_layers": 2}
    model = tiny.random_model("qwen3_moe", {**tiny.COMMON, **options, **losses}, spread=0.05)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
    step = torch.optim.Adam(model.parameters(), 3e-3)
    draws = torch.Generator().manual_seed(1)
    for _ in range(40):
        starts = torch.randint(0, len(text()) // 2 - WINDOW, (12,), generator=draws)
        batch = torch.stack([text()[start : start + WINDOW] for start in starts])
        loss = model(batch, labels=batch, use_cache=False).loss
        step.zero_grad()
        loss.backward()
        step.step()
    return model.requires_grad_(False)


@cache
def text() -> torch.Tensor:
    return torch.tensor(list(OWN.read_bytes()))


def read(first: int, rows: int) -> torch.Tensor:
    """What the second block reads of a part of the text: float32 [rows, width]."""
    found: list[torch.Tensor] = []
    hook = trained().model.layers[1].mlp.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        trained()(text()[first : first + rows].view(-1, WINDOW), use_cache=False)
    hook.remove()
    return found[0].reshape(rows, WIDTH)


def routed(states: torch.Tensor) -> RoutedRows:
    _, shares, chosen = trained().model.layers[1].mlp.gate(states)
    return RoutedRows.of([[states], [chosen], [shares]])


def outputs(rows: RoutedRows, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """By transformers' own block, with other matrices of experts."""
    block = trained().model.layers[1].mlp
    kept = [block.experts.gate_up_proj.data, block.experts.down_proj.data]
    block.experts.gate_up_proj.data, block.experts.down_proj.data = (
        torch.stack([*each]) for each in zip(*pairs, strict=True)
    )
    with torch.no_grad():
        result: torch.Tensor = block(rows.states[None])[0]
    block.experts.gate_up_proj.data, block.experts.down_proj.data = kept
    return result


def experts() -> list[tuple[torch.Tensor, torch.Tensor]]:
    block = trained().model.layers[1].mlp.experts
    return [*zip(block.gate_up_proj.data, block.down_proj.data, strict=True)]


def nearest(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[Blocks, Blocks]:
    first, second = (
        quantize_blocks(matrix.numpy(), 4, form.block_size, symmetric=form.symmetric)
        for matrix, form in zip(pair, FORMS, strict=True)
    )
    return first, second


def error(rows: RoutedRows, found: list[tuple[Blocks, Blocks]]) -> float:
    """Of a block's outputs, squared, as a part of these."""
    exact = outputs(rows, experts())
    changed = outputs(rows, [(dequantized(first), dequantized(second)) for first, second in found])
    return float((changed - exact).square().sum() / exact.square().sum())


def test_outputs_change_less_than_by_the_nearest_codes() -> None:
    """On the calibration's rows and on others; rows of another expert are no use: a negative control."""
    rows, others = routed(read(0, 40 * WINDOW)), routed(read(len(text()) // 2, 20 * WINDOW))
    plain = [nearest(pair) for pair in experts()]
    chosen = [quantize_expert(rows, expert, pair, FORMS) for expert, pair in enumerate(experts())]
    mixed_up = replace(rows, chosen=(rows.chosen + 1) % EXPERTS)
    wrong = [quantize_expert(mixed_up, expert, pair, FORMS) for expert, pair in enumerate(experts())]
    for seen in (rows, others):
        assert error(seen, chosen) < 0.5 * error(seen, plain)
        assert error(seen, chosen) < 0.8 * error(seen, wrong)


def test_an_expert_without_rows_is_rounded_by_a_sample_of_all() -> None:
    rows = routed(read(0, 40 * WINDOW))
    elsewhere = replace(rows, chosen=torch.where(rows.chosen == 3, 4, rows.chosen))
    assert not len(elsewhere.of_expert(3)[0])
    pair = experts()[3]
    found, plain = quantize_expert(elsewhere, 3, pair, FORMS), nearest(pair)
    exact, *changed = (
        F.linear(rows.states, matrix) for matrix in (pair[0], dequantized(found[0]), dequantized(plain[0]))
    )
    errors = [float((each - exact).square().sum()) for each in changed]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "llama4-interleaved"])
def test_every_expert_of_a_graph_is_rounded_as_alone(family: str) -> None:
    """In a walk, and later layers see its experts rounded; of Llama 4 the router's weight is in the states."""
    graph = tiny.fx(family)
    node, names = next(iter(mixtures_of(graph).items()))
    found = quantize_linears(graph, ids(), dict.fromkeys(names, 4), block_size=16, symmetric=(names[1],))
    seen: dict[str, RoutedRows] = {}

    class Kept(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n is node:
                seen["rows"] = RoutedRows.of([[self.env[each]] for each in n.args[:3]])  # type: ignore[index]
            return super().run_node(n)

    feeds = {"input_ids": ids(), "position_ids": np.arange(16)[None].repeat(24, 0)}
    with torch.no_grad():
        Kept(graph.module).run(*(torch.from_numpy(feeds[name]) for name in graph.inputs))
    matrices = [graph.module.get_parameter(name).detach() for name in names]
    alone = [quantize_expert(seen["rows"], at, (matrices[0][at], matrices[1][at]), FORMS) for at in range(4)]
    for place, name in enumerate(names):
        expected = concatenate([each[place] for each in alone])
        same = (found[name].packed == expected.packed).mean()
        assert same > 0.98, "a code on the edge may fall the other way"
    layer = int(names[0].split(".")[2]) + 1
    last = f"model.layers.{layer}.self_attn.q_proj.weight"
    everything: dict[str, Bits] = dict.fromkeys([*names, last], 4)
    after = quantize_linears(graph, ids(), everything, block_size=16, symmetric=(names[1],))
    before = quantize_linears(graph, ids(), {last: 4}, block_size=16)
    assert (after[last].scales != before[last].scales).any()


def test_a_program_s_experts_are_stored_as_chosen() -> None:
    program = replace(tiny.program("olmoe"), samples={"lm": tiny.feeds(1, 300, seed=9)["input_ids"][0]})
    chosen = Gptq(block_size=16).apply(program)
    names = [name.format(layer) for layer in range(3) for name in (GATE_UP, DOWN)]
    assert set(names) <= set(chosen.blocks)
    stored = Pipeline((Lower(), Quantize(block_size=16))).run(chosen).graph("lm", OnnxGraph).model.graph.initializers
    for name in names:
        codes = stored[f"{name}.codes"].const_value
        assert codes is not None
        numbers = codes.numpy()
        numbers, known = numbers.reshape(-1, numbers.shape[-1]), chosen.blocks[name].packed
        known = known.reshape(len(known), -1)
        assert sorted(map(bytes, numbers)) == sorted(map(bytes, known)), "rows of gate and up take turns"


def test_codes_are_kept_and_found_again() -> None:
    graph, store = tiny.fx("qwen3-moe"), Memory()
    bits: dict[str, Any] = dict.fromkeys([GATE_UP.format(0), DOWN.format(0), GATE_UP.format(1), DOWN.format(1)], 4)
    options: dict[str, Any] = {"block_size": 16, "symmetric": (DOWN.format(0), DOWN.format(1)), "store": store}
    first = quantize_linears(graph, ids(), bits, **options)
    told = Told()
    again = quantize_linears(graph, ids(), bits, **options, progress=told)
    assert told.steps_of("") == [(4, 4)]
    for name, each in first.items():
        np.testing.assert_array_equal(each.packed, again[name].packed)
    other = graph.fork()
    gate = other.module.get_parameter("model.layers.1.mlp.gate.weight")
    flipped = torch.nn.Parameter(gate.detach().flip(0), requires_grad=False)
    assign(other.module, "model.layers.1.mlp.gate.weight", flipped)
    told = Told()
    quantize_linears(other, ids(), bits, **options, progress=told)
    assert told.steps_of("") == [(2, 4), (4, 4)], "another router sends other rows to the experts of its block"


def test_a_graph_with_rounded_experts_is_nearer_to_its_own() -> None:
    """From the ids to the logits, with what the walk chose and with the nearest codes."""
    graph = tiny.fx("mixtral")
    names = [name.format(layer) for layer in range(3) for name in (GATE_UP, DOWN)]
    walked = quantize_linears(graph, ids(64, 16), dict.fromkeys(names, 4), block_size=16, symmetric=names[1::2])
    plain = {}
    for name, blocks in walked.items():
        matrices = graph.module.get_parameter(name).detach().flatten(0, 1).numpy()
        plain[name] = quantize_blocks(matrices, 4, 16, symmetric=blocks.zero_points is None)
    feeds = tiny.feeds(8, 16, seed=4)
    dense = graph.run(feeds)["logits"].astype(np.float64)
    errors = []
    for changed in (plain, walked):
        fork = graph.fork()
        for name, each in changed.items():
            old = graph.module.get_parameter(name)
            assign(fork.module, name, torch.nn.Parameter(dequantized(each).view_as(old), requires_grad=False))
        errors.append(float(((fork.run(feeds)["logits"].astype(np.float64) - dense) ** 2).mean()))
    assert errors[1] < 0.8 * errors[0]
