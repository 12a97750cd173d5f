"""Subsets of modalities for TensorRT: legal graphs, engines of encoders and heads, and a session on a fake GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.backends.cuda.engine import GpuEngine
from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.tensorrt.build import build_engines
from adaptc.runtime.backends.tensorrt.engines import EngineFolder, content_of
from adaptc.runtime.backends.tensorrt.layers import DATA_DEPENDENT, kinds
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import EngineError
from adaptc.runtime.loading import load_modal
from adaptc.spec.reading import read_spec
from tests.fakes.cuda import FakeCuda
from tests.fakes.partition_runner import array_at
from tests.models import views

SETTINGS = ("target.backend=tensorrt-rtx", "target.weights=fp16", "target.batch=4")
HALF = 2e-2
"""What half precision may differ from float32."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("views")
    spec = views.write(folder / "spec")
    kept = "sound: [wave]}\n      keep: [[text], [image, text, sound]]"
    spec.write_text(spec.read_text().replace("sound: [wave]}", kept))
    return compile_spec(read_spec(spec, SETTINGS), spec.parent, folder / "bundle", Cache(folder / "cache")).bundle


class OrtRunner:
    """An engine over addresses that is ONNX Runtime; it has ids as int32, as 8.6 would."""

    def __init__(self, file: Path) -> None:
        self.session: Any = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.types = {t.name: t.type for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.rows: list[int] = []
        self.closed = False

    def dtype(self, name: str) -> np.dtype[Any]:
        known = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int32}
        return np.dtype(known[self.types[name]])

    def enqueue(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: Any) -> None:
        feeds = {name: array_at(addresses[name], shape, self.dtype(name)) for name, shape in shapes.items()}
        wide = {n: a.astype(np.int64) if self.types[n] == "tensor(int64)" else a for n, a in feeds.items()}
        names = [t.name for t in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, wide), strict=True):
            array_at(addresses[name], value.shape, self.dtype(name))[...] = value
        self.rows.append(len(next(iter(feeds.values()))))

    def close(self) -> None:
        self.closed = True


def engine(bundle: Bundle, name: str, rows: int = 4) -> GpuEngine:
    spec = bundle.manifest.graphs[name]
    return GpuEngine(FakeCuda(), OrtRunner(bundle.path / spec.file), spec.inputs, spec.outputs, rows)


def test_every_subset_on_a_fake_gpu_equals_eager(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GpuEngine] = []

    def load(bundle: Bundle, name: str) -> Engine:
        made.append(engine(bundle, name))
        return made[-1]

    monkeypatch.setattr("adaptc.runtime.backends.tensorrt.backend.tensorrt_engine", load)
    given = views.feeds(6)  # more rows than an engine takes at once
    with load_modal(bundle.path) as session:
        for subset in bundle.manifest.modal["views"].subsets:
            names = [each for name in subset.modalities for each in views.MODALITIES[name]]
            answer = session.infer({name: given[name] for name in names}, modalities=subset.modalities)
            np.testing.assert_allclose(answer.outputs["logits"], views.eager(given, subset.modalities), HALF, HALF)
    assert all(each._cuda.closed and each._runner.closed for each in made)  # type: ignore[attr-defined]


def test_more_rows_than_an_engine_takes_go_in_parts(bundle: Bundle) -> None:
    mine = engine(bundle, "views.encode.text", rows=4)
    given = {name: views.feeds(9)[name] for name in ("ids", "mask")}
    out = {spec.name: np.empty((9, *map(int, spec.shape[1:])), np.float32) for spec in mine.outputs}
    mine.bind(given, out)()
    assert mine._runner.rows == [4, 4, 1]  # type: ignore[attr-defined]
    mine.close()
    mine.close()
    with pytest.raises(EngineError, match="closed"):
        mine.bind(given, out)()


def test_encoders_and_heads_are_engines_of_their_own(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'adaptc[rtx]'")
    built = build_engines(bundle, "tensorrt-rtx", sm=(86,))
    assert {record.name for record in built} == set(bundle.manifest.graphs)
    assert {record.sizes["batch"] for record in built} == {(1, 4, 4)}
    for record in built:
        assert record.layers
        assert not kinds(record.layers) & DATA_DEPENDENT
        assert record.graph == content_of(bundle, bundle.manifest.graphs[record.name].file)
    assert len(EngineFolder(bundle.path, "tensorrt-rtx").records()) == len(built)


def test_loading_without_a_gpu_is_one_line(bundle: Bundle) -> None:
    with runtime.load(bundle.path) as session, pytest.raises(EngineError, match=r"^(cuda|cuda-bindings): [^\n]+$"):
        session.infer(views.feeds(1))  # type: ignore[attr-defined]
    with pytest.raises(runtime.RequestError, match=r"device: 'cpu'; .* compiled for tensorrt-rtx: its device is 'gpu'"):
        runtime.load(bundle.path, device="cpu")
