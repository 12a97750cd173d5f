"""A bundle for ONNX Runtime as a GPU runs it, on a stand-in with the real kernels, against the same bundle on a CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime import BundleError, EngineError, RequestError, Sampling, Session
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.onnxruntime_cuda.loading import kernel_decoder
from adaptc.runtime.bundle.folder import Bundle, open_bundle, write_bundle
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import read_spec
from tests.fakes.cuda import FakeCuda
from tests.gpu.answers import mixed
from tests.models import skipping, steps_bundle, stitched
from tests.models.steps_bundle import Gpu, compiled
from tests.repo import ROOT

TABLE = ((0.0, -math.inf), (0.1, -0.5), (0.5, 0.5))
GATES = SkipGates("learned", skipping.GATED, 3, 4, "rows", TABLE)
IDS = np.random.default_rng(1).integers(2, 300, 9).tolist()


def prompt(tokens: int) -> list[int]:
    ids: list[int] = np.random.default_rng(tokens).integers(2, 300, tokens).tolist()
    return ids


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Gates that each row decides for itself, with a cheap path."""
    return compiled(tmp_path_factory.mktemp("rows"), "llama", "fp32", steps_bundle.gating(GATES, skipping.GPU_RANK))


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Iterator[Session]:
    with runtime.load(bundle.path, "cpu", threads=1, batch=3) as session:
        yield session


@pytest.fixture(scope="module")
def gpu(bundle: Bundle) -> Gpu:
    return Gpu(bundle, batch=3)


def agree(mine: Any, other: Any) -> None:
    """Tokens and decisions are the same."""
    assert mine.ids == other.ids
    assert (mine.trace.skips is None) == (other.trace.skips is None)
    if mine.trace.skips is not None:
        np.testing.assert_array_equal(mine.trace.skips.ran, other.trace.skips.ran)


@pytest.mark.parametrize("budget", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 33, 64, 70])
def test_tokens_and_decisions_are_those_of_the_cpu(gpu: Gpu, cpu: Session, tokens: int, budget: float) -> None:
    mine, other = (each.generate(prompt(tokens), max_new_tokens=8, budget=budget) for each in (gpu.session, cpu))
    agree(mine, other)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling(temperature=1.0), "seed": 3, "budget": 0.5},
        {"sampling": Sampling(temperature=0.8, top_k=20, top_p=0.9), "seed": 4, "budget": 0.0},
        {"sampling": Sampling(temperature=0.8, repetition_penalty=1.3), "seed": 6},
    ],
)
def test_what_is_drawn_is_what_a_cpu_draws(gpu: Gpu, cpu: Session, options: dict[str, Any]) -> None:
    mine, other = (each.generate(IDS, max_new_tokens=20, **options) for each in (gpu.session, cpu))
    agree(mine, other)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_decide_each_for_itself(bundle: Bundle, gpu: Gpu, cpu: Session, rows: int) -> None:
    """More prompts than rows, of several lengths: rows come, go and move."""
    prompts = [prompt(tokens) for tokens in (5, 3, 9, 4, 12)][: rows + 2]
    session = gpu.session if rows == 3 else Gpu(bundle, batch=rows).session
    found = session.generate(prompts, max_new_tokens=9, budget=0.3)
    others = cpu.generate(prompts, max_new_tokens=9, budget=0.3)
    for mine, other in zip(found, others, strict=True):
        agree(mine, other)
    ran = [each.trace.skips.ran for each in found if each.trace.skips is not None]
    assert len({each.tobytes() for each in ran}) > 1, "rows that decide the same would show nothing"


@pytest.mark.parametrize("budgets", [(1.0, 0.0, 0.3), (0.0, 0.0, 1.0)])
def test_each_request_has_its_budget(gpu: Gpu, cpu: Session, budgets: tuple[float, ...]) -> None:
    prompts = [prompt(tokens) for tokens in (5, 9, 6)]

    def written(session: Session) -> list[list[int]]:
        streams = [
            session.generate(each, max_new_tokens=12, budget=budget, stream=True)
            for each, budget in zip(prompts, budgets, strict=True)
        ]
        for stream in streams:
            for _ in stream:
                pass
        return [[*stream.result.ids] for stream in streams]

    assert written(gpu.session) == written(cpu)


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("budget", [1.0, 0.5, 0.0])
def test_scores_are_those_of_the_cpu(gpu: Gpu, cpu: Session, step: bool, budget: float) -> None:
    ids = prompt(70)
    mine, other = (each.score(ids, step=step, budget=budget) for each in (gpu.session, cpu))
    np.testing.assert_allclose(mine.values, other.values, atol=6e-3)


