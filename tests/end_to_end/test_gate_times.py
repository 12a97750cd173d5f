"""Which mode a build takes, by a clock that is part of the fake GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.passes.skip_ffn import gating
from adaptc.runtime import load
from adaptc.runtime.backends.cuda.bundle_partitions import graphs_of, partitions_of
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.loading import cuda_decoder
from adaptc.runtime.backends.tensorrt.build import BuildProgress, build_engines
from adaptc.runtime.backends.tensorrt.build_report import BuildReport, StepTimes, judged
from adaptc.runtime.backends.tensorrt.engines import EngineFolder
from adaptc.runtime.backends.tensorrt.gate_times import RUN, measure, measured
from adaptc.runtime.backends.tensorrt.library import Built
from adaptc.runtime.bundle.built import BUILT
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.budget import share_of
from adaptc.runtime.text.sampling import Sampler, Sampling
from tests.fakes.partition_runner import FakeRunner
from tests.fakes.timed_cuda import TimedCuda
from tests.models import tiny, trt_bundle

MS = 1e-3
GATES = replace(trt_bundle.GATES, blocks=4, budget=0.0)
"""Two of four blocks have a gate, and by default half of all are skipped: all that have one."""

BLOCK = {"skinny_gemm": 1 * MS, "cheap": 0.25 * MS, "decide": 0.125 * MS}
"""A gated block is two GEMMs and an engine; its cheap path is an engine."""

TIMES = StepTimes(2, dense=10 * MS, on_device=(11 * MS, 7 * MS), one_step_late=(10.5 * MS, 8.5 * MS), fixed=6 * MS)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the fake are slow, and all take the same time."""
    monkeypatch.setattr("adaptc.runtime.backends.tensorrt.gate_times.STEPS", 2)
    monkeypatch.setattr("adaptc.runtime.backends.tensorrt.gate_times.TURNS", 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("timed")
    return trt_bundle.write(folder / "bundle", trt_bundle.program("llama", gated=True), GATES, backend="tensorrt")


def timed(bundle: Bundle, takes: dict[str, float], send: float = 0.0, driver: int = 13000) -> StepTimes:
    cuda = TimedCuda(takes=takes, send=send)
    cuda.device = replace(cuda.device, driver=driver)
    decoder = cuda_decoder(*on(cuda, bundle), 1, 8)
    assert isinstance(decoder, GpuDecoder)
    return measure(decoder, 64, lambda: cuda.now)


def on(cuda: TimedCuda, bundle: Bundle) -> tuple[TimedCuda, FakeRunner, Bundle, Any]:
    parts = partitions_of(bundle)
    return cuda, FakeRunner(cuda, bundle.path, graphs_of(parts), (1,), (64,)), bundle, parts


def near(times: StepTimes) -> Any:
    return pytest.approx([times.dense, *times.on_device, *times.one_step_late, times.fixed])


def test_a_gate_and_what_it_skips_are_timed_apart(bundle: Bundle) -> None:
    # Three layers of five GEMMs and the head's: two of the blocks, of two GEMMs each, are gated.
    dense, gates, skipped = 13 * MS, 2 * (0.125 + 0.5) * MS, (4 - 2 * 0.25) * MS
    found = timed(bundle, BLOCK | {"node": 0.5 * MS})
    late = dense + 2 * 0.125 * MS
    expected = StepTimes(2, dense, (dense + gates, dense + gates - skipped), (late, late - skipped), dense - skipped)
    assert [found.dense, *found.on_device, *found.one_step_late, found.fixed] == near(expected)
    assert found.cost("on_device") == pytest.approx(0.625 * MS)
    assert found.saved("on_device") == pytest.approx(1.75 * MS)
    assert found.cost("one_step_late") == pytest.approx(0.125 * MS)


def test_the_host_sends_a_captured_step_once_and_a_new_mask_piece_by_piece(bundle: Bundle) -> None:
    found = timed(bundle, {}, send=1 * MS)
    assert [found.dense, *found.on_device, found.fixed] == pytest.approx([2 * MS] * 4)  # a graph and an event
    assert found.one_step_late[0] > found.one_step_late[1] > 20 * MS


def test_a_host_that_waits_for_each_gate_is_timed_so(bundle: Bundle) -> None:
    found = timed(bundle, {}, send=1 * MS, driver=12000)
    assert found.dense == pytest.approx(2 * MS)
    assert found.on_device == pytest.approx(found.one_step_late)


def test_gemms_that_read_their_gate_are_timed_so(tmp_path: Path) -> None:
    made = trt_bundle.program_of(gating.static(tiny.fx("llama"), {1: 1.0, 2: -1.0}, {}))
    found = timed(trt_bundle.write(tmp_path / "zeros", made, GATES), BLOCK)
    assert [found.dense, *found.on_device] == pytest.approx([13 * MS, 13.25 * MS, 9.25 * MS])


def test_nodes_that_cost_more_than_they_save_leave_static(bundle: Bundle) -> None:
    found = judged(timed(bundle, BLOCK | {"node": 5 * MS}), GATES)
    assert (found.mode, found.dense) == ("one_step_late", False)


def test_a_cache_without_room_after_the_warm_up(bundle: Bundle) -> None:
    decoder = cuda_decoder(*on(TimedCuda(), bundle), 1, 8)
    assert isinstance(decoder, GpuDecoder)
    with pytest.raises(EngineError, match="kv_bucket: 7; gates warm up for 4 positions, more are right"):
        measure(decoder, 7)


@pytest.mark.parametrize(
    ("changed", "mode", "dense"),
    [
        ({}, "on_device", False),
        ({"one_step_late": (10.5 * MS, 6.9 * MS)}, "one_step_late", False),
        ({"one_step_late": (10.5 * MS, 6.95 * MS)}, "on_device", False),  # less than times can tell apart
        ({"on_device": (14 * MS, 11 * MS), "one_step_late": (14 * MS, 12 * MS)}, "on_device", True),
        ({"on_device": (14 * MS, 9.95 * MS), "one_step_late": (14 * MS, 12 * MS)}, "on_device", True),
    ],
)
def test_the_quickest_mode_is_taken_and_none_that_does_not_pay(changed: dict[str, Any], mode: str, dense: bool) -> None:
    found = judged(replace(TIMES, **changed), GATES)
    assert (found.mode, found.dense) == (mode, dense)


def test_the_share_is_that_of_the_default_budget() -> None:
    # A quarter of all blocks is half of those with a gate; 0.5 costs 9 ms in either mode.
    half = replace(GATES, budget=0.5)
    assert share_of(half, half.budget) == 0.25
    slow = replace(TIMES, dense=9.05 * MS)
    assert judged(slow, half).dense
    assert not judged(slow, GATES).dense
    assert judged(replace(TIMES, one_step_late=(9 * MS, 8.5 * MS)), half).mode == "one_step_late"
    assert judged(replace(TIMES, one_step_late=(9 * MS, 8.5 * MS)), GATES).mode == "on_device"
    # Gates that skip nothing by default are judged by what whoever asks may get.
    assert judged(slow, replace(GATES, budget=1.0)) == judged(slow, GATES)


def test_the_line_says_what_was_found() -> None:
    assert judged(TIMES, GATES).line == (
        "mode on_device: gates pay: a step with 50% of the blocks skipped takes 7.000 ms on_device, "
        "8.500 ms one_step_late, 10.000 ms dense; in mode on_device a gate costs 500.0 µs and a skipped block saves "
        "2000.0"
    )
    refused = judged(replace(TIMES, dense=7 * MS), GATES).line
    assert refused.startswith("mode on_device, dense unless a budget is asked for: gates do not pay: a step with 50%")
    assert judged(TIMES, GATES, ("one_step_late",)).mode == "one_step_late"


class Machine:
    """This machine with a GPU and a library that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: dict[str, float]) -> None:
        self.takes, self.driver, self.limit = takes, 13000, 1 << 30
        self.made: list[TimedCuda] = []
        self.built = 0
        monkeypatch.setattr("adaptc.runtime.backends.cuda.driver.cuda.Cuda", self.cuda)
        monkeypatch.setattr("adaptc.runtime.backends.tensorrt.loading.Cuda", self.cuda)
        monkeypatch.setattr("adaptc.runtime.backends.tensorrt.loading.TensorRtRunner", self.runner)
        monkeypatch.setattr("adaptc.runtime.backends.tensorrt.build.Trt", self.library)
        monkeypatch.setattr("adaptc.runtime.backends.tensorrt.build.store_cubin", lambda *_: None)
        monkeypatch.setattr("adaptc.runtime.backends.tensorrt.gate_times.measure", self.measure)

    def cuda(self, cubins: Path | None = None) -> TimedCuda:
        made = TimedCuda(takes=self.takes, limit=self.limit)
        made.device = replace(made.device, driver=self.driver)
        self.made.append(made)
        return made

    def runner(self, bundle: Bundle, graphs: Any, flavour: str, cuda: TimedCuda) -> FakeRunner:
        return FakeRunner(cuda, bundle.path, graphs, (1, 2), (64,))

    def library(self, flavour: str) -> Any:
        def build(*_: Any) -> tuple[Built, bytes]:
            self.built += 1
            return Built(b"plan", ""), b""

        return SimpleNamespace(version="10.1", build=build, layers=lambda _: ("a layer",))

    def measure(self, decoder: GpuDecoder, most: int, clock: Callable[[], float]) -> StepTimes:
        return measure(decoder, most, lambda: self.made[-1].now)


SIZES: dict[str, Any] = {"batches": (1,), "kv_buckets": (64,), "chunk": 1}


@pytest.fixture
def copy(tmp_path: Path) -> Bundle:
    program = trt_bundle.program("llama", gated=True)
    return trt_bundle.write(tmp_path / "bundle", program, GATES, backend="tensorrt")


def report(bundle: Bundle) -> BuildReport:
    return EngineFolder(bundle.path, "tensorrt").report()


def test_a_build_with_a_card_measures_and_keeps_what_it_found(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, BLOCK)
    given = ["--batch", "1", "--kv-buckets", "64", "--chunk", "1"]
    done = CliRunner().invoke(main, ["build", str(copy.path), *given])
    assert done.exit_code == 0, done.output
    found = report(copy)
    assert found.times is not None
    assert found.times.on_device == pytest.approx((13.25 * MS, 9.75 * MS))
    assert (found.mode, found.dense) == ("on_device", False)
    assert done.stdout.splitlines()[-1] == found.line
    assert (
        "gates pay: a step with 50% of the blocks skipped takes 9.750 ms on_device, 9.750 ms one_step_late"
        in found.line
    )
    assert all(cuda.closed for cuda in machine.made)
    assert CliRunner().invoke(main, ["build", str(copy.path), *given, "--json"]).stderr.endswith(f"{found.line}\n")


def test_a_driver_without_nodes_gets_static_and_a_verdict(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, BLOCK).driver = 12000
    build_engines(copy, "tensorrt", **SIZES)
    assert (report(copy).mode, report(copy).dense) == ("one_step_late", False)
    assert report(copy).times is not None


def test_gates_that_do_not_pay_leave_sessions_dense_unless_asked(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, BLOCK | {"decide": 9 * MS})
    build_engines(copy, "tensorrt", **SIZES)
    assert report(copy).dense

    def decides(**options: Any) -> int:
        with load(copy.path, verify=False, batch=1) as session:
            session.generate([3, 17, 42, 9, 11, 5], max_new_tokens=6, **options)
            return machine.made[-1].log.count("decide")

    assert decides() == 0
    assert decides(budget=0.5) > 0
    build_engines(copy, "tensorrt", **SIZES, mode="on_device")  # who asks for a mode gets it, and the gates
    assert report(copy) == BuildReport("on_device", "asked for")
    assert decides() > 0


def test_what_cannot_be_measured_is_said_and_engines_stay(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, BLOCK)
    machine.limit = 1000
    made = build_engines(copy, "tensorrt", **SIZES)
    assert len(EngineFolder(copy.path, "tensorrt").records()) == len(made)
    assert report(copy) == BuildReport(
        "on_device",
        "the GPU reads the gates itself; nothing was measured: cuda: cannot allocate: out of GPU memory",
    )


def test_steps_of_routes_are_not_timed() -> None:
    stitched: Any = SimpleNamespace(manifest=SimpleNamespace(switch=object()))
    found = measured(stitched, BuildReport("on_device", "because"), 1, 64)
    assert found == BuildReport("on_device", "because; nothing was measured: steps of several routes are not timed")


def test_nothing_is_measured_where_no_gate_decides_or_a_mode_is_given(
    tmp_path: Path, copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, BLOCK)
    bare = trt_bundle.write(tmp_path / "bare", trt_bundle.program("llama"), backend="tensorrt")
    build_engines(bare, "tensorrt", **SIZES)
    assert report(bare) == BuildReport("on_device", "no gate decides at each token")
    build_engines(copy, "tensorrt", **SIZES, mode="one_step_late")
    assert report(copy) == BuildReport("one_step_late", "asked for")
    assert not any(cuda.graphs or cuda.now for cuda in machine.made)


def test_modes_share_engines(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, folder = Machine(monkeypatch, BLOCK), EngineFolder(copy.path, "tensorrt")
    build_engines(copy, "tensorrt", **SIZES, mode="on_device")
    files, built = sorted(folder.path.iterdir()), machine.built
    seen: list[BuildProgress] = []
    build_engines(copy, "tensorrt", **SIZES, mode="one_step_late", observe=seen.append)
    assert all(progress.cached for progress in seen)
    assert (sorted(folder.path.iterdir()), machine.built) == (files, built)
    assert folder.report().mode == "one_step_late"


def test_only_engines_that_the_index_names_are_read(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are code: what lies there without having been built here is none."""
    Machine(monkeypatch, BLOCK)
    folder = EngineFolder(copy.path, "tensorrt")
    [*_, record] = build_engines(copy, "tensorrt", **SIZES, mode="on_device")
    known = folder.records()
    folder.plan(record).with_name("0.plan").write_bytes(b"plan")
    folder.plan(record).with_name("0.json").write_bytes(folder.plan(record).with_suffix(".json").read_bytes())
    assert folder.records() == known
    (copy.path / BUILT).unlink()
    assert folder.records() == []
    assert folder.report() == BuildReport("on_device", "nothing was built")
    assert len(build_engines(copy, "tensorrt", **SIZES, mode="on_device")) == len(known) == len(folder.records())


def test_a_mask_is_forgotten(bundle: Bundle) -> None:
    decoder = cuda_decoder(*on(cuda := TimedCuda(), bundle), 1, 8, "one_step_late")
    assert isinstance(decoder, GpuDecoder)
    decoder.prefill(0, np.zeros(4, np.int64), RUN)
    token = [0]
    for _ in range(3):
        token = decoder.choose(token, [Sampler(Sampling(), [], np.random.default_rng(0))])
    assert any(cuda.graphs)
    decoder.graph.captured.forget(decoder.graph.execution_mode(1, 0))
    assert not any(cuda.graphs)
