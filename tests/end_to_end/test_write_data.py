"""Chats that a model writes: by a session, and as the text that its own compile is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.names import SPEC
from adaptc.sources.chats import Chat, append_chats, begin_chats
from adaptc.sources.find import find_source
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import CalibrationSpec, Spec
from adaptc.writing import calibration
from adaptc.writing.calibration import calibration_of
from adaptc.writing.run import WritingLimits, WritingPlace, model_to_write
from adaptc.writing.session_writer import SessionWriter
from tests.models import folder
from tests.writing.test_torch_writer import ENDS, Listed, jobs


def test_a_session_writes_what_each_text_gives_alone(tmp_path: Path) -> None:
    """Four slots for twelve texts, and an end when it is time."""
    spec, model = folder.write(tmp_path, "qwen2")
    compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))
    with runtime.load(tmp_path / "bundle", "cpu", batch=4) as session:
        listed = Listed(jobs(12))
        SessionWriter(session, ENDS, batch=4).run(listed, 0)
        assert len(listed.found) == 12
        for job in jobs(12):
            alone = folder.greedy(model, list(job.prompt), job.most)
            end = next((at for at, token in enumerate(alone) if token in ENDS), None)
            assert listed.found[job.purpose].ids == tuple(alone[:end])
            assert listed.found[job.purpose].end == (None if end is None else alone[end])
        stopped = Listed(jobs(400), give_up_after=1)
        SessionWriter(session, ENDS, batch=4).run(stopped, 0)
        assert len(stopped.found) < 400


def chats_of(seed: int) -> list[Chat]:
    random = np.random.default_rng(seed)
    return [Chat(tuple(random.integers(2, 300, 40).tolist()), ((10, 40),), "any", ()) for _ in range(12)]


def with_calibration(spec: Spec, text: str) -> Spec:
    return spec.model_copy(update={"calibration": CalibrationSpec(text=text, tokens=400)})


def test_a_model_is_calibrated_on_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written once is used by every compile; it counts as a file of the same chats does."""
    path, _ = folder.write(tmp_path, "qwen2", weights="int4", hidden_size=64, intermediate_size=64)
    read = read_spec(path)
    source = find_source(read.models["lm"], tmp_path)
    written: list[int] = []

    def write_data(spec: Spec, recipe: object, limits: WritingLimits, place: WritingPlace, **_: object) -> None:
        written.append(limits.tokens)
        begin_chats(place.output, {"vocabulary": vocabulary(source)})
        append_chats(place.output, chats_of(1))

    monkeypatch.setattr(calibration, "write_data", write_data)
    cache = Cache(tmp_path / "cache")
    spec = with_calibration(read, "self")
    texts = [calibration_of(spec, tmp_path, cache) for _ in range(2)]
    assert written == [400]
    assert [text.name for text in texts] == ["self", "self"]
    compiled = compile_spec(spec, tmp_path, tmp_path / "self", cache, text=texts[1])
    assert "text: self" in compiled.bundle.file(SPEC).read_text()

    write_data(spec, None, WritingLimits(400), WritingPlace(tmp_path, tmp_path / "chats.jsonl", cache))
    by_file = compile_spec(with_calibration(read, "chats.jsonl"), tmp_path, tmp_path / "file", cache)
    own = compile_spec(read, tmp_path, tmp_path / "own", cache)

    def weights(bundle: runtime.Bundle) -> list[str]:
        return [file.sha256 for name, file in sorted(bundle.manifest.files.items()) if name.endswith(".data")]

    assert weights(compiled.bundle) == weights(by_file.bundle) != weights(own.bundle)


def test_the_largest_model_writes(tmp_path: Path) -> None:
    folder.write(tmp_path / "small", "qwen2")
    folder.write(tmp_path / "large", "qwen2", num_hidden_layers=5)
    models = {name: {"source": f"{name}/model"} for name in ("large", "small")}
    spec = Spec.model_validate({"version": 1, "models": models})
    assert model_to_write(spec, tmp_path)[0] == "large"
    assert model_to_write(spec, tmp_path, "small")[0] == "small"
