"""The executor on a GPU made of host memory: real partitions, the real kernels, real captured order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc.compiler.weights_file import write_graphs
from adaptc.ir import partitions
from adaptc.passes import Pipeline
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.runtime import RequestError, Sampling, Session
from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graph, graphs_of, partitions_of, read_partitions
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.loading import cuda_decoder
from adaptc.runtime.backends.cuda.memory import DeviceWeights
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.budget import threshold_at
from tests.fakes.cuda import FakeCuda
from tests.fakes.partition_runner import FakeRunner
from tests.models import skipping, tiny, trt_bundle
from tests.models.sessions import session_of

IDS = [3, 17, 42, 9, 11, 5, 23, 1, 1, 44, 2]
GATES = trt_bundle.GATES

ATTENTION = ["skinny_gemm", "partition_2", "skinny_gemm"]
BLOCK = ["skinny_gemm", "partition_4", "skinny_gemm"]
FIRST = ["partition", *ATTENTION, "partition_3", *BLOCK]
"""The first of three layers, which has no gate; the others have one before their block."""
SECOND = THIRD = ["partition_5", *ATTENTION, "partition_6"]
LAST = ["head", "skinny_gemm", "highest", "choose", "write_kv"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trt")
    return trt_bundle.write(folder / "bundle", trt_bundle.program("llama", gated=True), GATES)


@pytest.fixture(scope="module")
def cpu(bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The same model as the CPU target runs it, in float32."""
    folder = tmp_path_factory.mktemp("cpu")
    program = Pipeline((FloatWeights(), Branch())).run(skipping.lowered("llama", low_rank=True))
    (folder / "lm.onnx").write_bytes(write_graphs({"lm": skipping.onnx(program)}, folder, "lm.data")["lm"])
    with session_of(OrtEngine(folder / "lm.onnx"), decoder_graph(bundle)[1], batch=2, chunk=8, gates=GATES) as session:
        yield session


class Gpu:
    """A session on the fake, with what it was made of."""

    def __init__(
        self,
        bundle: Any,
        driver: int = 13000,
        batch: int = 2,
        mode: str = "on_device",
        built: tuple[int, ...] = (1, 2),
    ) -> None:
        self.cuda = FakeCuda(replace(FakeCuda().device, driver=driver))
        parts = partitions_of(bundle)
        self.runner = FakeRunner(self.cuda, bundle.path, graphs_of(parts), built, (16, 32, 64))
        decoder = cuda_decoder(self.cuda, self.runner, bundle, parts, batch, 8, mode)
        assert isinstance(decoder, GpuDecoder)
        self.decoder, self.part = decoder, decoder.graph
        self.session = Session(decoder)

    def captured(self) -> list[list[str]]:
        """The operations of each captured graph."""
        return [[name for name, _ in graph] for graph in self.cuda.graphs]


@pytest.fixture(scope="module")
def gpu(bundle: Any) -> Gpu:
    return Gpu(bundle)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 1.0},
        {"budget": 0.5},
        {"budget": 0.0},
        {"budget": 0.5, "sampling": Sampling(temperature=1.0), "seed": 3},
        {"budget": 0.0, "sampling": Sampling(temperature=0.8, top_k=20, top_p=0.9), "seed": 4},
        {"sampling": Sampling(temperature=0.9, min_p=0.05), "seed": 5},
        {"sampling": Sampling(temperature=0.8, repetition_penalty=1.3), "seed": 6},
    ],
)
def test_tokens_and_decisions_are_those_of_the_cpu(gpu: Gpu, cpu: Session, options: dict[str, Any]) -> None:
    mine = gpu.session.generate(IDS, max_new_tokens=30, **options)
    other = cpu.generate(IDS, max_new_tokens=30, **options)
    assert mine.ids == other.ids
    assert mine.trace.skips is not None
    assert other.trace.skips is not None
    np.testing.assert_array_equal(mine.trace.skips.ran, other.trace.skips.ran)