def test_a_row_that_moves_goes_on_where_it_was(bundle: Bundle) -> None:
    decoder = Gpu(bundle, batch=3).decoder
    assert isinstance(decoder, GpuDecoder)

    def written(to: int) -> list[int]:
        ids, options = [0] * 3, RequestOptions(budget=0.0)
        for row, tokens in enumerate((4, 5, 9)):
            ids[row] = int(decoder.start(row, np.array(prompt(tokens)), options).argmax())
        if to != 2:
            decoder.move(2, to)
            ids[to] = ids.pop()
        found = []
        for _ in range(6):
            ids = [int(row.argmax()) for row in decoder.decode(ids)]
            found.append(ids[to])
        return found

    assert written(2) == written(0) == written(1)


def test_a_step_is_one_graph_and_another_budget_needs_no_other(bundle: Bundle) -> None:
    gpu = Gpu(bundle)
    for budget in (0.5, 0.1, 0.0):
        gpu.session.generate(IDS[:5], max_new_tokens=6, budget=budget)
    assert len(gpu.cuda.graphs) == 1
    gpu.session.generate(IDS[:5], max_new_tokens=6)
    assert len(gpu.cuda.graphs) == 2, "a dense step asks no gates"
    gated, dense = ([name for name, _ in graph] for graph in gpu.cuda.graphs)
    assert gated[0] == dense[0] == "begin_step"
    assert gated[-2:] == dense[-2:] == ["highest", "choose"]
    assert gated.count("attend") == 3
    assert not any(name.startswith("if") for name in gated), "kernels read what was decided"
    assert len(dense) < len(gated)


@pytest.mark.parametrize(("policy", "rank"), [("any", 0), ("group", skipping.GPU_RANK)])
def test_rows_that_decide_together_are_those_of_the_cpu(tmp_path: Path, policy: Any, rank: int) -> None:
    gates = replace(GATES, batch=policy)
    bundle = compiled(tmp_path, "llama", "fp32", steps_bundle.gating(gates, rank))
    assert bundle.manifest.gates["lm"].batch == policy
    gpu = Gpu(bundle, batch=3)
    with runtime.load(bundle.path, "cpu", threads=1, batch=3) as cpu:
        for budget in (1.0, 0.3, 0.0):
            for prompts in ([IDS], [IDS, prompt(4), prompt(6)]):
                found = gpu.session.generate(prompts, max_new_tokens=9, budget=budget)
                for mine, other in zip(found, cpu.generate(prompts, max_new_tokens=9, budget=budget), strict=True):
                    agree(mine, other)


def test_zeros_stand_in_for_a_block_of_each_row(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, "llama", "fp32", steps_bundle.gating(GATES, 0))
    assert any(call.zeros for call in DeviceStep.from_json(bundle.read("steps/lm.json")).calls())
    gpu, prompts = Gpu(bundle, batch=3), [IDS, prompt(4), prompt(6)]
    with runtime.load(bundle.path, "cpu", threads=1, batch=3) as cpu:
        for budget in (0.4, 0.0):
            found = gpu.session.generate(prompts, max_new_tokens=9, budget=budget)
            for mine, other in zip(found, cpu.generate(prompts, max_new_tokens=9, budget=budget), strict=True):
                agree(mine, other)


OTHERS: list[tuple[str, str, dict[str, Any], float]] = [
    ("qwen3", "fp16", {}, 8e-3),
    ("llama", "int8", {"tie_word_embeddings": True}, 0.15),
    ("llama", "int4", {}, 0.15),
    ("gemma2", "fp32", {"sliding_window": 5, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}, 2e-2),
]
"""Families, weights and how far scores may be: beside codes ONNX Runtime rounds activations to 8 bits."""


@pytest.mark.parametrize(("family", "weights", "options", "far"), OTHERS)
def test_other_families_and_weights_score_as_on_the_cpu(
    tmp_path: Path, family: str, weights: str, options: dict[str, Any], far: float
) -> None:
    bundle = compiled(tmp_path, family, weights, **options)
    gpu, ids = Gpu(bundle), prompt(40)
    with runtime.load(bundle.path, "cpu", threads=1) as cpu:
        for step in (False, True):
            mine, other = (np.array(each.score(ids, step=step).values) for each in (gpu.session, cpu))
            assert np.abs(mine - other).mean() < far
        if weights in ("fp16", "fp32"):
            agree(gpu.session.generate(ids, max_new_tokens=10), cpu.generate(ids, max_new_tokens=10))


