"""target.kv_cache: bundles whose keys and values are kept in fewer bits, from a spec to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import PassError, SpecError
from adaptc.report.page import kv_bytes
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.decoder import cache_dtype
from adaptc.spec.reading import parse_spec, read_spec
from tests.models import folder, stitched, vlm

PROMPTS = [np.random.default_rng(n).integers(2, 300, n).tolist() for n in (5, 3, 21, 1, 7)]
WIDTH = {"float32": 4, "float16": 2, "int8": 1}


def compiled(base: Path, spec: Path, kind: str, *overrides: str) -> Bundle:
    found = read_spec(spec, [f"target.kv_cache={kind}", "target.batch=5", *overrides])
    return compile_spec(found, base, base / kind, Cache(base / "cache")).bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    base = tmp_path_factory.mktemp("plain")
    spec, _ = folder.write(base, "qwen2", weights="int4")
    return {kind: compiled(base, spec, kind) for kind in ("fp32", "fp16", "int8")}


@pytest.mark.parametrize(("kind", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("int8", "int8")])
def test_a_bundle_says_how_it_keeps_them(bundles: dict[str, Bundle], kind: str, dtype: str) -> None:
    manifest = bundles[kind].manifest
    assert {cache_dtype(graph.inputs) for graph in manifest.graphs.values()} == {dtype}
    assert kv_bytes(manifest) == 2 * 3 * 2 * 16 * 64 * WIDTH[dtype]
    assert [p.name for p in manifest.passes if p.name == "quantize_cache"] == ["quantize_cache"] * (kind != "fp32")


def distances(one: Bundle, other: Bundle) -> tuple[float, float]:
    """The mean difference of two bundles' log probabilities of a text, and how large these are."""
    ids = np.random.default_rng(3).integers(2, 300, 60).tolist()
    scores = []
    for bundle in (one, other):
        with runtime.load(bundle.path, threads=1) as session:
            scores.append(np.array(session.score(ids).values))
    return float(np.abs(scores[0] - scores[1]).mean()), float(np.abs(scores[0]).mean())


def test_little_is_lost(bundles: dict[str, Bundle]) -> None:
    codes, size = distances(bundles["fp32"], bundles["int8"])
    halves, _ = distances(bundles["fp32"], bundles["fp16"])
    assert 0 < halves < codes < 0.02 * size


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_text_does_not_depend_on_what_is_written_beside_it(bundles: dict[str, Bundle], kind: str) -> None:
    with runtime.load(bundles[kind].path, threads=1, batch=5) as session:
        alone = [session.generate(prompt, max_new_tokens=12).ids for prompt in PROMPTS]
        together = [each.ids for each in session.generate(PROMPTS, max_new_tokens=12)]
        again = session.generate(PROMPTS[2] + [*alone[2]], max_new_tokens=12)  # what was read before is found again
    assert together == alone
    assert again.trace.cached_tokens > 0
    with runtime.load(bundles[kind].path, threads=1, prefix_bytes=0) as session:
        assert session.generate(PROMPTS[2] + [*alone[2]], max_new_tokens=12).ids == again.ids


def test_drafts_are_verified_over_codes(bundles: dict[str, Bundle]) -> None:
    prompt = [7, 8, 9, 10] * 6
    with runtime.load(bundles["int8"].path, threads=1, speculate="off") as session:
        expected = session.generate(prompt, max_new_tokens=30).ids
    with runtime.load(bundles["int8"].path, threads=1, speculate="lookup") as session:
        assert session.generate(prompt, max_new_tokens=30).ids == expected


def test_routes(tmp_path: Path) -> None:
    """A trunk and each tail have scales of their own."""
    stitched.write(tmp_path)
    spec = tmp_path / "model.yaml"
    made = {kind: compiled(tmp_path, spec, kind) for kind in ("fp32", "int8")}
    scores: dict[str, list[Any]] = {}
    for kind, bundle in made.items():
        with runtime.load(bundle.path, threads=1) as session:
            scores[kind] = [np.array(session.score(PROMPTS[2], route=route).values) for route in stitched.ROUTES]
    assert {cache_dtype(graph.inputs) for graph in made["int8"].manifest.graphs.values()} == {"int8"}
    for plain, coded in zip(scores["fp32"], scores["int8"], strict=True):
        assert 0 < np.abs(plain - coded).mean() < 0.02 * np.abs(plain).mean()


def test_images_are_refused_with_codes_only(tmp_path: Path) -> None:
    vlm.write(tmp_path, "llava")
    spec = tmp_path / "model.yaml"
    with pytest.raises(PassError, match=r"target\.kv_cache: int8; '\w+' takes images, .*; fp16 is right"):
        compiled(tmp_path, spec, "int8")
    assert "float16" in {
        cache_dtype(graph.inputs) for graph in compiled(tmp_path, spec, "fp16").manifest.graphs.values()
    }


def test_tensorrt_is_refused() -> None:
    text = "version: 1\nmodels: {lm: {source: none}}\ntarget: {backend: tensorrt, kv_cache: int8}\n"
    with pytest.raises(SpecError, match=r"target\.kv_cache: .*int8; tensorrt keeps keys and values as its weights are"):
        parse_spec(text)


@pytest.mark.parametrize("version", ["1.25.1", "1.26.0"])
def test_an_engine_that_is_too_old(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(runtime.EngineError, match=rf"is int8, which onnxruntime {version} does not compute; 1\.27 or"):
        runtime.load(bundles["int8"].path)
    with runtime.load(bundles["fp16"].path):
        pass
