"""Stages are kept one by one: a pass that is added repeats only what it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adaptc.compiler import stages
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.program import Program
from adaptc.passes.lower import translation
from adaptc.passes.quantize import calibrate
from adaptc.passes.store import Memory
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.compiler.test_cache import flip
from tests.models import folder

INT4 = ("target.weights=int4",)
GATED = (*INT4, "passes=[{skip_ffn: {policy: static, layers: [1]}}]")


@dataclass
class Work:
    """What was done, not taken from the cache: layers translated, weights rounded."""

    translated: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.translated.clear()
        self.rounded.clear()


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """sha256 of graphs and weights by their names in the bundle."""
    files = bundle.manifest.files.items()
    return {name: record.sha256 for name, record in files if name.startswith("graphs/")}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts, in a process that remembers nothing of other tests."""
    work = Work()
    translate, quantize = translation.translate, calibrate._quantize

    def translated(layer_slice: Any, *rest: Any) -> Any:
        work.translated.append(layer_slice.layer)
        return translate(layer_slice, *rest)

    def quantized(walk: Any, graph: Any, read: Any, group: list[str], *rest: Any) -> Any:
        work.rounded += group
        return quantize(walk, graph, read, group, *rest)

    monkeypatch.setattr(translation, "translate", translated)
    monkeypatch.setattr(calibrate, "_quantize", quantized)
    monkeypatch.setattr(stages, "PROCESS", Memory(limit=0))
    return work


def test_adding_skip_ffn_repeats_neither_rounding_nor_translation_of_other_layers(work: Work, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    cache = Cache(tmp_path / "cache")
    compile_spec(read_spec(spec, INT4), spec.parent, tmp_path / "dense", cache)
    assert len(work.rounded) == 3 * 7 + 1
    assert work.translated == ["", "model.layers.0", ""]
    work.clear()
    gated = compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "gated", cache)
    assert work.rounded == []  # calibration runs every block, so no layer reads anything else
    assert work.translated == ["model.layers.1"]  # the one with a gate
    assert "skip_ffn" in [record.name for record in gated.bundle.manifest.passes if record.changed]


def test_what_is_kept_is_what_would_be_made(work: Work, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    cache = Cache(tmp_path / "cache")
    compile_spec(read_spec(spec, INT4), spec.parent, tmp_path / "dense", cache)
    first = compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "gated", cache).bundle
    anew = compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "anew", Cache(tmp_path / "other")).bundle
    assert graph_hashes(first) == graph_hashes(anew)


def test_other_calibration_text_repeats_the_rounding_alone(work: Work, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    (tmp_path / "text.txt").write_text("Other words, in another order. " * 60)
    cache = Cache(tmp_path / "cache")
    compile_spec(read_spec(spec, INT4), spec.parent, tmp_path / "a", cache)
    work.clear()
    settings = (*INT4, "calibration={text: text.txt}")
    compile_spec(read_spec(spec, settings), spec.parent, tmp_path / "b", cache)
    assert work.translated == []
    assert len(work.rounded) == 3 * 7 + 1


def test_another_target_begins_at_the_lowered_program(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = folder.write(tmp_path)
    cache = Cache(tmp_path / "cache")
    compile_spec(read_spec(spec, INT4), spec.parent, tmp_path / "a", cache)
    work.clear()

    def captured(*_: Any) -> Program:
        raise AssertionError("captured again")

    monkeypatch.setattr(stages, "program_from_sources", captured)
    compile_spec(read_spec(spec, (*INT4, "target.max_tokens=32")), spec.parent, tmp_path / "b", cache)
    assert work == Work()


def test_a_damaged_entry_of_any_kind_is_made_again(work: Work, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    cache = Cache(tmp_path / "cache")
    whole = compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "a", cache).bundle
    kinds = {entry.kind for entry in cache.entries()}
    assert kinds == {"bundle", "lowered", "gptq", "translation", "warnings"}
    rounded = len(work.rounded)
    for entry in list(cache.entries()):
        for file in (path for path in entry.path.rglob("*") if path.is_file()):
            flip(file)
    work.clear()
    again = compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "b", cache)
    assert not again.cached
    assert len(work.rounded) == rounded
    assert graph_hashes(again.bundle) == graph_hashes(whole)
    assert compile_spec(read_spec(spec, GATED), spec.parent, tmp_path / "c", cache).cached