# Routes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("stitched")
    spec = read_spec(stitched.write(folder, stitched.GPU_SPEC, stitched.GPU_ROUTES))
    return compile_spec(spec, folder, folder / "bundle", Cache(folder / "cache")).bundle


def step_files(bundle: Bundle) -> set[str]:
    return {name for name in bundle.manifest.files if name.startswith("steps/") and "-prompt" not in name}


def test_routes_write_what_they_write_on_the_cpu(pair: Bundle) -> None:
    assert step_files(pair) == {"steps/trunk.json", *(f"steps/tail.{route}.json" for route in stitched.ROUTES)}
    gpu, routes = Gpu(pair, batch=4), list(stitched.ROUTES)
    assert isinstance(gpu.decoder, GpuRoutes)
    requests = [(prompt(tokens), routes[index % 4]) for index, tokens in enumerate((5, 3, 9, 1, 7, 12))]
    with runtime.load(pair.path, "cpu", threads=1, batch=4) as cpu:
        for ids, route in requests[:4]:
            agree(*(each.generate(ids, max_new_tokens=8, route=route) for each in (gpu.session, cpu)))
        assert mixed(gpu.session, requests, 8) == mixed(cpu, requests, 8)
        assert gpu.session.choose(requests[0][0]).route == cpu.choose(requests[0][0]).route
        mine, other = (each.score(prompt(40), route="small").values for each in (gpu.session, cpu))
        np.testing.assert_allclose(mine, other, atol=2e-2)


def test_weights_that_routes_share_are_there_once(pair: Bundle) -> None:
    gpu = Gpu(pair, batch=4)
    assert isinstance(gpu.decoder, GpuRoutes)
    steps = [DeviceStep.from_json(pair.read(name)) for name in step_files(pair)]
    distinct = {(w.file, w.offset, w.bytes) for step in steps for w in step.weights.values()}
    read = sum(w.bytes for step in steps for w in step.weights.values())
    assert sum(size for *_, size in distinct) < 0.8 * read
    assert gpu.decoder.taken["weights"] < read


# What is refused


def changed(bundle: Bundle, into: Path, change: Callable[[Any], object] | None) -> Bundle:
    """A bundle whose steps file was changed, or lacks, as whoever writes a bundle may; its hashes fit."""
    files: dict[str, Path | bytes] = {name: bundle.read(name) for name in bundle.manifest.files}
    step = json.loads(bundle.read("steps/lm.json"))
    if change is None:
        del files["steps/lm.json"]
    else:
        change(step)
        files["steps/lm.json"] = json.dumps(step).encode()
    return write_bundle(into, files, bundle.manifest)


def refused(bundle: Bundle, kind: type[Exception], message: str, cuda: FakeCuda | None = None, batch: int = 1) -> None:
    """One line, and nothing stays on the GPU."""
    cuda = FakeCuda() if cuda is None else cuda
    with pytest.raises(kind, match=message) as error:
        kernel_decoder(cuda, bundle, batch, 8)
    assert "\n" not in str(error.value)
    assert cuda.closed
    assert not cuda.live


def test_a_bundle_without_steps_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    message = r"b: its model runs on a CPU only, or an older adaptc compiled it; compile again, with --set target\."
    refused(changed(bundle, tmp_path / "b", None), BundleError, message)
    refused(open_bundle(ROOT / "tests" / "stored" / "schema3" / "gated"), BundleError, "its model runs on a CPU only")


def line(step: Any, op: str) -> Any:
    """The first line of this kind in a row program, and the program."""
    return next(each for kernel in step["row_kernels"] for each in kernel["lines"] if each["op"] == op)


def put(place: Any, key: str, value: Any) -> None:
    place[key] = value


def slice_from(start: float) -> dict[str, Any]:
    """A line that takes numbers of the first one from a place on."""
    return {"op": "slice", "args": [0], "numbers": [start]}


