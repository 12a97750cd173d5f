"""A stitched bundle for TensorRT: its parts against the whole, and a session on a fake GPU against one on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler import pipeline
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.partitions import run_split
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.lower.lower import Lower
from adaptc.passes.targets.legalize import Legalize
from adaptc.passes.targets.partition import Partition
from adaptc.runtime.backends.cuda.bundle_partitions import graphs_of, partitions_of, read_partitions
from adaptc.runtime.backends.cuda.loading import cuda_decoder
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.tensorrt.engines import content_of
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import tokenizer_of
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import read_spec
from tests.fakes.cuda import FakeCuda
from tests.fakes.partition_runner import FakeRunner
from tests.gpu.answers import mixed
from tests.models import stitched
from tests.passes.stitch.test_stitch import Gating

ROUTES = list(stitched.ROUTES)
PROMPTS = [np.random.default_rng(n).integers(2, 300, n).tolist() for n in (5, 3, 9, 1, 7, 12, 4, 6)]
COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched")
    stitched.write(folder)
    return folder


def build(folder: Path, into: str, *settings: str) -> Bundle:
    spec = read_spec(folder / "model.yaml", settings)
    return compile_spec(spec, folder, folder / into, Cache(folder / "cache")).bundle


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return build(folder, "gpu", "target.backend=tensorrt-rtx", "target.weights=fp16", "target.batch=4")


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Iterator[Session]:
    """The same routes as the CPU target runs them, in float32."""
    with runtime.load(build(folder, "cpu").path, threads=1, batch=4) as session:
        yield session


class Gpu:
    """A session on the fake, with what it was made of."""

    def __init__(self, bundle: Bundle, batch: int = 4, limit: int = 1 << 30) -> None:
        self.cuda, parts = FakeCuda(limit=limit), partitions_of(bundle)
        self.runner = FakeRunner(self.cuda, bundle.path, graphs_of(parts), (1, 2, 4), (16, 32, 64))
        rows = cuda_decoder(self.cuda, self.runner, bundle, parts, batch, 8)
        assert isinstance(rows, GpuRoutes)
        self.rows = rows
        self.session = Session(rows, tokenizer_of(bundle))


@pytest.fixture(scope="module")
def gpu(bundle: Bundle) -> Gpu:
    return Gpu(bundle)


def agree(mine: tuple[int, ...] | list[int], other: tuple[int, ...] | list[int]) -> None:
    """Half precision here and float32 there, random weights: the tokens are the same all the same."""
    assert list(mine) == list(other)


@pytest.mark.parametrize("route", ROUTES)
def test_tokens_of_a_route_are_those_of_the_cpu(gpu: Gpu, cpu: Session, route: str) -> None:
    for prompt in PROMPTS[:3]:
        mine, other = (each.generate(prompt, max_new_tokens=COUNT, route=route) for each in (gpu.session, cpu))
        agree(mine.ids, other.ids)
        assert mine.trace.routes == other.trace.routes == ((0, route),)
    assert gpu.session.routes == cpu.routes == tuple(ROUTES)


def test_the_router_picks_as_on_the_cpu(gpu: Gpu, cpu: Session) -> None:
    picks = set()
    for prompt in PROMPTS:
        mine, other = gpu.session.choose(prompt), cpu.choose(prompt)
        assert mine.route == other.route
        np.testing.assert_allclose(list(mine.losses.values()), list(other.losses.values()), atol=0.02)
        for budget in (None, 0.0, 1.0):
            traces = [each.generate(prompt, max_new_tokens=2, budget=budget).trace for each in (gpu.session, cpu)]
            assert traces[0].routes == traces[1].routes
        picks.add(mine.route)
    assert len(picks) > 1, "or the router would not matter"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_of_mixed_routes_is_that_of_the_cpu(bundle: Bundle, cpu: Session, batch: int) -> None:
    """Rows come and go: eight prompts of several lengths and routes, four or one at a time."""
    requests = [(prompt, ROUTES[index % 4]) for index, prompt in enumerate(PROMPTS)]
    gpu = Gpu(bundle, batch)
    for mine, other in zip(mixed(gpu.session, requests, COUNT), mixed(cpu, requests, COUNT), strict=True):
        agree(mine, other)


def test_a_stream_changes_its_route_on_the_way(gpu: Gpu, cpu: Session) -> None:
    def streamed(session: Session, prompt: list[int]) -> tuple[tuple[int, ...], tuple[tuple[int, str], ...]]:
        stream = session.generate(prompt, max_new_tokens=20, route="large", stream=True)
        for place, _ in enumerate(stream):
            stream.reroute(("small", "large")[place % 2])
        return stream.result.ids, stream.result.trace.routes

    def written(session: Session) -> list[int]:
        rows, ids = session._decoder, list(PROMPTS[2])
        ids.append(int(rows.start(0, np.array(ids), RequestOptions(route="large")).argmax()))
        for route in ("large", "small", "small", "large", "sandwich"):
            rows.reroute(0, route)
            ids.append(int(rows.decode(ids[-1:])[0].argmax()))
        return ids

    found = [streamed(gpu.session, prompt) for prompt in PROMPTS[:4]]
    assert found == [streamed(cpu, prompt) for prompt in PROMPTS[:4]]
    assert max(len(routes) for _, routes in found) > 2
    agree(written(gpu.session), written(cpu))


def test_scores_are_those_of_the_cpu(gpu: Gpu, cpu: Session) -> None:
    ids = np.random.default_rng(3).integers(2, 300, 40).tolist()
    for route in ("large", "small"):
        for step in (False, True):
            mine, other = (each.score(ids, route=route, step=step).values for each in (gpu.session, cpu))
            np.testing.assert_allclose(mine, other, atol=0.05)


def test_one_graph_for_the_trunk_and_one_for_each_route(bundle: Bundle) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(PROMPTS[0], max_new_tokens=4, route="large")
    gpu.session.generate(PROMPTS[0], max_new_tokens=4, route="short")
    trunk, large, short = ([name for name, _ in graph] for graph in gpu.cuda.graphs)
    assert (trunk[0], *trunk[-2:]) == ("begin_step", "keep_states", "write_kv")
    for tail in (large, short):
        assert (*tail[:2], *tail[-3:]) == ("begin_step", "take_states", "highest", "choose", "write_kv")
    assert {name.partition("/")[0] for name in trunk if "/" in name} == {"trunk"}
    assert {name.partition("/")[0] for name in large if "/" in name} == {"tail.large"}
    assert len(short) < len(large)


def test_the_next_step_is_launched_before_the_last_token_is_read(bundle: Bundle) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(PROMPTS[0], max_new_tokens=5, route="large")
    order = [entry for entry in gpu.cuda.log if entry.startswith(("launch", "wait"))]
    step = ["launch 1", "launch 2"]
    assert order[:8] == [*step, *step, "wait", *step, "wait"]


def test_rows_of_a_route_share_a_step_and_the_trunk_runs_once_for_all(bundle: Bundle) -> None:
    gpu = Gpu(bundle)
    mixed(gpu.session, [(PROMPTS[0], "large"), (PROMPTS[1], "short"), (PROMPTS[2], "large")], 5)
    launches = [entry for entry in gpu.cuda.log if entry.startswith("launch")]
    assert launches[:3] == ["launch 1", "launch 2", "launch 3"]  # trunk, large with two rows, short


def test_weights_are_there_once(bundle: Bundle, gpu: Gpu) -> None:
    """Layers that two routes share, and an embedding that is a head too, are uploaded once."""
    distinct = {
        (weight.offset, weight.bytes)
        for name in bundle.manifest.graphs
        for weight in read_partitions(bundle, name).weights.values()
    }
    taken = gpu.rows.taken["weights"]
    assert taken <= sum(size for _, size in distinct)
    read = sum(sum(w.bytes for w in read_partitions(bundle, name).weights.values()) for name in bundle.manifest.graphs)
    assert taken < 0.8 * read, "routes do share weights, or this would show nothing"


def test_equal_partitions_of_several_parts_are_one_engine(bundle: Bundle) -> None:
    files = [graph.file for name in bundle.manifest.graphs for graph in read_partitions(bundle, name).graphs.values()]
    assert len({content_of(bundle, file) for file in files}) < 0.7 * len(files)


def test_closing_frees_everything(bundle: Bundle) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(PROMPTS[:3], max_new_tokens=4)
    taken = len(gpu.cuda.live)
    gpu.session.generate(PROMPTS[:3], max_new_tokens=4)
    assert len(gpu.cuda.live) == taken
    gpu.session.close()
    assert not gpu.cuda.live
    assert gpu.runner.closed


def test_gates_of_the_trunk_and_of_tails_decide_as_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = (Gating(), stitched.stitch(weights=str(folder / "stitch.safetensors")))
    monkeypatch.setattr(pipeline, "build_passes", lambda _: passes)
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.01e-3, 0.8e-3, 3))
    made = []
    for name, settings in (("gpu", ("target.backend=tensorrt-rtx", "target.weights=fp16")), ("cpu", ())):
        spec = read_spec(folder / "model.yaml", settings)
        made.append(compile_spec(spec, folder, folder / f"gated-{name}", Cache(folder / "other")).bundle)
    assert set(made[0].manifest.gates) == {"trunk", "tail.large", "tail.sandwich"}
    gpu = Gpu(made[0])
    with runtime.load(made[1].path, threads=1, batch=4) as cpu:
        shares = []
        for budget in (1.0, 0.5, 0.0):
            mine, other = (
                each.generate(PROMPTS[0], max_new_tokens=COUNT, budget=budget, route="large")
                for each in (gpu.session, cpu)
            )
            agree(mine.ids, other.ids)
            assert mine.trace.skips is not None
            assert other.trace.skips is not None
            np.testing.assert_array_equal(mine.trace.skips.ran, other.trace.skips.ran)
            shares.append(mine.trace.skips.share)
        assert shares[0] == 0 < shares[2]
        requests = [(prompt, ROUTES[index % 4]) for index, prompt in enumerate(PROMPTS[:4])]
        assert mixed(gpu.session, requests, COUNT) == mixed(cpu, requests, COUNT)


def test_too_little_memory_is_one_line(bundle: Bundle) -> None:
    with pytest.raises(runtime.EngineError, match="out of GPU memory"):
        Gpu(bundle, limit=500_000)


def test_pieces_of_each_part_are_the_part(folder: Path) -> None:
    passes = (Lower(), KvCache(max_tokens=16), FuseProjections(), Legalize(), Partition())
    pair = stitched.stitch(weights=str(folder / "stitch.safetensors"))
    program = Pipeline((pair, *passes)).run(stitched.program())
    assert set(program.partitions) == {"trunk", *(f"tail.{route}" for route in ROUTES)}
    assert program.partitions["trunk"].steps[-1].calls() == ()  # there is no head
    ids = np.random.default_rng(1).integers(2, 300, (1, 6))
    given: dict[str, Any] = {"input_ids": ids.astype(np.int32), "positions": np.arange(6, dtype=np.int32)[None]}
    given["cache_positions"] = np.arange(16, dtype=np.int32)
    for name in ("trunk", "tail.large", "tail.small"):
        graph = program.graph(name, OnnxGraph)
        feeds = {str(v.name): given[str(v.name)] for v in graph.model.graph.inputs if v.name in given}
        for value in graph.model.graph.inputs:
            if (value.name or "").startswith("past.") and value.shape is not None:
                shape = [16 if size == "kv_bucket" else size for size in (1, *map(_size, value.shape[1:]))]
                feeds[str(value.name)] = np.zeros(shape, np.float16)
        whole, pieces = graph.run(feeds), run_split(program.partitions[name], feeds)
        for output in whole:
            np.testing.assert_array_equal(pieces[output], whole[output])
        given |= {"hidden": whole["hidden"]} if name == "trunk" else {}


def _size(size: Any) -> Any:
    return size if isinstance(size, int) else str(size)


def test_real_engines_of_every_part_build_without_a_gpu(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'adaptc[rtx]'")
    from adaptc.runtime.backends.tensorrt.build import build_engines
    from adaptc.runtime.backends.tensorrt.layers import DATA_DEPENDENT, kinds
    from adaptc.runtime.backends.tensorrt.partition_runner import TensorRtRunner

    built = build_engines(bundle, "tensorrt-rtx", sm=(86, 89, 120), kv_buckets=(16,), batches=(1,), chunk=1)
    assert len({(record.graph, str(record.sizes)) for record in built}) == len(built), "equal partitions are built once"
    assert {record.name.partition("/")[0] for record in built} >= {"trunk", "tail.large", "tail.small"}
    for record in built:
        assert record.layers
        assert not kinds(record.layers) & DATA_DEPENDENT
    cuda = FakeCuda(replace(FakeCuda().device, sm=89))
    runner = TensorRtRunner(bundle, graphs_of(partitions_of(bundle)), "tensorrt-rtx", cuda)
    assert (runner.rows(), runner.kv_buckets()) == ((1,), (16,))