def test_budgets_skip_different_blocks(gpu: Gpu) -> None:
    skipped = [gpu.session.generate(IDS, max_new_tokens=12, budget=budget).trace.ffn_skipped for budget in (1, 0.5, 0)]
    assert skipped[0] == 0 < skipped[1] < skipped[2]


def test_rows_of_several_lengths_and_more_prompts_than_rows(gpu: Gpu, cpu: Session) -> None:
    prompts = [IDS, IDS[:4], IDS[2:7]]
    mine = gpu.session.generate(prompts, max_new_tokens=10, budget=0.3)
    assert [each.ids for each in mine] == [each.ids for each in cpu.generate(prompts, max_new_tokens=10, budget=0.3)]


@pytest.mark.parametrize("budget", [1.0, 0.2])
def test_scores_are_those_of_the_cpu(gpu: Gpu, cpu: Session, budget: float) -> None:
    mine, other = (each.score(IDS, budget=budget).values for each in (gpu.session, cpu))
    np.testing.assert_allclose(mine, other, atol=5e-3)


def test_a_step_is_captured_once_and_another_budget_needs_no_capture(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(IDS[:3], max_new_tokens=8, budget=0.5)
    gate = ["decide", "if[2]"]
    assert gpu.captured()[-1] == ["begin_step", *FIRST, *SECOND, *gate, *THIRD, *gate, "partition_7", *LAST]
    count = len(gpu.cuda.graphs)
    gpu.session.generate(IDS[:3], max_new_tokens=8, budget=0.1)
    assert len(gpu.cuda.graphs) == count


def test_a_dense_step_has_no_gates(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(IDS[:3], max_new_tokens=4)
    assert gpu.captured() == [["begin_step", *FIRST, *SECOND, *BLOCK, *THIRD, *BLOCK, "partition_7", *LAST]]


@pytest.mark.parametrize("policy", [{"rows": 1}, {"batch": "off"}])
def test_a_step_of_more_rows_than_may_skip_has_no_gates(bundle: Any, policy: dict[str, Any]) -> None:
    gpu = Gpu(bundle)
    assert gpu.part.gates is not None
    gpu.part.gates = replace(gpu.part.gates, **policy)
    gpu.session.generate([IDS[:3], IDS[:3]], max_new_tokens=4, budget=0.0)
    assert gpu.captured()
    assert not any("decide" in graph for graph in gpu.captured())
    gpu.session.generate(IDS[:3], max_new_tokens=4, budget=0.0)
    assert "decide" in gpu.captured()[-1]


def test_the_next_step_is_launched_before_the_last_token_is_read(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(IDS[:3], max_new_tokens=5)
    order = [entry.partition(" ")[0] for entry in gpu.cuda.log if entry.startswith(("launch", "wait"))]
    assert order[:5] == ["launch", "launch", "wait", "launch", "wait"]


def test_a_static_policy_is_a_mask_without_conditions(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.part._constants = [1.0, 0.0]  # as two gates that say the same for every token
    gpu.decoder.prefill(0, np.array(IDS), threshold=0.5)
    gpu.decoder.decode([1])
    assert gpu.captured()[-1] == ["begin_step", *FIRST, *SECOND, *BLOCK, *THIRD, "cheap", "partition_7", *LAST]
    assert gpu.part._ran[0].tolist() == [True, False]


def test_without_conditional_nodes_the_host_asks_each_gate(bundle: Any, cpu: Session) -> None:
    gpu = Gpu(bundle, driver=12000)
    assert not gpu.decoder.conditional
    mine = gpu.session.generate(IDS, max_new_tokens=12, budget=0.5)
    assert mine.ids == cpu.generate(IDS, max_new_tokens=12, budget=0.5).ids
    assert not any("if[2]" in graph for graph in gpu.captured())


def late(bundle: Any, ids: list[int], count: int, threshold: float) -> tuple[list[int], list[list[bool]]]:
    """Tokens, and which blocks ran for each, if a step runs what the gates said in the step before it."""
    split = trt_bundle.split_of(trt_bundle.program("llama", gated=True))
    spec = decoder_graph(bundle)[1]
    cache = {f"past.{i}.key": np.zeros((1, heads, width, 64), np.float16) for i, (heads, width) in enumerate(spec.kv)}
    cache |= {name.replace("key", "value"): np.swapaxes(array, 2, 3).copy() for name, array in cache.items()}
    mask, masks, written, begin, part = [True, True], [], list(ids), 0, list(ids)
    for step in range(count):
        here = np.arange(begin, begin + len(part), dtype=np.int32)[None]
        feeds = {
            "input_ids": np.array([part], np.int32),
            "positions": here,
            "cache_positions": np.arange(64, dtype=np.int32),
        }
        values = {name: tensor.numpy() for name, tensor in split.weights.items()} | feeds | cache
        wanted: list[bool] = []
        for each in split.steps:
            calls = each.then
            if each.when is not None:
                runs = step == 0 or mask[len(wanted)]
                warm = here[0, -1] < GATES.warmup
                wanted.append(step == 0 or warm or bool((values[each.when.logit] >= threshold).any()))
                calls = each.when.then if runs else each.when.otherwise
            for call in calls:
                partitions._call(split, call, values)
        for name, past in cache.items():
            new = values[name.replace("past", "new")]
            if name.endswith("key"):
                past[..., here[0]] = new.swapaxes(2, 3)
            else:
                past[:, :, here[0]] = new
        if step > 0:
            masks.append(mask)
        begin, part, mask = begin + len(part), [int(values["logits"][0, -1].argmax())], wanted
        written += part
    return written[len(ids) :], masks


@pytest.mark.parametrize("driver", [13000, 12000])
def test_static_mode_runs_what_the_gates_said_a_step_before(bundle: Any, driver: int) -> None:
    gpu, level = Gpu(bundle, driver, mode="one_step_late"), threshold_at(GATES.thresholds, 0.4)
    result = gpu.session.generate(IDS, max_new_tokens=24, budget=0.4)
    tokens, masks = late(bundle, IDS, len(result.ids), level)
    assert list(result.ids) == tokens
    assert result.trace.skips is not None
    assert result.trace.skips.ran.tolist() == masks
    assert len({tuple(mask) for mask in masks}) > 1, "or one step before and one after would be the same"
    assert not any(name.startswith("if") for graph in gpu.captured() for name in graph)


def test_static_mode_captures_a_mask_that_comes_again_and_keeps_few(bundle: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("adaptc.runtime.backends.cuda.captured_steps.MASKS", 1)
    gpu = Gpu(bundle, mode="one_step_late")
    gpu.session.generate(IDS, max_new_tokens=40, budget=0.4)
    assert len(gpu.part.captured._late) == 1
    gated = [graph for graph in gpu.captured() if graph.count("decide") == 2]
    assert len(gated) <= 1  # the others were dropped
    order = [entry.partition(" ")[0] for entry in gpu.cuda.log if entry.startswith(("launch", "wait"))]
    assert "launch" in order  # a mask that comes again is a graph


def test_static_mode_launches_no_step_before_it_knows_the_mask(bundle: Any) -> None:
    gpu = Gpu(bundle, mode="one_step_late")
    gpu.session.generate(IDS, max_new_tokens=12, budget=0.4)
    steps = [entry for entry in gpu.cuda.log if entry in ("begin_step", "wait")]
    assert steps[-10:] == ["begin_step", "wait"] * 5


def test_blocks_that_nothing_stands_in_for_leave_their_gemms_out_by_themselves(tmp_path: Path) -> None:
    graph = gating.static(tiny.fx("llama"), {1: 1.0, 2: -1.0}, {})
    gpu = Gpu(trt_bundle.write(tmp_path / "bundle", trt_bundle.program_of(graph), GATES), driver=12000)
    assert gpu.decoder.conditional  # though this driver has no conditional nodes

    def logits() -> np.ndarray:
        gpu.decoder.prefill(0, np.array(IDS), threshold=0.0)
        return np.stack([gpu.decoder.decode([token])[0].copy() for token in (1, 5, 9)])

    found = logits()
    assert gpu.part._ran[0].tolist() == [True, False]
    step = gpu.captured()[-1]
    assert step.count("decide") == 2
    assert not any(name.startswith("if") for name in step)
    gpu.part.force = (True, False)
    np.testing.assert_array_equal(found, logits())
    gpu.part.force = (True, True)
    assert not np.array_equal(found, logits())


def test_closing_frees_everything(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate(IDS[:3], max_new_tokens=4, budget=0.5)
    assert gpu.cuda.live
    gpu.session.close()
    assert not gpu.cuda.live
    assert gpu.runner.closed


def test_a_long_part_of_a_prompt_is_multiplied_by_engines(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptc.runtime.backends.cuda.kernels.skinny_gemm.ROWS", 4)
    gpu = Gpu(bundle)
    gpu.decoder.prefill(0, np.array(IDS))
    assert "gemm_2" in gpu.cuda.log  # as the graph is called; the kernel is called "skinny_gemm"
    gpu.cuda.log.clear()
    gpu.decoder.decode([1])
    assert "gemm_2" not in gpu.cuda.log


def test_memory_is_taken_once(bundle: Any) -> None:
    gpu = Gpu(bundle)
    gpu.session.generate([IDS, IDS[:5]], max_new_tokens=40, budget=0.5)
    taken = len(gpu.cuda.live)
    gpu.session.generate([IDS, IDS[:5]], max_new_tokens=40, budget=0.2)
    assert len(gpu.cuda.live) == taken


def test_too_little_memory_is_one_line(bundle: Any) -> None:
    with pytest.raises(EngineError, match="out of GPU memory"):
        small(bundle, 50_000)


def small(bundle: Any, limit: int) -> None:
    cuda = FakeCuda(limit=limit)
    parts = partitions_of(bundle)
    cuda_decoder(cuda, FakeRunner(cuda, bundle.path, graphs_of(parts), (1,), (16,)), bundle, parts, 1, 8)


def test_one_row_runs_in_engines_for_more(bundle: Any, cpu: Session) -> None:
    gpu = Gpu(bundle, batch=1, built=(2, 4))
    assert (
        gpu.session.generate(IDS, max_new_tokens=8, budget=0.3).ids
        == cpu.generate(IDS, max_new_tokens=8, budget=0.3).ids
    )
    assert {key[0] for key in gpu.part.captured._known} == {2}


def test_more_rows_than_engines_serve(bundle: Any) -> None:
    with pytest.raises(RequestError, match="batch: 3; the engines serve up to 2, adaptc build --batch 3"):
        Gpu(bundle, batch=3)


def test_not_a_number_is_an_error_and_the_session_goes_on(bundle: Any, cpu: Session) -> None:
    gpu = Gpu(bundle)
    name = next(name for name in gpu.part.memory.weights if name.startswith("model.norm"))
    address = gpu.part.memory.weights[name]
    good = np.zeros(32, np.float32)
    gpu.cuda.get(address, good)
    gpu.decoder.prefill(0, np.array(IDS))
    gpu.cuda.put(address, np.full(32, np.nan, np.float32))
    with pytest.raises(EngineError, match="the highest is nan"):
        gpu.decoder.choose([1], [_greedy()])
    gpu.cuda.put(address, good)
    assert gpu.session.generate(IDS, max_new_tokens=5).ids == cpu.generate(IDS, max_new_tokens=5).ids


def _greedy() -> Any:
    from adaptc.runtime.text.sampling import Sampler

    return Sampler(Sampling(), [], np.random.default_rng(0))


def test_a_data_file_that_is_too_short_is_named(bundle: Any, tmp_path: Path) -> None:
    from adaptc.runtime import BundleError

    short = tmp_path / "lm.data"
    short.write_bytes(b"\0" * 100)
    with pytest.raises(BundleError, match=r"lm\.data: too short for .*"):
        DeviceWeights(FakeCuda(), short).upload(read_partitions(bundle, "lm"))
