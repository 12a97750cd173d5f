"""The decoder form on the real kernel: GroupQueryAttention of ONNX Runtime against attention in numpy."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest

from adaptc.runtime import BundleError, DecoderSpec, EngineError, OrtEngine, RequestError, load
from adaptc.runtime.bundle.folder import write_bundle
from adaptc.runtime.bundle.manifest import GraphSpec, Manifest, TargetRecord
from adaptc.runtime.bundle.plan import Run
from tests.models import tiny_tokenizer
from tests.models.attention_lm import AttentionLm
from tests.models.sessions import session_of

OLD = version("onnxruntime").startswith("1.23.")
LM = AttentionLm()
SPEC = DecoderSpec(LM.vocab, LM.max_tokens, ((LM.kv_heads, LM.head_dim),) * LM.layers, None, (), None)
PROMPTS = [np.random.default_rng(n).integers(0, LM.vocab, n).tolist() for n in (5, 20, 1, 33, 8)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "decoder.onnx"
    onnx.save(LM.model(), path)
    return path


def greedy(prompt: list[int], count: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(LM.logits(np.array(ids))[-1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("chunk", [3, 8, 512])
@pytest.mark.parametrize("batch", [1, 3])
def test_batched_and_chunked_generation_equals_attention(file: Path, batch: int, chunk: int) -> None:
    with session_of(OrtEngine(file, threads=1), SPEC, batch=batch, chunk=chunk) as session:
        results = session.generate(PROMPTS, max_new_tokens=10)
    assert [result.ids for result in results] == [greedy(prompt, 10) for prompt in PROMPTS]


@pytest.mark.parametrize("step", [False, True])
def test_scores_equal_attention(file: Path, step: bool) -> None:
    ids = PROMPTS[3]
    with session_of(OrtEngine(file, threads=1), SPEC, chunk=7) as session:
        session.generate(PROMPTS[1], max_new_tokens=5)  # what an earlier request left must not matter
        scores = session.score(ids, step=step).values
    logits = LM.logits(np.array(ids)).astype(np.float64)[:-1]
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits[np.arange(len(logits)), ids[1:]] - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    with pytest.raises(AssertionError):  # the tolerance can tell
        np.testing.assert_allclose(scores * np.float32(1.01), expected, atol=1e-4)


def test_the_cache_fills_to_its_last_position(file: Path) -> None:
    with session_of(OrtEngine(file, threads=1), SPEC) as session:
        result = session.generate(PROMPTS[3])
    assert result.ids == greedy(PROMPTS[3], LM.max_tokens - 33 + 1)
    assert result.finish_reason == "length"


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_a_file_that_does_not_load(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx: onnxruntime cannot load it: ") as error:
        OrtEngine(path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(OLD, reason="onnxruntime 1.23 does not look where external data lies")
def test_external_data_cannot_leave_the_folder(tmp_path: Path) -> None:
    model = LM.model()
    whole = tmp_path / "whole.onnx"
    onnx.save(model, whole, save_as_external_data=True, location="lm.data", size_threshold=0)
    assert OrtEngine(whole)
    inside = tmp_path / "inside"
    inside.mkdir()
    moved = onnx.load(whole, load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../lm.data"
    (inside / "decoder.onnx").write_bytes(moved.SerializeToString())
    with pytest.raises(EngineError, match=r"decoder\.onnx: onnxruntime cannot load it: "):
        OrtEngine(inside / "decoder.onnx")


def test_onnxruntime_is_not_installed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"^onnxruntime: .*; pip install 'adaptc\[cpu\]' installs it$"):
        OrtEngine(file)


def test_a_graph_of_another_form(file: Path) -> None:
    other = DecoderSpec(LM.vocab, LM.max_tokens, SPEC.kv[:1], None, (), None)
    with pytest.raises(EngineError, match=r"^past\.1\.key: the graph has it, and no array is bound to it$"):
        session_of(OrtEngine(file, threads=1), other)
    other = DecoderSpec(LM.vocab, 16, SPEC.kv, None, (), None)
    with pytest.raises(EngineError, match=r"^past\.0\.key: float32\[1, 2, 16, 16\]"):
        session_of(OrtEngine(file, threads=1), other)


def test_a_step_that_fails(file: Path) -> None:
    engine = OrtEngine(file, threads=1)
    feeds = {}
    for spec in engine.inputs:
        feeds[spec.name] = np.zeros([s if isinstance(s, int) else 2 for s in spec.shape], spec.dtype)
    outputs = {f"present.{i}.{x}": feeds[f"past.{i}.{x}"] for i in range(2) for x in ("key", "value")}
    outputs["logits"] = np.zeros((2, 2, LM.vocab), np.float32)
    feeds["seqlens_k"][:] = 9  # two rows of two tokens each, with tokens before them: more than the kernel can
    feeds["total_sequence_length"][...] = 10
    step = engine.bind(feeds, outputs)
    with pytest.raises(EngineError, match=r"decoder\.onnx: onnxruntime failed: .*batch_size must be 1") as error:
        step()
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match=r"^nonsense: the graph has no such tensor"):
        step.rebind({"nonsense": feeds["input_ids"]}, {})
    with pytest.raises(EngineError, match=r"^input_ids: the array is not C-contiguous$"):
        step.rebind({"input_ids": np.zeros((4, 4), np.int64)[:, ::2]}, {})
    engine.close()
    with pytest.raises(EngineError, match=r"closed$"):
        engine.bind(feeds, outputs)


def write(into: Path, file: Path, **changes: object) -> Path:
    tokenizer = tiny_tokenizer.byte_level()
    lm = AttentionLm(vocab=tokenizer.get_vocab_size())
    spec = DecoderSpec(lm.vocab, lm.max_tokens, SPEC.kv, None, (1,), None)
    graph = GraphSpec("graphs/decoder.onnx", (), (), (), spec)
    manifest = Manifest(
        adaptc="0",
        models={},
        passes=(),
        plan=(Run("decoder"),),
        graphs={"decoder": graph},
        gates={},
        target=TargetRecord("onnxruntime", "fp32", lm.max_tokens, 2),
        versions={},
        bytes_per_token=0,
    )
    files: dict[str, Path | bytes] = {"graphs/decoder.onnx": lm.model().SerializeToString()}
    files |= {f"tokenizer/{name}": content for name, content in tiny_tokenizer.files(tokenizer).items()}
    write_bundle(into, files, manifest)
    return into


def test_from_bundle_to_text(tmp_path: Path, file: Path) -> None:
    path = write(tmp_path / "bundle", file)
    with load(path, threads=1) as session:
        result = session.generate("the cat", max_new_tokens=8)
        assert "".join(session.generate("the cat", max_new_tokens=8, stream=True)) == result.text
        assert [r.ids for r in session.generate(["the cat"] * 3, max_new_tokens=8)] == [result.ids] * 3
        assert session.chat([{"role": "user", "content": "hi"}], max_new_tokens=3).prompt_tokens > 3
    with load(path, "cpu", threads=2, batch=1, chunk=2, verify=False) as session:
        assert session.generate("the cat", max_new_tokens=8).text == result.text


def test_load_refuses(tmp_path: Path, file: Path) -> None:
    path = write(tmp_path / "bundle", file)
    for options in ({"threads": 0}, {"threads": 10**6}, {"batch": 0}, {"chunk": 0}, {"device": "abacus"}):
        with pytest.raises(RequestError, match=f"^{next(iter(options))}: "):
            load(path, **options)
    with pytest.raises(BundleError, match=r"no bundle: cannot read manifest"):
        load(tmp_path)
    graph = bytearray((path / "graphs/decoder.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (path / "graphs/decoder.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match=r"graphs/decoder\.onnx: damaged: its sha256"):
        load(path)
