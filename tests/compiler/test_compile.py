from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adaptc import runtime
from adaptc.checks.check import check
from adaptc.cli import main
from adaptc.compiler.cache import Cache, key_of
from adaptc.compiler.driver import Compiled, compile_spec
from adaptc.errors import BundleError, SpecError
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.progress import SILENT, Progress
from adaptc.spec.reading import read_spec
from tests.fakes.progress import Told
from tests.models import folder

IDS = [5, 9, 40, 7, 101, 33]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return folder.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Any]) -> Path:
    """A cache in which the tiny model is already lowered; tests copy it."""
    root = tmp_path_factory.mktemp("cache")
    build(tiny[0], root.parent / "first", root)
    return root


def build(spec: Path, into: Path, cache: Path, *settings: str, progress: Progress = SILENT) -> Compiled:
    return compile_spec(read_spec(spec, settings), spec.parent, into, Cache(cache), progress)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
def test_a_bundle_generates_what_the_model_does(
    weights: str, tiny: tuple[Path, Any], warm: Path, tmp_path: Path
) -> None:
    spec, model = tiny
    made = build(spec, tmp_path / "b", warm, f"target.weights={weights}")
    assert made.bundle.manifest.target.weights == weights
    with runtime.load(made.bundle.path) as session:
        result = session.generate(IDS, max_new_tokens=12)
        scores = session.score(IDS).values
    expected = folder.greedy(model, IDS, 12)
    stop = expected.index(1) + 1 if 1 in expected else len(expected)
    agree = sum(a == b for a, b in zip(result.ids, expected[:stop], strict=False))
    # Random weights make flat predictions, where few bits flip a choice; wide formats must not flip any.
    assert agree == stop or weights in ("int8", "int4")
    off = float(np.abs(scores - folder.scores(model, IDS)).mean())
    # 1e-7, 2.2e-4, 2.7e-3 and 0.063 were seen.
    assert off < {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.01, "int4": 0.15}[weights]


