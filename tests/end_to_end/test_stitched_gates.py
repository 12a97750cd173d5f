"""Gates in a stitched bundle: twins without them for the trunk and each tail, and others in their place by `gates`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.stored.gates_file import GatesMetadata, save_gates
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.backends.host.dense_twin import TwinEngine
from adaptc.runtime.backends.host.routed import HostRoutedDecoder
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.loading import load_decoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from tests.models import stitched

LAYERS = (1, 2, 4)
"""Of the large model, whose first ones are in the trunk and others in two tails."""

IDS = np.random.default_rng(3).integers(2, 300, 12).tolist()


def gates_file(folder: Path, path: Path, seed: int, model: str = "large", layers: tuple[int, ...] = LAYERS) -> Path:
    """Random gates for one of the models."""
    source = find_source(read_spec(folder / "model.yaml").models[model], folder)
    blocks = gating.ffn_blocks(stitched.program().graph(model, FxGraph))
    random = torch.Generator().manual_seed(seed)
    shapes = {n: s for layer in layers for n, s in gating.parameters(blocks[layer], 4).items()}
    weights = {name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()}
    points, written = ((0.2, -0.4), (0.5, seed / 10)), ((0.2, -0.9), (0.5, -0.3))
    loss = ((0.0, 0.0), (0.2, 0.01), (0.5, 0.2))
    metadata = GatesMetadata("tiny", source.sha256(), layers, len(blocks), 4, 2, points, (), {}, written, loss)
    save_gates(metadata, weights, path)
    return path


def compiled(folder: Path, gates: Path, into: Path) -> Bundle:
    spec = folder / f"{into.name}.yaml"
    skip = f"  - skip_ffn: {{model: large, gates: {gates}, cheap: low_rank(4), warmup: 2, batch: any}}\n"
    spec.write_text((folder / "model.yaml").read_text().replace("passes:\n", f"passes:\n{skip}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pays, "payoff", lambda *given: Payoff(1e-3, 1e-3, 0.8e-3, len(given[2].layers)))
        patch.setattr(pays, "TOKENS", 0)
        return compile_spec(read_spec(spec), folder, into, Cache(folder / "cache")).bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched_gates")
    stitched.write(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return compiled(folder, gates_file(folder, folder / "gates.safetensors", 1), folder / "bundle")


def scores(bundle: Bundle, route: str, budget: float) -> npt.NDArray[np.float32]:
    with runtime.load(bundle.path, threads=1) as session:
        return session.score(IDS, step=True, route=route, budget=budget).values


def test_the_trunk_and_each_tail_have_a_twin(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert set(manifest.gates) == {"trunk", "tail.large", "tail.sandwich"}
    for name, gates in manifest.gates.items():
        assert gates.dense == f"{name}.dense"
        assert "threshold" not in {each.name for each in manifest.graphs[gates.dense].inputs}
        assert set(manifest.graphs[gates.dense].data) <= set(manifest.graphs[name].data), "over the same weights"
    assert manifest.graphs["trunk"].decoder == manifest.graphs["trunk.dense"].decoder


def test_a_dense_step_runs_the_twins_and_says_what_the_gated_graphs_say(bundle: Bundle) -> None:
    """At budget 1 no gate is computed; and what the twins compute is what gated graphs do that skip nothing."""
    decoder = load_decoder(bundle, DecoderOptions(threads=1))
    assert isinstance(decoder, HostRoutedDecoder)
    segments = [decoder._trunk, *(decoder._tails[route] for route in ("large", "sandwich"))]
    engines = [each._engine for each in segments]
    assert all(isinstance(engine, TwinEngine) for engine in engines)
    try:
        for budget, forms in ((1.0, {"dense"}), (0.0, {"dense", "gated"})):
            decoder.start(0, np.array(IDS[:6]), RequestOptions(route="large", budget=budget))
            decoder.decode([IDS[6]])
            assert [set(engine._loaded) for engine in engines[:2]] == [forms, forms]
    finally:
        decoder.close()
    for route in ("large", "sandwich"):
        twins = scores(bundle, route, 1.0)
        barely = scores(bundle, route, 1 - 1e-12)  # gates are asked, and skip nothing
        np.testing.assert_allclose(twins, barely, atol=1e-4)
        assert np.abs(scores(bundle, route, 0.0) - twins).max() > 1e-3


def test_written_text_has_its_table_in_each_part(bundle: Bundle) -> None:
    for gates in bundle.manifest.gates.values():
        assert gates.written[1:] == ((0.2, -0.9), (0.5, -0.3))
    with (
        runtime.load(bundle.path, threads=1) as session,
        pytest.raises(runtime.RequestError, match="routes, of which no loss"),
    ):
        session.generate(IDS, max_loss=0.1)


def test_gates_are_swapped_by_model_in_the_trunk_and_the_tails(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.has("gates/large.safetensors")
    other = gates_file(folder, tmp_path / "other.safetensors", 2)
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    done = CliRunner().invoke(main, ["gates", str(copy), str(other)])
    assert done.exit_code == 0, done.output
    swapped, again = open_bundle(copy), compiled(folder, other, tmp_path / "again")
    assert (copy / "gates/large.safetensors").read_bytes() == other.read_bytes()
    assert set(swapped.manifest.replaced_gates) == set(bundle.manifest.gates)
    for name, gates in again.manifest.gates.items():
        assert swapped.manifest.gates[name] == gates
    for route in stitched.ROUTES:
        for budget in (1.0, 0.0):
            np.testing.assert_array_equal(scores(swapped, route, budget), scores(again, route, budget))
    assert np.abs(scores(swapped, "large", 0.0) - scores(bundle, "large", 0.0)).max() > 1e-3
    assert (scores(swapped, "large", 1.0) == scores(bundle, "large", 1.0)).all(), "dense is dense"


def test_gates_that_do_not_fit_are_refused(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    from adaptc.compiler.swap import swap_gates

    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "small", "layers": (1,)}, "this bundle has none of it"),
        ({"layers": (1, 2)}, r"layers \[1, 2\]; this bundle's are \[1, 2, 4\]"),
    ]
    for number, (changed, match) in enumerate(cases):
        file = gates_file(folder, tmp_path / f"{number}.safetensors", 3, **changed)
        with pytest.raises(runtime.BundleError, match=match):
            swap_gates(bundle, file)
