"""Real engines, built by TensorRT-RTX on a machine without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graph, read_partitions
from adaptc.runtime.backends.cuda.driver.device import Device
from adaptc.runtime.backends.tensorrt.build import BuildProgress, build_engines, decide
from adaptc.runtime.backends.tensorrt.build_report import BuildReport
from adaptc.runtime.backends.tensorrt.engines import EngineFolder
from adaptc.runtime.backends.tensorrt.layers import DATA_DEPENDENT, kinds
from adaptc.runtime.backends.tensorrt.partition_runner import TensorRtRunner
from adaptc.runtime.backends.tensorrt.sizes import buckets, wanted
from adaptc.runtime.bundle.built import add_built
from adaptc.runtime.errors import BundleError, EngineError, RequestError
from tests.fakes.cuda import FakeCuda
from tests.models import gated_bundle, tiny, trt_bundle

pytest.importorskip("tensorrt_rtx", reason="pip install 'adaptc[rtx]'")
EVERY = (86, 89, 120)
CHUNK = 40
"""More than the rows that are multiplied without an engine."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gates everywhere, so that each partition has few layers to build."""
    folder = tmp_path_factory.mktemp("rtx")
    made = trt_bundle.program("llama", gated=True)
    bundle = trt_bundle.write(folder / "bundle", made, trt_bundle.GATES)
    build_engines(bundle, "tensorrt-rtx", sm=EVERY, kv_buckets=(16,), batches=(1,), chunk=CHUNK, whole=True)
    return bundle


def layers(bundle: Any, name: str) -> list[tuple[str, ...]]:
    return [r.layers for r in EngineFolder(bundle.path, "tensorrt-rtx").records() if r.name == name]


def test_every_partition_is_built_for_steps_and_prompts(bundle: Any) -> None:
    built = EngineFolder(bundle.path, "tensorrt-rtx").records()
    assert {r.name for r in built} == set(read_partitions(bundle, "lm").graphs)
    assert {r.sm for r in built} == {EVERY}
    assert {r.sizes["tokens"] for r in built if r.name == "head"} == {(1, 1, 1), (1, CHUNK, CHUNK)}


def test_nothing_waits_for_the_host(bundle: Any) -> None:
    for name in read_partitions(bundle, "lm").graphs:
        for each in layers(bundle, name):
            assert each
            assert not kinds(each) & DATA_DEPENDENT


def test_gemms_with_weights_are_in_engines_of_their_own(bundle: Any) -> None:
    def gemms(name: str) -> int:
        step = min(layers(bundle, name), key=len)
        return sum("MulSum" in each or each.startswith("gemm") for each in step)

    graphs = read_partitions(bundle, "lm").graphs
    weights = {name for name, graph in graphs.items() if graph.gemm}
    assert {name: gemms(name) for name in weights} == dict.fromkeys(weights, 1)
    others = {name for name in graphs if name != "whole" and gemms(name)} - weights
    assert others == {
        "partition_2",
        "partition_5",
        "cheap",
    }  # attention, a gate's logit, and what is too narrow for the kernel
    # They are for prompts: a step multiplies without engines.
    assert [len(layers(bundle, name)) for name in graphs if graphs[name].gemm] == [1, 1, 1]


def test_the_cache_is_not_turned(bundle: Any) -> None:
    step = min(layers(bundle, "partition_2"), key=len)
    assert not [each for each in step if each.startswith("kgen __myl_Tran_")]


def test_a_second_build_finds_all_of_them(bundle: Any) -> None:
    seen: list[BuildProgress] = []
    build_engines(bundle, "tensorrt-rtx", sm=EVERY, kv_buckets=(16,), batches=(1,), chunk=CHUNK, observe=seen.append)
    assert seen
    assert all(progress.cached for progress in seen)


def test_a_build_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    bundle = trt_bundle.write(tmp_path / "bundle", trt_bundle.program("llama", gated=True), trt_bundle.GATES)

    def stop(progress: BuildProgress) -> None:
        if progress.record.name == "partition_2":
            raise KeyboardInterrupt

    sizes: dict[str, Any] = {"sm": (86,), "kv_buckets": (16,), "batches": (1,), "chunk": 1}
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, "tensorrt-rtx", **sizes, observe=stop)
    seen: list[BuildProgress] = []
    build_engines(bundle, "tensorrt-rtx", **sizes, observe=seen.append)
    assert [p.cached for p in seen] == [True] * 2 + [False] * 7
    assert not list((bundle.path / "engines").rglob("*.partial"))