def test_the_second_compile_is_a_copy(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    first = build(tiny[0], tmp_path / "one", warm)
    second = build(tiny[0], tmp_path / "two", warm)
    assert second.cached
    assert second.bundle.manifest == first.bundle.manifest
    other = build(tiny[0], tmp_path / "three", warm, "target.max_tokens=32")
    assert not other.cached
    assert other.bundle.manifest.graphs["lm"].decoder.max_tokens == 32  # type: ignore[union-attr]


def test_the_manifest_says_what_was_done(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    manifest = build(tiny[0], tmp_path / "b", warm).bundle.manifest
    idle = [p.name for p in manifest.passes if not p.changed]  # no encoder, windows, adapters, gates
    assert idle == ["encoder_attention", "adapter_places", "sliding_cache", "switch_adapters", "branch"]
    assert manifest.models["lm"].architecture == "llama"
    assert manifest.bytes_per_token > 0
    assert (tmp_path / "b" / "spec.yaml").read_text().startswith("version: 1")
    assert json.loads((tmp_path / "b" / "report.json").read_text())["target"]["weights"] == "fp32"
    assert "<h1>lm</h1>" in (tmp_path / "b" / "report.html").read_text()
    # The onnx libraries refuse weights in a file of two names.
    assert {path.stat().st_nlink for path in (tmp_path / "b").rglob("*") if path.is_file()} == {1}


def test_interrupted_anywhere_the_old_bundle_stays_and_the_next_run_resumes(
    tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    into, cache = tmp_path / "b", tmp_path / "cache"
    build(tiny[0], into, tmp_path / "first-cache", "target.max_tokens=16")
    old = open_bundle(into).manifest
    told = Told()
    build(tiny[0], tmp_path / "other", tmp_path / "other-cache", progress=told)
    assert len(told.stages) > 10
    for at in told.stages:
        with pytest.raises(KeyboardInterrupt):
            build(tiny[0], into, cache, progress=Told(stop_at=at))
        assert open_bundle(into).manifest == old
        assert [p.name for p in tmp_path.iterdir() if "partial" in p.name or "weights" in p.name] == []
    resumed = Told()
    build(tiny[0], into, cache, progress=resumed)
    assert "capture lm" not in resumed.stages  # kept by an interrupted run
    assert open_bundle(into).manifest.graphs["lm"].decoder.max_tokens == 64  # type: ignore[union-attr]


def _in_another_process(spec: Path, into: Path, cache: Path, max_tokens: int) -> None:
    build(spec, into, cache, f"target.max_tokens={max_tokens}")


def test_two_processes_may_compile_into_one_place(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    cache = tmp_path / "cache"
    shutil.copytree(warm, cache)
    both = [
        context.Process(target=_in_another_process, args=(tiny[0], tmp_path / "b", cache, size)) for size in (16, 32)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    manifest = open_bundle(tmp_path / "b").manifest  # hashes are checked: it is one of the two, not a mix
    assert manifest.target.max_tokens in (16, 32)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_damaged_cache_entry_is_made_again(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(warm, cache)
    for data in (cache / "bundle").glob("*/content/graphs/lm.data"):
        content = bytearray(data.read_bytes())
        content[100] ^= 1
        data.write_bytes(content)
    made = build(tiny[0], tmp_path / "b", cache)
    assert not made.cached
    assert open_bundle(tmp_path / "b").manifest == made.bundle.manifest
    assert build(tiny[0], tmp_path / "b", cache).cached


def test_two_models_need_a_pass_that_joins_them(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    spec = tiny[0].with_name("two.yaml")
    spec.write_text("version: 1\nmodels: {a: {source: model}, b: {source: model}}\n")
    with pytest.raises(SpecError, match=r"^models: a, b, and no pass that joins them"):
        build(spec, tmp_path / "b", tmp_path / "cache")


def test_what_check_finds_wrong_is_refused_with_its_sentences(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny[0].parent, tmp_path / "spec")
    config = tmp_path / "spec" / "model" / "config.json"
    rope = {"rope_type": "ntk", "rope_theta": 1e4, "factor": 2.0}
    wrong = {"rope_parameters": rope, "num_key_value_heads": 3}
    config.write_text(json.dumps(json.loads(config.read_text()) | wrong))
    spec, told = tmp_path / "spec" / "model.yaml", Told()
    errors = [found.text for found in check(read_spec(spec), spec.parent).findings if found.level == "error"]
    assert len(errors) == 3  # heads, RoPE, and the weights' shapes
    with pytest.raises(SpecError) as caught:
        build(spec, tmp_path / "b", tmp_path / "cache", progress=told)
    assert str(caught.value).splitlines() == [f"models.lm: {text}" for text in errors]
    assert told.stages == ["find models", "load torch and transformers"]


def test_compile_prints_stages_to_stderr_and_the_report_to_stdout(
    tiny: tuple[Path, Any], warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptc.cli.progress.QUIET_FOR", 0.0)
    plain = run("compile", tiny[0], "-o", tmp_path / "b", "--cache-dir", warm)
    assert plain.exit_code == 0
    assert "find models" in plain.stderr
    assert "a token reads" in plain.stdout
    assert len(plain.stdout.splitlines()) <= 10
    as_json = run("compile", tiny[0], "-o", tmp_path / "b", "--cache-dir", warm, "--json")
    assert json.loads(as_json.stdout)["models"]["lm"]["source"] == "model"


def test_dry_run_writes_nothing(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    result = run("compile", tiny[0], "-o", tmp_path / "b", "--cache-dir", tmp_path / "cache", "--dry-run")
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("pass")] == [
        "lower",
        "encoder_attention",
        "kv_cache",
        "logits_from",
        "fuse_norms",
        "fuse_projections",
        "adapter_places",
        "float_weights",
        "device_steps",
        "sliding_cache",
        "switch_adapters",
        "branch",
        "verify_drafts",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_refused_before_work_begins(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    told = Told()
    with pytest.raises(BundleError, match="mine"):
        build(tiny[0], tmp_path / "mine", tmp_path / "cache", progress=told)
    assert told.stages == []
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_cache_lists_and_clears(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(warm, cache)
    listed = run("cache", "ls", "--cache-dir", cache, "--json")
    kinds = {entry["kind"] for entry in json.loads(listed.stdout)}
    assert {"bundle", "lowered", "translation"} <= kinds
    lines = run("cache", "ls", "--cache-dir", cache).stdout.splitlines()
    assert {line.split()[0] for line in lines} == kinds  # many entries of a kind are one line
    assert run("cache", "clear", "--cache-dir", cache, "--kind", "bundle").exit_code == 0
    assert {entry.kind for entry in Cache(cache).entries()} == kinds - {"bundle"}
    run("cache", "clear", "--cache-dir", cache)
    assert list(Cache(cache).entries()) == []


def test_many_small_entries_are_listed_as_one_line(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(30):
        cache.write("gptq", key_of(number), bytes(100_000))
    cache.write("bundle", key_of("other"), b"content")
    lines = run("cache", "ls", "--cache-dir", tmp_path).stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [["gptq", "30", "entries", "3.0", "MB"]]
    assert lines[0].startswith("bundle ")
    assert len(json.loads(run("cache", "ls", "--cache-dir", tmp_path, "--json").stdout)) == 31


def test_show_prints_programs_and_what_passes_change(tiny: tuple[Path, Any], warm: Path, tmp_path: Path) -> None:
    kept = ("--cache-dir", tmp_path / "cache")
    captured = run("show", tiny[0], "--after", "capture", *kept).stdout
    assert "causal_attention" in captured
    diff = run("show", tiny[0], "--after", "kv_cache", "--diff", *kept).stdout
    assert "-%model.layers.0.self_attn/CausalAttention: " in diff
    assert "GroupQueryAttention(" in diff
    page = run("show", tiny[0], "--html", tmp_path / "page.html", *kept)
    assert page.exit_code == 0
    assert "GroupQueryAttention" in (tmp_path / "page.html").read_text()
    build(tiny[0], tmp_path / "b", warm)
    assert "GroupQueryAttention(" in run("show", tmp_path / "b").stdout
    wrong = run("show", tiny[0], "--after", "kv_cahe", *kept)
    assert wrong.exit_code == 1
    assert "--after kv_cahe: no such pass here; there are: capture, lower, encoder_attention, kv_cache" in wrong.stderr
