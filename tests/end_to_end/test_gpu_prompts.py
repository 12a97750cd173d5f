"""Long prompts through ONNX Runtime's sessions, on a stand-in for a GPU."""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.onnxruntime_cuda.load_prompts import prompt_engine
from adaptc.runtime.backends.onnxruntime_cuda.loading import kernel_decoder
from adaptc.runtime.backends.onnxruntime_cuda.prompts import buffers_of
from adaptc.runtime.backends.onnxruntime_cuda.sessions import OrtSessions, onnxruntime_gpu
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_step import StepValue
from adaptc.runtime.bundle.names import prompt_graph_file
from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.options import NO_OPTIONS
from tests.fakes.cuda import FakeCuda
from tests.fakes.onnxruntime_gpu import FakeOrt
from tests.models import prompt_bundle, tiny

CHUNK = 80
IDS = np.random.default_rng(0).integers(0, tiny.VOCAB, 2 * CHUNK + 20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with gates in int4."""
    into = tmp_path_factory.mktemp("prompts") / "bundle"
    return prompt_bundle.write(into, prompt_bundle.program("llama", "int4", gated=True), prompt_bundle.GATES)


def decoder_of(bundle: Bundle, chunk: int = CHUNK, ort: FakeOrt | None = None) -> tuple[GpuDecoder, FakeOrt]:
    """A decoder with the stand-ins for both libraries."""
    ort = ort or FakeOrt(FakeCuda())
    decoder = kernel_decoder(ort.cuda, bundle, 2, chunk, OrtSessions(ort))
    assert isinstance(decoder, GpuDecoder)
    return decoder, ort


def test_a_prompt_gives_what_our_kernels_give(bundle: Bundle) -> None:
    """Two pieces by ONNX Runtime, a short one by our kernels behind them, and then a step."""
    decoder, ort = decoder_of(bundle)
    alone = kernel_decoder(FakeCuda(), bundle, 2, CHUNK)
    for row, ids in ((0, IDS), (1, IDS[::-1][:CHUNK])):
        got, want = decoder.start(row, ids, NO_OPTIONS), alone.start(row, ids, NO_OPTIONS)
        assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()
    assert len(ort.runs) == 3 * 4  # pieces of more than 64 tokens, in as many graphs as there are layers and a norm
    got, want = decoder.decode([3, 4]), alone.decode([3, 4])
    assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()
    decoder.close()


def test_every_position_is_scored_as_the_whole_graph_scores_it(bundle: Bundle) -> None:
    made = prompt_bundle.program("llama", "int4", gated=True)
    decoder, _ = decoder_of(bundle)
    ids = IDS[: CHUNK + 70]
    got = np.concatenate(list(decoder.score(ids, CHUNK)))
    graph = made.graph("lm", OnnxGraph)
    feeds: dict[str, Any] = {
        "input_ids": ids[None],
        "seqlens_k": np.array([len(ids) - 1], np.int32),
        "total_sequence_length": np.array(len(ids), np.int32),
        "logits_from": np.array([0]),
        "threshold": np.full((1, len(ids)), -np.inf, np.float32),
        **tiny.empty_cache(graph, 1),
    }
    want = graph.run(feeds)["logits"][0]
    # The CPU's engine rounds what products of codes read to 8 bits.
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_what_is_bound(bundle: Bundle) -> None:
    decoder, ort = decoder_of(bundle)
    stream = decoder._gpu.stream
    assert [each["user_compute_stream"] for each in ort.opened] == [str(int(stream))] * 3
    assert {each["has_user_compute_stream"] for each in ort.opened} == {"1"}
    decoder.start(1, IDS[:CHUNK], NO_OPTIONS)
    caches = decoder.graph.cache.row(1)
    first = ort.runs[0]
    addresses = {name: address for name, _, _, _, address in first}
    shape = (1, 2, prompt_bundle.TOKENS, 16)
    past = [(device, kind, address) for _, device, kind, sizes, address in first if sizes == shape]
    # Past and present lie at one place: the row's.
    places = [caches["past.0.key"], caches["past.0.value"]]
    assert past == [("cuda", np.float16, place) for place in (*places, *places)]
    assert addresses["in0"] == decoder.graph._prompts._values["v0"]  # type: ignore[union-attr]
    on_host = [bound for bound in first if bound[1] == "cpu"]
    assert [(kind, sizes) for _, _, kind, sizes, _ in on_host] == [(np.int32, ())]
    # A layer reads what the one before it wrote.
    made = {address for name, _, _, _, address in ort.runs[0] if name.startswith("out")}
    assert {address for name, _, _, _, address in ort.runs[1] if name in ("in0", "in1")} < made


def test_weights_are_written_out_before_the_layer_that_reads_them(bundle: Bundle) -> None:
    decoder, ort = decoder_of(bundle)
    ort.cuda.log.clear()
    seen: list[list[str]] = []
    runs = ort.runs

    class Noted(list):  # type: ignore[type-arg]
        def append(self, bound: Any) -> None:
            seen.append([each for each in ort.cuda.log if each == "unpack"])
            ort.cuda.log.clear()
            runs.append(bound)

    ort.runs = Noted()
    decoder.start(0, IDS[:CHUNK], NO_OPTIONS)
    assert [len(each) for each in seen] == [4, 4, 4, 0]  # query, key and value; out; gate and up; down


def test_a_short_piece_is_our_kernels(bundle: Bundle) -> None:
    decoder, ort = decoder_of(bundle)
    decoder.start(0, IDS[:64], NO_OPTIONS)
    assert not ort.runs
    few, engine = decoder_of(bundle, chunk=64)
    assert not engine.opened  # pieces are never longer
    assert few.taken["values"] < decoder.taken["values"]


def test_another_chunk_gives_the_same_logits(bundle: Bundle) -> None:
    ids = IDS[:156]
    found = [decoder_of(bundle, chunk)[0].start(0, ids, NO_OPTIONS) for chunk in (78, 156)]
    assert np.abs(found[0] - found[1]).max() < 4e-3 * np.abs(found[1]).max()


def test_without_libraries_of_cuda_one_warning_and_our_kernels(bundle: Bundle) -> None:
    ort = FakeOrt(FakeCuda(), providers=("CPUExecutionProvider",))
    with pytest.warns(UserWarning, match=r"lacks libraries of CUDA or cuDNN; pip install 'adaptc\[gpu\]'") as warned:
        decoder, _ = decoder_of(bundle, ort=ort)
    assert len(warned) == 1
    decoder.start(0, IDS, NO_OPTIONS)
    assert not ort.runs


def test_a_bundle_without_graphs_for_prompts_is_read_by_our_kernels(tmp_path: Path) -> None:
    made = prompt_bundle.program("llama", "int4", gated=True)
    older = prompt_bundle.write(tmp_path / "older", made, prompt_bundle.GATES, prompts=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, ort = decoder_of(older)
    assert not ort.opened


def test_onnxruntime_for_cpus_is_said_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"is for CPUs; pip install 'adaptc\[gpu\]'"):
        onnxruntime_gpu()
    with pytest.warns(UserWarning, match="long prompts are read by slower kernels"):
        assert prompt_engine(bundle, 0) is None


def test_no_onnxruntime_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libcudart.so.12: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EngineError, match=r"libcudart.*pip install 'adaptc\[gpu\]'"):
        onnxruntime_gpu()


def test_what_fails_names_its_graph(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = decoder_of(bundle)
    monkeypatch.setattr("tests.fakes.onnxruntime_gpu.FakeSession.run_with_iobinding", _fails)
    with pytest.raises(EngineError, match=f"{prompt_graph_file('lm', '0')}: onnxruntime failed: out of memory"):
        decoder.start(0, IDS, NO_OPTIONS)


def _fails(session: Any, binding: Any, options: Any) -> None:
    raise RuntimeError("out of\nmemory")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_values_that_are_needed_at_once_have_buffers_of_their_own(family: str) -> None:
    prompt = prompt_bundle.program(family, "int4").steps["lm"].prompt
    assert prompt is not None
    pieces = prompt.pieces
    home = buffers_of(pieces)
    assert set(home) == set(pieces.values)
    assert len(set(home.values())) <= 5
    holds: dict[int, str] = {home[name]: name for name in _given(pieces.values, pieces.calls)}
    for call in pieces.calls:
        reads = [name for name in call.reads if name in home]
        assert all(holds[home[name]] == name for name in reads)
        writes = [name for name in call.writes if name in home]
        assert not {home[name] for name in reads} & {home[name] for name in writes}
        assert len({home[name] for name in writes}) == len(writes)
        holds |= {home[name]: name for name in writes}
    assert all(holds[home[name]] == name for name in pieces.ends)


def _given(values: dict[str, StepValue], calls: Sequence[Any]) -> list[str]:
    return [name for name in values if not any(name in call.writes for call in calls)]