DAMAGED: dict[str, tuple[Callable[[Any], object], str]] = {
    "another version": (lambda s: put(s, "version", 2), "version: 2, not 1; compile again"),
    "a key that lacks": (lambda s: s.pop("body"), ".*body"),
    "a key too many": (lambda s: put(s, "code", ""), ".*code"),
    "an unknown kind": (lambda s: put(s["body"][0], "kind", "ptx"), ".*kind"),
    "past its table": (lambda s: put(s["body"][0], "which", 7), "lookup 7: there are 1; compile again"),
    "before its table": (lambda s: put(s["body"][0], "which", -1), "lookup -1: there are 1; compile again"),
    "a value from nowhere": (lambda s: put(s["body"][1], "reads", ["x"]), "nothing gives 'x'; compile again"),
    "a file that is not there": (
        lambda s: put(next(iter(s["weights"].values())), "file", "graphs/other.data"),
        "'graphs/other.data' is not among the bundle's files",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    change, message = DAMAGED[name]
    refused(changed(bundle, tmp_path / "b", change), BundleError, rf"b/steps/lm\.json: {message}")


PROGRAMS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a line that comes later": (lambda s: put(line(s, "add"), "args", [0, 99]), r"line \d+ \(add\) is not well formed"),
    "a line before the first": (lambda s: put(line(s, "add"), "args", [-1, 0]), r"line \d+ \(add\) is not well formed"),
    "too few operands": (lambda s: put(line(s, "add"), "args", [0]), r"line \d+ \(add\) is not well formed"),
    "no numbers": (lambda s: put(line(s, "add"), "width", 0), r"line \d+ \(add\) is not well formed"),
    "an input that is not there": (
        lambda s: put(line(s, "input"), "args", [50]),
        r"line \d+ \(input\) is not well formed",
    ),
    "other widths": (lambda s: put(line(s, "add"), "width", 33), r"line \d+ \(add\): widths 33 and 32 and 32"),
    "past the end": (lambda s: line(s, "add").update(slice_from(4096.0)), r"line \d+ \(slice\): widths 32 and 32"),
    "half a place": (lambda s: line(s, "add").update(slice_from(0.5)), r"line \d+ \(slice\): widths 32 and 32"),
    "groups that do not fit": (
        lambda s: put(line(s, "rms_norm"), "numbers", [1e-5, 7.0]),
        r"line \d+ \(rms_norm\): widths 32 and 32 and 32",
    ),
    "a weight of another width": (
        lambda s: put(line(s, "weight"), "width", 64),
        r"line \d+ \(weight\): widths 64 and 32",
    ),
    "a result that is not there": (
        lambda s: put(s["row_kernels"][0]["outputs"][0], "line", 99),
        "a line that is not there is read",
    ),
    "a gate that is not there": (lambda s: put(s["row_kernels"][0], "gate", 99), "a line that is not there is read"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_is_not_well_formed_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    change, message = PROGRAMS[name]
    refused(
        changed(bundle, tmp_path / "b", change), BundleError, rf"b/steps/lm\.json: rows_\d+: {message}; compile again$"
    )


def test_a_weight_that_nobody_placed_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    made = changed(bundle, tmp_path / "b", lambda s: s["weights"].pop(s["gemms"][0]["codes"]))
    refused(made, BundleError, r"b/steps/lm\.json: gemm 0: nothing says where '.*' lies; compile again$")


def test_a_weight_past_its_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    def beyond(step: Any) -> None:
        step["weights"][step["gemms"][0]["codes"]]["offset"] = 1 << 40

    refused(changed(bundle, tmp_path / "b", beyond), BundleError, r"graphs/lm\.data: too short; compile again$")


def test_an_old_gpu_is_refused(bundle: Bundle) -> None:
    old = FakeCuda(replace(FakeCuda().device, sm=75))
    message = r"^cuda: Fake has compute capability 7\.5; 8\.0 or newer is right, or device='cpu'$"
    refused(bundle, EngineError, message, old)


@pytest.mark.parametrize("limit", [1 << 10, 100_000, 200_000])
def test_too_little_memory_is_one_line(bundle: Bundle, limit: int) -> None:
    refused(bundle, EngineError, "^cuda: cannot allocate: out of GPU memory$", FakeCuda(limit=limit))


def test_more_rows_than_kernels_serve_are_refused(bundle: Bundle) -> None:
    refused(bundle, RequestError, "^batch: 65; .* up to 64", batch=65)


def test_what_needs_a_cpu_is_refused(bundle: Bundle) -> None:
    for options in ({"threads": 1}, {"prefix_bytes": 0}, {"routes": ["large"]}):
        with pytest.raises(RequestError, match="it runs on a GPU"):
            runtime.load(bundle.path, "cuda", **options)


def test_closing_frees_everything(bundle: Bundle) -> None:
    gpu = Gpu(bundle, batch=3)
    gpu.session.generate([IDS, prompt(4)], max_new_tokens=4, budget=0.5)
    taken = len(gpu.cuda.live)
    gpu.session.generate([IDS, prompt(4)], max_new_tokens=4, budget=0.1)
    assert len(gpu.cuda.live) == taken
    gpu.session.close()
    assert gpu.cuda.closed
    assert not gpu.cuda.live
