"""From a spec to a bundle for TensorRT, and what a session on a fake GPU makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import PassError, SpecError
from adaptc.passes.targets.partition import Partition
from adaptc.runtime.backends.cuda.bundle_partitions import graphs_of, partitions_of, read_partitions
from adaptc.runtime.backends.cuda.loading import cuda_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.plan import Run
from adaptc.spec.reading import read_spec
from tests.fakes.cuda import FakeCuda
from tests.fakes.partition_runner import FakeRunner
from tests.models import folder, gated_bundle, trt_bundle

IDS = [5, 9, 40, 7, 101, 33]
SETTINGS = ("target.backend=tensorrt", "target.weights=fp16", "target.batch=2")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    spec, model = folder.write(tmp_path_factory.mktemp("tiny"))
    into = tmp_path_factory.mktemp("out")
    made = compile_spec(read_spec(spec, SETTINGS), spec.parent, into / "bundle", Cache(into / "cache"))
    return made.bundle, model


def test_it_generates_what_the_model_does(compiled: tuple[Bundle, Any]) -> None:
    bundle, model = compiled
    parts, cuda = partitions_of(bundle), FakeCuda()
    rows = cuda_decoder(cuda, FakeRunner(cuda, bundle.path, graphs_of(parts), (1, 2), (64,)), bundle, parts, 2, 8)
    with runtime.Session(rows) as session:
        result = session.generate(IDS, max_new_tokens=10)
    expected = folder.greedy(model, IDS, 10)
    assert list(result.ids) == expected[: expected.index(1) + 1 if 1 in expected else len(expected)]
    assert result.trace.skips is None


def test_the_manifest_says_what_it_is(compiled: tuple[Bundle, Any]) -> None:
    manifest = compiled[0].manifest
    assert manifest.target.backend == "tensorrt"
    assert manifest.target.weights == "fp16"
    assert [record.name for record in manifest.passes][-2:] == ["legalize", "partition"]
    assert {"partitions/lm.json", "partitions/lm-partition.onnx", "partitions/lm-head.onnx"} <= set(manifest.files)
    assert manifest.graphs["lm"].decoder is not None
    assert manifest.graphs["lm"].decoder.max_tokens == 64


def test_gates_of_a_spec_are_cut_at_and_not_branched(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    gated = "passes:\n  - skip_ffn: {policy: cosine, layers: [1, 2], k: 1, warmup: 2, budget: 0}\n"
    spec.write_text(spec.read_text().replace("target:", gated + "target:"))
    bundle = compile_spec(read_spec(spec, SETTINGS), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache")).bundle
    names = [record.name for record in bundle.manifest.passes]
    assert names[-1] == "partition"
    assert "branch" not in names
    assert len(read_partitions(bundle, "lm").gates) == len(bundle.manifest.gates["lm"].layers) > 0
    parts, cuda = partitions_of(bundle), FakeCuda()
    rows = cuda_decoder(cuda, FakeRunner(cuda, bundle.path, graphs_of(parts), (1, 2), (64,)), bundle, parts, 2, 8)
    with runtime.Session(rows) as session:
        skips = session.generate(IDS, max_new_tokens=6).trace.skips
    assert skips is not None
    assert skips.ran.shape[1] == len(bundle.manifest.gates["lm"].layers)


def test_without_a_gpu_loading_is_one_line(compiled: tuple[Bundle, Any]) -> None:
    with pytest.raises(runtime.EngineError, match=r"^(cuda|cuda-bindings|tensorrt): [^\n]+$"):
        runtime.load(compiled[0].path)


def test_a_device_that_it_was_not_compiled_for(compiled: tuple[Bundle, Any], tmp_path: Path) -> None:
    with pytest.raises(runtime.RequestError, match=r"device: 'cpu'; .* compiled for tensorrt: its device is 'gpu'"):
        runtime.load(compiled[0].path, device="cpu")
    for_cpu = gated_bundle.write(tmp_path / "cpu")
    with pytest.raises(runtime.BundleError, match=r"its model runs on a CPU only, or an older adaptc compiled it"):
        runtime.load(for_cpu.path, device="gpu")


@pytest.mark.parametrize(
    ("backend", "weights", "right"),
    [("tensorrt", "int4", "fp16, bf16"), ("onnxruntime", "bf16", "fp32, fp16, int8, int4")],
)
def test_weights_that_a_backend_does_not_run(tmp_path: Path, backend: str, weights: str, right: str) -> None:
    spec = tmp_path / "model.yaml"
    spec.write_text(f"version: 1\nmodels:\n  lm: {{source: m}}\ntarget: {{backend: {backend}, weights: {weights}}}\n")
    with pytest.raises(SpecError, match=f"target.weights: .*{backend} does not run {weights}"):
        read_spec(spec)


def test_routes_are_refused() -> None:
    made = trt_bundle.program("llama")
    program = replace(made, plan=(Run("lm"), Run("lm")), partitions={})
    with pytest.raises(PassError, match="plan: run lm; run lm; TensorRT runs one decoder, with or without routes"):
        Partition().apply(program)
