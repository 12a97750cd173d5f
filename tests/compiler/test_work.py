"""Work that a cold compile does once, by count: what a clock would tell depends on who else works."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adaptc.capture import text as capture_text
from adaptc.cli import main
from adaptc.compiler import stages
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.passes import store
from adaptc.passes.lower import translation
from adaptc.sources import base, tensors
from adaptc.sources.folder import tokenizer
from adaptc.sources.tensors import Tensors
from adaptc.spec.reading import read_spec
from tests.models import folder

LAYERS = 3
INT4 = ("target.weights=int4",)


def count(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, key: Callable[..., Any]) -> Counter[Any]:
    """Count the calls of a function by what `key` makes of their arguments."""
    calls: Counter[Any] = Counter()
    function = getattr(place, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls[key(*args)] += 1
        return function(*args, **options)

    monkeypatch.setattr(place, name, counted)
    return calls


def test_a_cold_compile_does_each_work_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    hashed = count(monkeypatch, base, "file_digest", lambda origin, path, *_: path.name)
    read = count(monkeypatch, Tensors, "stored", lambda self, name: name)
    models = count(monkeypatch, tensors, "model_of", lambda config: "")
    monkeypatch.setattr(store, "PROCESS", store.Memory())  # else other tests of this process have done the work
    monkeypatch.setattr(stages, "PROCESS", store.PROCESS)
    tokenizer._read.cache_clear()
    captured = count(monkeypatch, capture_text, "_export", lambda config, kinds, family: len(kinds))
    translated = count(monkeypatch, translation, "_export", lambda module, dims, layer: layer)
    tensors._shapes.cache_clear()
    made = compile_spec(read_spec(spec, INT4), spec.parent, tmp_path / "bundle", Cache(tmp_path / "cache"))
    assert not made.cached
    assert hashed["model.safetensors"] == 1
    assert set(hashed.values()) == {1}
    # A projection's codes are chosen from the weight as it was read, and by no one else: its key needs no numbers.
    projections = [name for name in read if "_proj" in name]
    assert len(projections) == 7 * LAYERS
    assert {read[name] for name in projections} == {1}
    assert models[""] == 1  # a model of full depth, for the shapes of its parameters
    assert captured == {LAYERS: 1}
    assert translated == {"": 2, "model.layers.0": 1}  # what is before the layers, one for all of them, what is after
    assert tokenizer._read.cache_info().misses == 1


def test_python_looks_for_garbage_as_before_when_a_compile_has_ended(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    before = gc.get_threshold()
    folders = ["-o", str(tmp_path / "bundle"), "--cache-dir", str(tmp_path / "cache")]
    done = CliRunner().invoke(main, ["compile", str(spec), *folders])
    assert done.exit_code == 0, done.output
    assert gc.get_threshold() == before
