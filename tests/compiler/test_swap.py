"""Gates in a bundle are replaced by others, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.stages import program_from_sources
from adaptc.compiler.swap import swap_gates
from adaptc.errors import AdaptcError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.stored.gates_file import GatesMetadata, load_gates, save_gates
from adaptc.ir.weight_names import GATES, is_trained
from adaptc.passes.skip_ffn import gating
from adaptc.report.graphs import stored_graph
from adaptc.runtime import Bundle, load, open_bundle
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.loading import load_decoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.progress import SILENT
from adaptc.runtime.speculation.self_check import CLOSE, self_check
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from tests.cli.running import run_without_compiler
from tests.models import folder
from tests.models.drafts import compared

IDS = [5, 9, 40, 7, 101, 33, 8, 21, 60, 61, 62, 63]


def gates_file(spec: Path, path: Path, seed: int, **changed: Any) -> Path:
    """Random gates for a spec's tiny model."""
    given = read_spec(spec)
    source = find_source(given.models["lm"], spec.parent)
    program = program_from_sources({"lm": source}, calibration_text(None, spec.parent), SILENT)
    places = gating.ffn_blocks(program.graph("lm", FxGraph))
    random = torch.Generator().manual_seed(seed)
    metadata = GatesMetadata("tiny", source.sha256(), (1, 2), 3, 4, 2, ((0.1, -0.4), (0.5, 0.6 + seed)))
    metadata = dataclasses.replace(metadata, **changed)
    shapes = {n: s for layer in metadata.layers for n, s in gating.parameters(places[layer], metadata.rank).items()}
    save_gates(metadata, {n: torch.randn(s, generator=random) * 0.3 for n, s in shapes.items()}, path)
    return path