def test_bf16_and_a_model_without_gates(tmp_path: Path) -> None:
    bundle = trt_bundle.write(tmp_path / "bundle", trt_bundle.program("qwen3", half="bf16"))
    built = build_engines(bundle, "tensorrt-rtx", sm=(120,), kv_buckets=(16,), batches=(2,), chunk=1)
    assert [record.name for record in built] == [*(f"partition{n}" for n in ("", "_2", "_3", "_4", "_5", "_6")), "head"]


def test_the_command(bundle: Any) -> None:
    given = ["--sm", "86,89,120", "--batch", "1", "--kv-buckets", "16", "--chunk", str(CHUNK)]
    command = ["build", str(bundle.path), *given]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert {record["name"] for record in json.loads(done.stdout)} == {*read_partitions(bundle, "lm").graphs} - {"whole"}
    assert CliRunner().invoke(main, command).stdout.startswith(f"{bundle.path}: 21 engines for tensorrt-rtx; ")
    last = CliRunner().invoke(main, command).stdout.splitlines()[-1]
    assert last == "mode on_device: the GPU is not known, so nothing was measured"
    refused = CliRunner().invoke(main, [*command, "--mode", "in_engine"])
    assert (refused.exit_code, refused.stderr.partition(";")[0]) == (1, "Error: mode: 'in_engine'")
    renamed = CliRunner().invoke(main, ["build", str(bundle.path), "--slots", "16"])
    assert (renamed.exit_code, "--slots is called --kv-buckets now" in renamed.stderr) == (2, True)
    wrong = CliRunner().invoke(main, ["build", str(bundle.path), "--sm", "8.6"])
    assert wrong.exit_code == 2
    assert "whole numbers with commas are right" in wrong.stderr


def gpu(driver: int, sm: int = 90) -> Device:
    return Device("NVIDIA H200", sm, driver, 1 << 37)


def test_auto_takes_static_only_where_a_driver_lacks_the_nodes_that_gates_need(bundle: Any, tmp_path: Path) -> None:
    on_device = BuildReport("on_device", "the GPU reads the gates itself")
    assert decide(bundle, "auto", gpu(12080)) == on_device
    # These gates have cheap paths, so a node has two bodies.
    assert decide(bundle, "auto", gpu(12040)) == BuildReport("one_step_late", "driver 12040 has no conditional nodes")
    assert decide(bundle, "auto", None) == BuildReport("on_device", "the GPU is not known, so nothing was measured")
    assert decide(bundle, "on_device", gpu(12000)) == BuildReport("on_device", "asked for")
    assert decide(bundle, "one_step_late", gpu(13000)) == BuildReport("one_step_late", "asked for")
    made = trt_bundle.program_of(gating.static(tiny.fx("llama"), {1: 1.0}, {}))
    zeros = trt_bundle.write(tmp_path / "zeros", made, trt_bundle.GATES)  # GEMMs read their gate themselves
    assert decide(zeros, "auto", gpu(12000)) == on_device
    assert decide(zeros, "auto", gpu(12000, sm=75)) == BuildReport(
        "one_step_late", "driver 12000 has no conditional nodes"
    )


def test_modes_that_there_are_not(tmp_path: Path, bundle: Any) -> None:
    with pytest.raises(
        RequestError, match=r"mode: 'in_engine'; an engine with If .*: on_device, one_step_late or auto is right"
    ):
        build_engines(bundle, "tensorrt-rtx", sm=(86,), mode="in_engine")
    with pytest.raises(RequestError, match="mode: 'fast'; there are: on_device, one_step_late, auto"):
        build_engines(bundle, "tensorrt-rtx", sm=(86,), mode="fast")
    for old, new in (("regions", "on_device"), ("static", "one_step_late")):
        with pytest.raises(RequestError, match=f"mode: '{old}' is called '{new}' now"):
            build_engines(bundle, "tensorrt-rtx", sm=(86,), mode=old)
    bare = trt_bundle.write(tmp_path / "bare", trt_bundle.program("llama"))
    with pytest.raises(RequestError, match=r"mode: 'one_step_late'; no gate .* decides at each token: on_device or"):
        build_engines(bare, "tensorrt-rtx", sm=(86,), mode="one_step_late")
    assert decide(bare, "auto", gpu(12000)).mode == "on_device"


