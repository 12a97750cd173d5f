from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import fx

from adaptc.capture.text import capture
from adaptc.ir.fx_graph import FxGraph, assign
from adaptc.ir.unread.constants import UnreadConstant, rows_of
from adaptc.ir.unread.rows import FirstRows, Stacked
from adaptc.ir.unread.tensors import UnreadTensor
from adaptc.sources.find import find_source
from adaptc.sources.tensors import Tensors
from adaptc.spec.schema import ModelSpec
from tests.close import ENGINE, assert_close
from tests.models import folder, tiny


class Counted:
    """A tensor that counts how often it is read."""

    def __init__(self, *shape: int) -> None:
        self.reads, self.numbers = 0, torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        self.tensor = UnreadTensor.of(shape, torch.float32, self.read)

    def read(self) -> torch.Tensor:
        self.reads += 1
        return self.numbers


def test_what_is_said_of_a_weight_reads_nothing() -> None:
    weight = Counted(3, 5)
    tensor = weight.tensor
    assert isinstance(tensor, torch.nn.Parameter)
    assert (tensor.shape, len(tensor), tensor.ndim, tensor.numel()) == (torch.Size([3, 5]), 3, 2, 15)
    assert (tensor.dtype, tensor.device.type, tensor.requires_grad) == (torch.float32, "cpu", False)
    assert tensor.detach() is tensor
    module = torch.nn.Module()
    assign(module, "weight", tensor)
    assert list(module.state_dict()) == ["weight"]
    assert weight.reads == 0


def test_operators_work_on_the_numbers() -> None:
    weight = Counted(3, 5)
    x = torch.randn(2, 5, requires_grad=True)
    y = torch.nn.functional.linear(x, weight.tensor)
    assert torch.equal(y, x @ weight.numbers.T)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, weight.numbers.sum(0).expand(2, 5))
    assert torch.equal(torch.from_numpy(weight.tensor.detach().float().numpy()), weight.numbers)
    assert type(weight.tensor[:2]) is torch.Tensor
    assert type(copy.deepcopy(weight.tensor)) is torch.Tensor


def test_a_walk_reads_each_weight_where_it_is_needed() -> None:
    weights = {name: Counted(4, 4) for name in ("first", "second")}
    graph, root = fx.Graph(), torch.nn.Module()
    value = graph.placeholder("x")
    for name, weight in weights.items():
        assign(root, name, weight.tensor)
        value = graph.call_function(torch.ops.aten.linear.default, (value, graph.get_attr(name)))
    graph.output((value,))
    module = fx.GraphModule(root, graph)
    seen = []

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen.append([weight.reads for weight in weights.values()])
            return super().run_node(n)

    x = torch.ones(1, 4)
    [result] = Walk(module).run(x)
    assert seen[-2:] == [[1, 0], [1, 1]]
    whole = FxGraph(module).loaded()
    assert all(type(each) is torch.nn.Parameter for each in whole.module.parameters())
    reads = [weight.reads for weight in weights.values()]
    assert torch.equal(whole.module(x)[0], result)
    assert torch.equal(whole.module(x)[0], result)
    assert [weight.reads for weight in weights.values()] == reads == [2, 2]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("llama", {"tie_word_embeddings": True}), ("gpt2", {"intermediate_size": None}), ("phi3", tiny.PHI3)],
)
def test_capture_reads_no_weight_of_a_file(
    model_type: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of GPT-2 weights are turned, of Phi-3 they are parts of joined ones."""
    _, model = folder.write(tmp_path, model_type, **options)
    source = find_source(ModelSpec(source="model"), tmp_path)
    read = Tensors.stored

    def refused(self: Tensors, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Tensors, "stored", refused)
    graph = capture(source.config(), source.tensors())
    monkeypatch.setattr(Tensors, "stored", read)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 9))
    feeds = {"input_ids": ids, "position_ids": np.tile(np.arange(9), (2, 1))}
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    for each in (graph, graph.loaded()):
        assert_close(each.run(feeds)["logits"].astype(np.float32), expected, **ENGINE)


def test_rows_of_constants_are_read_in_parts() -> None:
    numbers = np.arange(24, dtype=np.float32).reshape(6, 4)
    upper = UnreadConstant("upper", ir.DataType.FLOAT, (3, 4), lambda: numbers[:3])
    lower = UnreadConstant("lower", ir.DataType.FLOAT, (3, 4), lambda: numbers[3:])
    stacked = Stacked([rows_of(upper), rows_of(lower)])
    whole = UnreadConstant("whole", ir.DataType.FLOAT, stacked.shape, lambda: stacked)
    assert np.array_equal(whole.numpy(), numbers)
    assert whole.tobytes() == numbers.tobytes()
    assert np.array_equal(rows_of(whole)[2:5], numbers[2:5])
    assert rows_of(whole)[6:9].shape == (0, 4)
    first = FirstRows(stacked, 4)
    assert first.shape == (4, 4)
    assert np.array_equal(first[2:9], numbers[2:4])