@pytest.fixture(scope="module", params=["int4", "fp32"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A tiny bundle with gates: the spec and the bundle."""
    root = tmp_path_factory.mktemp(request.param)
    spec, _ = folder.write(root, weights=request.param)
    gates_file(spec, root / "gates.safetensors", 1)
    spec.write_text(
        spec.read_text() + "passes: [{skip_ffn: {gates: gates.safetensors, cheap: low_rank(4), warmup: 2}}]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1e-3, 0.5e-3, 2))
        patch.setattr(pays, "TOKENS", 0)
        made = compile_spec(read_spec(spec), root, root / "bundle", Cache(root / "cache"))
    return spec, made.bundle


def scores(bundle: Bundle, budget: float) -> Any:
    with load(bundle.path, threads=1) as session:
        return session.score(IDS, step=True, budget=budget).values


def test_gates_lie_in_files_of_their_own(built: tuple[Path, Bundle]) -> None:
    spec, bundle = built
    assert {f"graphs/{GATES}", "gates/lm.safetensors"} <= set(bundle.manifest.files)
    assert f"graphs/{GATES}" in bundle.manifest.graphs["lm"].data
    assert (bundle.path / "gates/lm.safetensors").read_bytes() == (spec.parent / "gates.safetensors").read_bytes()


def test_swapped_gates_are_those_of_a_new_compile(built: tuple[Path, Bundle], tmp_path: Path) -> None:
    spec, bundle = built
    old = [scores(bundle, budget) for budget in (1, 0)]
    file = gates_file(spec, tmp_path / "other.safetensors", 2)
    untouched = {name: (bundle.path / name).read_bytes() for name in ("graphs/lm.onnx", "graphs/lm.data")}
    result = CliRunner().invoke(main, ["gates", str(bundle.path), str(file)])
    assert result.exit_code == 0, result.output
    swapped = open_bundle(bundle.path)
    assert {name: (swapped.path / name).read_bytes() for name in untouched} == untouched
    assert swapped.manifest.gates["lm"].thresholds == ((0.0, -math.inf), (0.1, -0.4), (0.5, 2.6))
    assert "other.safetensors" in (swapped.path / "report.html").read_text()
    new = [scores(swapped, budget) for budget in (1, 0)]
    assert (new[0] == old[0]).all(), "dense is dense"
    assert np.abs(new[1] - old[1]).max() > 1e-3
    if bundle.manifest.target.weights == "fp32":
        spec.with_name("again.yaml").write_text(spec.read_text().replace("gates.safetensors", str(file)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1e-3, 0.5e-3, 2))
            patch.setattr(pays, "TOKENS", 0)
            again = spec.with_name("again.yaml")
            made = compile_spec(read_spec(again), spec.parent, tmp_path / "new", Cache(tmp_path / "cache"))
        assert (scores(made.bundle, 0) == new[1]).all()
    swap_gates(swapped, spec.parent / "gates.safetensors")
    back = scores(open_bundle(bundle.path), 0)
    assert np.abs(back - old[1]).max() < (1e-6 if bundle.manifest.target.weights == "fp32" else 2.0)


def test_what_verifies_drafts_has_the_new_gates(built: tuple[Path, Bundle], tmp_path: Path) -> None:
    """They lie in the file once, and are read by each form of the graph."""
    spec, bundle = built
    copy = open_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    swapped = swap_gates(copy, gates_file(spec, tmp_path / "other.safetensors", 4))
    trained = [
        {each.name: each.const_value.offset for each in constants if each.const_value and is_trained(each.name)}
        for name in ("lm", *(each.graph for each in swapped.manifest.verification["lm"]))
        if (constants := stored_graph(swapped, swapped.manifest.graphs[name].file).initializers.values())
    ]
    assert len(trained) == 3
    assert trained[0] == trained[1] == trained[2] != {}
    decoder = load_decoder(swapped, DecoderOptions(threads=1, budget=0.0))
    assert isinstance(decoder, VerifyingDecoder)
    options = RequestOptions(budget=0.3)
    try:
        exact = self_check(decoder, decoder).exact  # some processors round otherwise
        runs = compared(decoder, IDS, options, prompt=4)
        skipped = {ran for ran in decoder.verify(0, IDS[:3]).ran if ran is not None and 0 in ran}
    finally:
        decoder.close()
    assert all(run.same_ran and run.same_cache and run.widest < CLOSE for run in runs) or not exact
    assert skipped, "else nothing is seen of the gates"


def test_gates_are_swapped_without_the_compiler_as_with_it(built: tuple[Path, Bundle], tmp_path: Path) -> None:
    spec, bundle = built
    file = gates_file(spec, tmp_path / "other.safetensors", 5)
    with_it, without = (Path(shutil.copytree(bundle.path, tmp_path / name)) for name in ("with", "without"))
    swap_gates(open_bundle(with_it), file)
    done = run_without_compiler("gates", without, file)
    assert (done.returncode, done.stderr) == (0, "")
    names = {str(each.relative_to(with_it)) for each in with_it.rglob("*") if each.is_file()}
    assert names == {str(each.relative_to(without)) for each in without.rglob("*") if each.is_file()}
    assert [name for name in names if (with_it / name).read_bytes() != (without / name).read_bytes()] == []
    changed = f"graphs/{GATES}"
    assert (without / changed).read_bytes() != (bundle.path / changed).read_bytes()


def test_what_does_not_fit_is_refused_in_one_line(built: tuple[Path, Bundle], tmp_path: Path) -> None:
    spec, first = built
    bundle = open_bundle(first.path)  # another test has put other gates in
    before = json.loads((bundle.path / "manifest.json").read_text())["sha256"]
    file = tmp_path / "wrong.safetensors"
    for changed, text in (
        ({"sha256": "0" * 64}, r"gates of tiny, other weights than"),
        ({"layers": (1,)}, r"layers \[1\]; this bundle's are \[1, 2\]"),
        ({"rank": 8}, r"rank 8; this bundle's are 4"),
    ):
        gates_file(spec, file, 3, **changed)
        with pytest.raises(AdaptcError, match=text) as caught:
            swap_gates(bundle, file)
        assert "\n" not in str(caught.value)
    metadata, weights = load_gates(gates_file(spec, file, 3))
    weights["model.layers.1.skip.gate.weight"][0] = float("nan")
    save_gates(metadata, weights, file)
    with pytest.raises(AdaptcError, match="has NaN"):
        swap_gates(bundle, file)
    with pytest.raises(AdaptcError, match="no such file"):
        swap_gates(bundle, tmp_path / "none.safetensors")
    assert json.loads((bundle.path / "manifest.json").read_text())["sha256"] == before
