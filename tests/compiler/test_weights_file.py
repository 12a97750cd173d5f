from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adaptc.compiler.data_file import PAGE, DataFile
from adaptc.compiler.weights_file import data_files_of, read_bytes_per_token, write_graph, write_graphs
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.passes import Pipeline
from adaptc.passes.quantize.float_weights import FloatWeights
from tests.close import ENGINE, assert_close
from tests.models import tiny


def test_graphs_share_the_bytes_of_their_weights(tmp_path: Path) -> None:
    graph = tiny.onnx(Pipeline((FloatWeights(),)).run(tiny.cached("llama-tied")))
    alone = write_graphs({"a": graph}, _folder(tmp_path / "one"), "lm.data")
    both = write_graphs({"a": graph, "b": graph}, _folder(tmp_path / "two"), "lm.data")
    assert both["a"] == both["b"] == alone["a"]
    sizes = [(tmp_path / name / "lm.data").stat().st_size for name in ("one", "two")]
    assert sizes[0] == sizes[1]
    assert len(both["a"]) < sizes[0]


def test_what_is_read_back_runs_and_gives_the_same(tmp_path: Path) -> None:
    graph = tiny.onnx(Pipeline((FloatWeights(),)).run(tiny.cached("qwen2")))
    (tmp_path / "a.onnx").write_bytes(write_graphs({"a": graph}, tmp_path, "lm.data")["a"])
    again = OnnxGraph(ir.load(tmp_path / "a.onnx"))
    ids = tiny.feeds(2, 9)["input_ids"]
    assert_close(tiny.step(again, ids)[0], tiny.step(graph, ids)[0], **ENGINE)


def test_tensors_start_on_pages(tmp_path: Path) -> None:
    graph = tiny.onnx(tiny.cached("llama"))
    (tmp_path / "a.onnx").write_bytes(write_graphs({"a": graph}, tmp_path, "lm.data")["a"])
    tensors = [v.const_value for v in ir.load(tmp_path / "a.onnx").graph.initializers.values()]
    external = [t for t in tensors if isinstance(t, ir.ExternalTensor)]
    assert len(external) > 10
    assert all((t.offset or 0) % PAGE == 0 for t in external)


def test_what_a_file_shall_not_hold_goes_to_the_next_one(tmp_path: Path) -> None:
    graph = tiny.onnx(Pipeline((FloatWeights(),)).run(tiny.cached("llama")))
    with data_files_of({"lm": graph}, tmp_path, "lm.data", most=3 * PAGE) as files:
        (tmp_path / "lm.onnx").write_bytes(write_graph(graph, files))
    names = files[""].names
    assert names[:2] == ("lm.data", "lm-2.data")
    assert len(names) > 3
    for name, record in files[""].records.items():
        content = (tmp_path / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    again = OnnxGraph(ir.load(tmp_path / "lm.onnx"))
    ids = tiny.feeds(2, 9)["input_ids"]
    assert_close(tiny.step(again, ids)[0], tiny.step(graph, ids)[0], **ENGINE)


def test_a_weight_that_graphs_share_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> ir.TensorProtocol:
        made.append(1)
        return ir.tensor(np.arange(2048, dtype=np.float32))

    tensor = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape([2048]), name="w")
    data = DataFile(tmp_path, "lm.data")
    assert data.add(tensor) == data.add(tensor) == ("lm.data", 0, 8192)
    assert data.add(ir.tensor(np.arange(2048, dtype=np.float32))) == ("lm.data", 0, 8192)
    assert data.add(tensor, "own") == ("lm.data", 8192, 8192)
    data.close()
    assert len(made) == 2
    assert (tmp_path / "lm.data").stat().st_size == 2 * 8192


def test_bytes_per_token_counts_a_table_by_one_row() -> None:
    graph = tiny.onnx(tiny.cached("llama"))
    weights = graph.model.graph.initializers
    everything = sum(int(np.prod(fixed(v))) * 4 for name, v in weights.items() if not name.startswith("rope."))
    table = tiny.VOCAB * 32 * 4
    rope = 2 * 8 * 4
    assert read_bytes_per_token(graph) == everything - table + 32 * 4 + rope


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