def test_a_session_takes_the_mode_of_the_newest_build_and_engines_of_any(tmp_path: Path) -> None:
    bundle = trt_bundle.write(tmp_path / "bundle", trt_bundle.program("llama", gated=True), trt_bundle.GATES)
    folder = EngineFolder(bundle.path, "tensorrt-rtx")
    assert folder.report().mode == "on_device"
    sizes: dict[str, Any] = {"sm": (89,), "kv_buckets": (16,), "batches": (1,), "chunk": 1}
    first = build_engines(bundle, "tensorrt-rtx", **sizes)
    seen: list[BuildProgress] = []
    assert build_engines(bundle, "tensorrt-rtx", **sizes, mode="one_step_late", observe=seen.append) == first
    assert all(progress.cached for progress in seen)
    assert len(folder.records()) == len(list(folder.path.glob("*.plan"))) == len(first)
    assert folder.report() == BuildReport("one_step_late", "asked for")
    cuda = FakeCuda(replace(FakeCuda().device, sm=89))
    runner = TensorRtRunner(bundle, read_partitions(bundle, "lm").graphs, "tensorrt-rtx", cuda)
    assert (runner.rows(), runner.kv_buckets()) == ((1,), (16,))
    report = bundle.path / "engines" / "tensorrt-rtx.json"
    for damaged in ("{", "[]", '{"mode": "fast", "why": ""}'):
        report.write_text(damaged)
        add_built(bundle.path, ["engines/tensorrt-rtx.json"])
        with pytest.raises(EngineError, match=r"tensorrt-rtx\.json: damaged \(.*\); run adaptc build again"):
            folder.report()


def test_a_capability_it_does_not_know(bundle: Any) -> None:
    with pytest.raises(EngineError, match=r"sm: 90; tensorrt-rtx .* builds for 75, 80, 86, 89, 120, 121"):
        build_engines(bundle, "tensorrt-rtx", sm=(90,), kv_buckets=(16,), chunk=1)


def test_a_graph_that_it_cannot_read_is_named(bundle: Any, tmp_path: Path) -> None:
    from adaptc.runtime.backends.tensorrt.library import Profile, Trt

    with pytest.raises(EngineError, match=r"tensorrt-rtx .*: cannot read the graph: .+"):
        Trt("tensorrt-rtx").build(b"no graph", Profile.fixed({}), (86,))


def test_no_gpu_and_no_capability(bundle: Any) -> None:
    with pytest.raises(EngineError, match=r"cuda.*; or say --sm 86,89,120, which needs no GPU"):
        build_engines(bundle, "tensorrt-rtx")


def test_a_bundle_for_a_cpu_is_refused(tmp_path: Path) -> None:
    bundle = gated_bundle.write(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"compiled for onnxruntime; compile with target\.backend: tensorrt"):
        build_engines(bundle, "tensorrt-rtx", sm=(86,))


def test_sizes_that_cannot_be(bundle: Any) -> None:
    with pytest.raises(RequestError, match="KV buckets from 1 to the bundle's max_tokens, 64"):
        build_engines(bundle, "tensorrt-rtx", sm=(86,), kv_buckets=(65,))


def find(bundle: Any, here: tuple[str, int, str], **sizes: int) -> str:
    folder, partitions = EngineFolder(bundle.path, "tensorrt-rtx"), read_partitions(bundle, "lm")
    given = {"batch": 1, "tokens": 1, "kv_bucket": 16} | sizes
    return folder.find(folder.records(), bundle, partitions.graphs["partition_2"], given, here).key


def test_why_no_engine_serves_is_one_line(bundle: Any) -> None:
    import tensorrt_rtx

    here = tensorrt_rtx.__version__, 89, "NVIDIA L4"
    assert find(bundle, here)
    mend = "run adaptc build .* --target tensorrt-rtx on this machine"
    with pytest.raises(EngineError, match=f"its engines are of .*, here is 0.1; {mend}"):
        find(bundle, ("0.1", *here[1:]))
    with pytest.raises(EngineError, match=f"engines are for compute capability 86, 89, 120, here is H200 .90.; {mend}"):
        find(bundle, (here[0], 90, "H200"))
    with pytest.raises(EngineError, match=f"no engine for batch 1, kv_bucket 32, tokens 1; {mend} with these sizes"):
        find(bundle, here, kv_bucket=32)


