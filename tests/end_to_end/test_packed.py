"""Weights packed by `adaptc build`: every graph of a bundle reads them from one file, and computes what it computed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.backends.onnxruntime_cpu.packed import PACKED, RECORD, packed_record
from adaptc.runtime.backends.onnxruntime_cpu.packing import pack
from adaptc.runtime.bundle.built import BUILT, add_built
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.models import stitched

IDS = np.random.default_rng(3).integers(2, 300, 40).tolist()


@pytest.fixture
def bundle(tmp_path: Path, made: Path) -> Bundle:
    """A stitched bundle in int4, of the test's own."""
    spec = read_spec(made / "model.yaml", ("target.weights=int4", "target.block_size=16"))
    return compile_spec(spec, made, tmp_path / "bundle", Cache(made / "cache")).bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched")
    stitched.write(folder)
    return folder


def scores(bundle: Bundle, *, verify: bool = True) -> dict[str, npt.NDArray[np.float32]]:
    with runtime.load(bundle.path, threads=1, verify=verify) as session:
        return {route: session.score(IDS, route=route).values for route in stitched.ROUTES}


def test_numbers_stay_and_routes_share(bundle: Bundle) -> None:
    before = scores(bundle)
    record = pack(bundle)
    assert packed_record(bundle.path / "graphs") == record
    assert (bundle.path / "graphs" / PACKED).stat().st_size == record.bytes
    assert not [p for p in bundle.path.rglob("*") if "partial" in p.name or p.name.startswith(".pack")]
    forms = {bundle.manifest.files[bundle.manifest.graphs[name].file].sha256 for name in bundle.manifest.forms}
    places = [entry for graph, entries in record.graphs.items() if graph not in forms for entry in entries]
    assert len(record.graphs) == len(bundle.manifest.graphs) == len(forms) + 1 + len(stitched.ROUTES)
    for name, graphs in bundle.manifest.verification.items():
        own, *others = (
            {*record.graphs[bundle.manifest.files[bundle.manifest.graphs[graph].file].sha256]}
            for graph in (name, *(each.graph for each in graphs))
        )
        assert all(each == own for each in others), "what verifies reads what it verifies for"
    assert len(places) > 1.2 * len(set(places)), "routes share layers, or this would show nothing"
    for route, found in scores(bundle).items():
        np.testing.assert_array_equal(found, before[route], err_msg=route)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_map_the_file(bundle: Bundle) -> None:
    def mapped() -> int:
        return sum(PACKED in line for line in Path("/proc/self/maps").read_text().splitlines())

    pack(bundle)
    assert mapped() == 0
    with runtime.load(bundle.path, threads=1) as session:
        session.score(IDS, route="large")
        assert mapped() > 0
    assert mapped() == 0


def test_a_damaged_file_is_told(bundle: Bundle) -> None:
    """By its hash; where the caller looks at no hash, by ONNX Runtime, which compares blocks with what it packs."""
    pack(bundle)
    file = bundle.path / "graphs" / PACKED
    content = bytearray(file.read_bytes())
    file.write_bytes(bytes(len(content)))
    with pytest.raises(runtime.BundleError, match=f"{PACKED}: changed since it was written"):
        runtime.load(bundle.path)
    with pytest.raises(runtime.EngineError, match=r"trunk\.onnx: onnxruntime cannot load it: .*pre-packed weights"):
        runtime.load(bundle.path, verify=False)
    file.write_bytes(content[:-1])
    with pytest.raises(runtime.BundleError, match=rf"{PACKED}: not the {len(content)} bytes that were packed"):
        runtime.load(bundle.path, verify=False)


def test_a_record_that_does_not_read(bundle: Bundle) -> None:
    pack(bundle)
    (bundle.path / "graphs" / RECORD).write_text("{}")
    with pytest.raises(runtime.BundleError, match=rf"{RECORD}: changed since it was written; adaptc build packs again"):
        runtime.load(bundle.path)
    add_built(bundle.path, [f"graphs/{RECORD}"])
    with pytest.raises(runtime.BundleError, match=rf"{RECORD}: .*; adaptc build packs again"):
        runtime.load(bundle.path)


def test_packed_weights_that_were_not_built_here_are_not_read(bundle: Bundle) -> None:
    pack(bundle)
    (bundle.path / "graphs" / PACKED).write_bytes(b"planted")
    (bundle.path / "graphs" / RECORD).write_bytes(b"planted")
    (bundle.path / BUILT).unlink()
    assert packed_record(bundle.path / "graphs") is None
    assert scores(bundle)


def test_other_graphs_and_other_processors_go_on_without(bundle: Bundle) -> None:
    """Blocks that this machine would not have packed so are not used; nor is what was packed for another graph."""
    before = scores(bundle)
    pack(bundle)
    record = bundle.path / "graphs" / RECORD
    text = record.read_text()
    record.write_text(text.replace("MatMulNBits+", "MatMulNBits+9"))
    add_built(bundle.path, [f"graphs/{RECORD}"])
    for route, found in scores(bundle).items():
        np.testing.assert_array_equal(found, before[route], err_msg=route)
    record.write_text(text.replace(bundle.manifest.files["graphs/trunk.onnx"].sha256, "0" * 64))
    add_built(bundle.path, [f"graphs/{RECORD}"])
    for route, found in scores(bundle).items():
        np.testing.assert_array_equal(found, before[route], err_msg=route)


def test_build_packs(bundle: Bundle) -> None:
    done = CliRunner().invoke(main, ["build", str(bundle.path)])
    assert done.exit_code == 0, done.output
    assert f"weights of {len(bundle.manifest.graphs)} graphs packed" in done.stdout
    assert packed_record(bundle.path / "graphs") is not None
    again = CliRunner().invoke(main, ["build", str(bundle.path), "--json"])
    assert again.exit_code == 0, again.output
    assert CliRunner().invoke(main, ["build", str(bundle.path), "--batch", "2"]).exit_code == 2
