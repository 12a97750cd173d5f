"""Small bundles of every kind, and a spec whose compile has every stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.backends.onnxruntime_cpu.packing import pack
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.models import folder, views
from tests.repo import ROOT

STORED = ROOT / "tests" / "stored" / "schema3"
SETTINGS = ("target.weights=int4", "target.batch=2")


@dataclass(frozen=True, slots=True)
class Subject:
    """Attributes: name: of its kind; path: its folder; ask: what is asked of it."""

    name: str
    path: Path
    ask: Callable[[Path], Any]


def spec(scratch: Path) -> Path:
    """A tiny model; compiling it captures, lowers, rounds codes and writes a bundle."""
    scratch.mkdir(parents=True, exist_ok=True)
    path, _ = folder.write(scratch)
    return path


def compiled(path: Path, into: Path, cache: Path) -> Bundle:
    return compile_spec(read_spec(path, SETTINGS), path.parent, into, Cache(cache)).bundle


def bundles(scratch: Path) -> list[Subject]:
    """A decoder, the same with packed weights, with gates, with routes, and a classifier of three modalities."""
    path = spec(scratch / "spec")
    compiled(path, scratch / "decoder", scratch / "cache")
    packed = shutil.copytree(scratch / "decoder", scratch / "packed")
    pack(runtime.open_bundle(packed))
    for name in ("gated", "stitched"):
        shutil.copytree(STORED / name, scratch / name)
    model = views.write(scratch / "views")
    compile_spec(read_spec(model), model.parent, scratch / "modal", Cache(scratch / "cache"))
    answers = {"decoder": text, "packed": text, "gated": text, "stitched": text, "modal": classes}
    return [Subject(name, scratch / name, ask) for name, ask in answers.items()]


def text(bundle: Path) -> Any:
    """What a bundle writes, with a chat if it has a template."""
    with runtime.load(bundle, threads=1) as session:
        said = session.generate("hello world", max_new_tokens=6)
        again = session.generate([5, 9, 40], max_new_tokens=6, budget=0.5 if session.gates else None)
        chat = session.chat([{"role": "user", "content": "hi"}], max_new_tokens=3)
        return said.text, said.ids, again.ids, chat.ids


def classes(bundle: Path) -> Any:
    """What a classifier says to every subset of its modalities."""
    given = views.feeds(2)
    with runtime.load_modal(bundle, threads=1) as session:
        return [
            session.infer(given, modalities=subset.modalities).outputs["logits"].tolist()
            for subset in session.modal.subsets
        ]
