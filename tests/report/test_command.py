"""Reports and pictures of bundles that earlier versions wrote: `adaptc report`, and `adaptc show --html`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.stored.onnx_file import read_graph
from adaptc.report.block import block_of
from adaptc.report.drawing.layers import DECIDES, ENDS
from adaptc.report.files import record_of
from adaptc.report.graphs import stored_graph
from adaptc.report.parts import parts_of
from adaptc.runtime.bundle.built import BUILT, built_files, read_built
from adaptc.runtime.bundle.folder import open_bundle
from tests.cli.running import run_without_compiler
from tests.report.manifests import SWEEP
from tests.report.pages import check_page

STORED = Path(__file__).parents[1] / "stored" / "schema3"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def copy(name: str, into: Path, schema: str = STORED.name) -> Path:
    return Path(shutil.copytree(STORED.with_name(schema) / name, into / name))


@pytest.mark.parametrize("name", ["gated", "stitched"])
def test_the_bytes_of_parts_are_those_of_a_token(name: str) -> None:
    bundle = open_bundle(STORED / name)
    parts = {
        graph: parts_of(OnnxGraph(ir.load(bundle.file(spec.file)))) for graph, spec in bundle.manifest.graphs.items()
    }
    sums = {graph: sum(sum(part.bytes.values()) for part in each) for graph, each in parts.items()}
    for costs in bundle.manifest.route_bytes.values():
        assert {route: sums["trunk"] + sums[f"tail.{route}"] for route in costs} == costs
    if name == "gated":
        assert sums["lm"] == bundle.manifest.bytes_per_token
        assert [part.name for part in parts["lm"]] == ["before layers", "0", "1", "2", "after layers"]
        assert "gate" in parts["lm"][2].bytes
        assert "gate" not in parts["lm"][1].bytes
    else:
        assert [part.name for part in parts["tail.sandwich"]][1].startswith("small.")


def test_measuring_puts_times_of_layers_and_a_skip_map_into_the_report(tmp_path: Path) -> None:
    bundle = copy("gated", tmp_path)
    before = open_bundle(bundle).manifest
    done = run("report", bundle, "--measure", "--threads", "1", "--json")
    assert done.exit_code == 0, done.output
    opened = open_bundle(bundle, verify=True)
    assert {name: each for name, each in opened.manifest.files.items() if "report" not in name} == {
        name: each for name, each in before.files.items() if "report" not in name
    }
    record = record_of(opened)
    times = dict(record.layer_times["lm"].parts)
    assert list(times) == ["before layers", "0", "1", "2", "after layers"]
    assert all(0 < sum(kinds.values()) < 1 for kinds in times.values())
    assert set(times["1"]) >= {"attention", "feed-forward", "gate"}
    columns = record.skip_maps["lm"].columns
    assert (columns[0].budget, set(columns[0].rates)) == (1.0, {0.0})
    assert columns[-1].budget == 0.0
    assert sum(columns[-1].rates) > 0.5
    assert json.loads(done.stdout)["skip_maps"]["lm"]["columns"][0]["budget"] == 1.0
    page = (bundle / "report.html").read_text()
    check_page(page)
    assert "Where the time of a step goes" in page
    assert "adaptc report BUNDLE --measure" not in page


def test_what_another_command_printed_is_added_and_stays(tmp_path: Path) -> None:
    bundle, file = copy("gated", tmp_path), tmp_path / "sweep.json"
    file.write_text(json.dumps(SWEEP))
    assert run("report", bundle, "--with", file).exit_code == 0
    assert run("report", bundle).exit_code == 0
    page = (bundle / "report.html").read_text()
    check_page(page)
    assert "4096 tokens of a.txt, dense perplexity 17.50" in page
    elsewhere = tmp_path / "page.html"
    seal = (bundle / "manifest.json").read_bytes()
    assert run("report", bundle, "-o", elsewhere).exit_code == 0
    assert elsewhere.read_text() == page
    assert (bundle / "manifest.json").read_bytes() == seal


def test_figures_of_quality_are_shown_with_their_intervals(tmp_path: Path) -> None:
    bundle, file = copy("gated", tmp_path), tmp_path / "quality.json"
    share = {"metric": "acc", "value": 0.5, "low": 0.25, "high": 0.75, "asked": 2, "each": [0.0, 1.0]}
    loss = {"metric": "nll", "value": 1.5, "low": 1.25, "high": 1.75, "asked": 2, "each": [1.0, 2.0]}
    rows = {"large": {"bytes_per_token": 10**9, "perplexity": 12.5, "letters": share}, "router": {"nll": loss}}
    file.write_text(json.dumps(rows))
    done = run("report", bundle, "--with", file)
    assert done.exit_code == 0, done.output
    page = (bundle / "report.html").read_text()
    check_page(page)
    for shown in ("letters", "50 % (25 % to 75 %)", "12.500", "nll", "1.5 (1.25 to 1.75)"):
        assert shown in page, shown
    file.write_text(json.dumps({"large": {"letters": {"value": 0.5}}}))
    done = run("report", bundle, "--with", file)
    assert done.exit_code == 1
    assert "no measurement" in done.stderr


def test_what_was_built_outlives_a_new_report(tmp_path: Path) -> None:
    bundle = copy("gated", tmp_path)
    assert run("build", bundle).exit_code == 0
    built = {name: (bundle / name).read_bytes() for name in built_files(bundle)}
    assert built
    manifest = (bundle / "manifest.json").read_bytes()
    assert run("report", bundle, "--with", tmp_path / "sweep.json").exit_code == 1, "no such file"
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    assert run("report", bundle, "--with", tmp_path / "sweep.json").exit_code == 0
    assert (bundle / "manifest.json").read_bytes() != manifest
    assert {name: read_built(bundle, name) for name in built_files(bundle)} == built
    (bundle / BUILT).write_text("{")  # a damaged index names nothing, and nothing of it is kept
    assert run("report", bundle).exit_code == 0
    assert not (bundle / BUILT).exists()


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[1]", "no measurement"), ('{"a": 1}', "no measurement"), (None, "read")]
)
def test_what_is_no_measurement_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    bundle, file = copy("gated", tmp_path), tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    refused = run("report", bundle, "--with", file)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert said in refused.stderr


@pytest.mark.parametrize("name", ["gated", "stitched"])
def test_layers_of_a_bundle_are_drawn(name: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = run("show", STORED / name, "--html", file)
    assert (done.exit_code, done.stderr) == (0, f"wrote {file}\n")
    root = check_page(file.read_text())
    assert len(root.all("svg")) == 1 + len(open_bundle(STORED / name).manifest.graphs)
    refused = run("show", STORED / name, "--diff")
    assert refused.exit_code == 2


@pytest.mark.parametrize("name", ["gated", "stitched"])
def test_what_verifies_drafts_is_no_graph_of_its_own(name: str, tmp_path: Path) -> None:
    """Its text is there, closed; a layer of it is a layer of the graph that it does so for, and so is what it reads."""
    file, bundle = tmp_path / "page.html", copy(name, tmp_path, "schema5")
    manifest = open_bundle(bundle).manifest
    own = manifest.graphs.keys() - manifest.verifying.keys()
    assert manifest.verifying
    assert run("show", bundle, "--html", file).exit_code == 0
    assert len(check_page(file.read_text()).all("svg")) == 1 + len(own)
    assert all(verifying in file.read_text() for verifying in manifest.verifying)
    assert run("report", bundle).exit_code == 0
    root = check_page((bundle / "report.html").read_text())
    tiles = {tile.all("span")[0].text: tile.all("b")[0].text for tile in root.all("li") if tile.all("b")}
    assert tiles["graphs"] == str(len(own))
    assert not [verifying for verifying in manifest.verifying if verifying in root.text]
    record = record_of(open_bundle(bundle))
    assert record.parts.keys() == manifest.graphs.keys() - manifest.forms


@pytest.mark.parametrize("name", ["gated", "stitched"])
def test_a_graph_is_shown_without_the_compiler_as_with_it(name: str, tmp_path: Path) -> None:
    bundle, page = open_bundle(STORED / name), tmp_path / "page.html"
    done = run_without_compiler("show", bundle.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("show", bundle.path).stdout
    pages = []
    for command in (run_without_compiler, run):
        command("show", bundle.path, "--html", page)
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    for each in bundle.manifest.graphs.values():  # onnx-ir reads in the file what our own reader does
        known = OnnxGraph(ir.load(bundle.file(each.file)))
        assert known.text() in done.stdout
        stored = stored_graph(bundle, each.file)
        assert block_of(known) == block_of(stored)


def test_what_is_no_onnx_file_is_refused() -> None:
    whole = (STORED / "gated" / "graphs" / "lm.onnx").read_bytes()
    for content in (b"", whole[:-100], whole[5:], b"\xff" * 20, b":\x01\x00"):
        with pytest.raises(ValueError, match=r"."):
            read_graph(content)


def test_a_branch_is_drawn_as_one() -> None:
    found = block_of(OnnxGraph(ir.load(STORED / "gated" / "graphs" / "lm.onnx")))
    assert found is not None
    layer, operators = found
    assert layer == "model.layers.1"  # the first with a gate
    by_name = {each.name: each for each in operators}
    [gate] = [each for each in operators if each.style == DECIDES]
    sides = [each for each in operators if gate.name in each.reads]
    assert [each.title.split(":")[0] for each in sides] == ["no", "yes"]
    assert [each.lines[0] for each in sides] == ["mlp.gate_up_proj", "skip.cheap.gate_up_proj"]
    [out] = [each for each in operators if each.name == "out"]
    assert {by_name[name].lines[0] for name in out.reads} >= {"mlp.down_proj", "skip.cheap.down"}
    assert [each.title for each in operators if each.style == ENDS] == ["layer 0", "layer 0", "layer 2"]
    [attention] = [each for each in operators if each.title == "GroupQueryAttention"]
    assert any("KV cache" in line for line in attention.lines)
    assert "float32 [batch, tokens, 64]" in attention.lines