def test_loading_says_why_no_engine_fits(tmp_path: Path, bundle: Any) -> None:
    partitions = read_partitions(bundle, "lm")
    with pytest.raises(EngineError, match=r"its engines are for compute capability 86, 89, 120, here is Fake \(90\)"):
        TensorRtRunner(bundle, partitions.graphs, "tensorrt-rtx", FakeCuda())
    bare = trt_bundle.write(tmp_path / "bare", trt_bundle.program("llama"))
    with pytest.raises(EngineError, match=r"no tensorrt-rtx engines; run adaptc build .*bare --target tensorrt-rtx"):
        TensorRtRunner(bare, read_partitions(bare, "lm").graphs, "tensorrt-rtx", FakeCuda())


def test_loading_finds_the_sizes_that_were_built(bundle: Any) -> None:
    cuda = FakeCuda(replace(FakeCuda().device, sm=89))
    runner = TensorRtRunner(bundle, read_partitions(bundle, "lm").graphs, "tensorrt-rtx", cuda)
    assert (runner.rows(), runner.kv_buckets(), runner.tokens()) == ((1,), (16,), CHUNK)
    # There is no GPU, so the library itself refuses; its reason is passed on in one line.
    with pytest.raises(EngineError, match=r"\.plan: tensorrt-rtx cannot load it: [^\n]+$"):
        runner.load("partition_4", {"batch": 1, "tokens": 1, "kv_bucket": 16})
    runner.close()


class Loaded:
    """An engine that needs as much memory as its graph's name says."""

    sizes: ClassVar[dict[str, int]] = {"partition_4": 1000, "partition_2": 5000, "head": 100}

    def __init__(self, *given: Any) -> None:
        self.bytes = self.sizes[given[3].name]

    def use(self, address: int, size: int) -> None:
        self.place, self.size = address, size

    def close(self) -> None:
        pass


def test_memory_of_a_loaded_engine_stays_where_captured_graphs_have_it(bundle: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("adaptc.runtime.backends.tensorrt.partition_runner.Context", Loaded)
    cuda = FakeCuda(replace(FakeCuda().device, sm=89), limit=3000)
    runner = TensorRtRunner(bundle, read_partitions(bundle, "lm").graphs, "tensorrt-rtx", cuda)
    sizes = {"batch": 1, "tokens": 1, "kv_bucket": 16}
    runner.load("partition_4", sizes)
    loaded: dict[str, Any] = runner._loaded
    [first] = loaded.values()
    place = first.place
    with pytest.raises(EngineError, match="out of GPU memory"):
        runner.load("partition_2", sizes)
    cuda.limit = 30_000  # somebody else went: the session is as it was, and goes on
    runner.load("partition_2", sizes)
    runner.load("head", sizes)
    _, second, third = loaded.values()
    assert first.place == place
    assert place in cuda.live
    assert second.place == third.place != place
    assert second.size == 5000


def test_a_damaged_engine_is_named(tmp_path: Path, bundle: Any) -> None:
    folder = EngineFolder(bundle.path, "tensorrt-rtx")
    record = folder.records()[0]
    content = folder.plan(record).read_bytes()
    folder.plan(record).write_bytes(content[:-1] + b"?")
    try:
        with pytest.raises(EngineError, match=r"\.plan: damaged; remove .* and run adaptc build again"):
            folder.read(record)
    finally:
        folder.plan(record).write_bytes(content)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = EngineFolder(tmp_path, "tensorrt")
    folder.path.mkdir(parents=True)
    (folder.path / "0.json").write_text('{"graph": "x"}')
    assert folder.records() == []
    add_built(tmp_path, ["engines/tensorrt/0.json"])
    with pytest.raises(EngineError, match=r"0\.json: damaged \(name: missing\); remove it and run adaptc build again"):
        folder.records()


def test_sizes_of_the_cache_are_doubled_up_to_all_of_it() -> None:
    assert buckets(64) == (64,)
    assert buckets(2048) == (256, 512, 1024, 2048)
    assert buckets(700) == (256, 512, 700)


def test_a_graph_without_a_cache_is_built_once_for_all_sizes_of_it(bundle: Any) -> None:
    partitions = read_partitions(bundle, "lm")
    assert len(wanted(partitions.graphs["partition_4"], (1, 2), (16, 64), 8)) == 3
    assert len(wanted(partitions.graphs["partition_2"], (1, 2), (16, 64), 8)) == 5
    assert decoder_graph(bundle)[1].max_tokens == 64
