"""One list of passes: what a dry run prints, what `show` shows and what the manifest records are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.pipeline import plan_of
from adaptc.compiler.show import snapshots
from adaptc.passes.quantize.quantize import Quantize
from adaptc.runtime import load
from adaptc.runtime.bundle.manifest import Manifest
from adaptc.runtime.progress import SILENT
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import Spec
from tests.fakes.progress import Told
from tests.models import folder, stitched, views
from tests.repo import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))
GATED = ("passes=[{skip_ffn: {policy: static}}]",)
GPU = ("target.backend=tensorrt", "target.weights=fp16")


def dry_run(spec: Path, settings: tuple[str, ...] = (), kind: str = "pass|stage") -> list[str]:
    """What `adaptc compile --dry-run` prints: passes, stages, or both in order."""
    options = [f"--set={setting}" for setting in settings]
    result = CliRunner().invoke(main, ["compile", str(spec), "--dry-run", *options])
    assert result.exit_code == 0, result.output
    return [match[1] for match in re.finditer(rf"^(?:{kind}) +(.*)$", result.stdout, re.MULTILINE)]


def shown(spec: Path, settings: tuple[str, ...] = ()) -> list[str]:
    """The passes that `adaptc show` knows."""
    options = [f"--set={setting}" for setting in settings]
    result = CliRunner().invoke(main, ["show", str(spec), "--after", "nothing", *options])
    assert result.exit_code == 1
    names = result.stderr.strip().partition("there are: ")[2].split(", ")
    assert names[0] == "capture"
    return names[1:]


@pytest.mark.parametrize("spec", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_dry_run_and_show_know_the_same_passes(spec: Path) -> None:
    names = [pass_.name for pass_ in plan_of(read_spec(spec), spec.parent).passes]
    assert "lower" in names
    assert dry_run(spec, kind="pass") == shown(spec) == names


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 7


def compiled(path: Path, settings: tuple[str, ...], into: Path) -> tuple[Spec, Manifest, list[str]]:
    """A spec, the manifest of what it compiles to without a cache, and the stages that ran."""
    spec, told = read_spec(path, settings), Told()
    made = compile_spec(spec, path.parent, into / "bundle", Cache(into / "cache"), told)
    assert told.expected == len(told.stages)
    return spec, made.bundle.manifest, told.stages


@pytest.mark.parametrize(
    "settings",
    [(), ("target.weights=int4",), (*GATED, "target.weights=int4"), GPU, (*GATED, *GPU)],
    ids=["plain", "int4", "gated", "tensorrt", "gated-tensorrt"],
)
def test_a_compile_does_what_a_dry_run_says(settings: tuple[str, ...], tmp_path: Path) -> None:
    path, _ = folder.write(tmp_path)
    spec, manifest, stages = compiled(path, settings, tmp_path)
    assert stages == dry_run(path, settings)
    names = [record.name for record in manifest.passes]
    assert names == dry_run(path, settings, "pass") == shown(path, settings)
    taken = snapshots(spec, path.parent, None, SILENT)
    assert [each.after for each in taken] == ["capture", *names]
    emitted = len(plan_of(spec, path.parent).to_emit)  # what they do depends on which gates pay on this machine
    changed = [record.changed for record in manifest.passes]
    assert [each.changed for each in taken[1 : len(taken) - emitted]] == changed[: len(changed) - emitted]


@pytest.mark.parametrize("settings", [(), ("target.weights=int4",), GPU], ids=["plain", "int4", "tensorrt"])
def test_so_does_one_of_a_stitched_model(settings: tuple[str, ...], tmp_path: Path) -> None:
    stitched.write(tmp_path)
    path = tmp_path / "model.yaml"
    _, manifest, stages = compiled(path, settings, tmp_path)
    assert stages == dry_run(path, settings)
    assert [record.name for record in manifest.passes] == dry_run(path, settings, "pass") == shown(path, settings)


@pytest.mark.parametrize("settings", [(), GPU], ids=["plain", "tensorrt"])
def test_so_does_one_of_a_model_of_several_modalities(settings: tuple[str, ...], tmp_path: Path) -> None:
    path = views.write(tmp_path / "spec")
    _, manifest, stages = compiled(path, settings, tmp_path)
    assert stages == dry_run(path, settings)
    assert [record.name for record in manifest.passes] == dry_run(path, settings, "pass") == shown(path, settings)


@pytest.mark.parametrize("name", ["gptq", "branch", "verify_drafts"])
def test_show_stops_after_any_pass(name: str, tmp_path: Path) -> None:
    path, _ = folder.write(tmp_path, weights="int4")
    taken = snapshots(read_spec(path, GATED), path.parent, name, SILENT)
    assert taken[-1].after == name


@pytest.mark.model
@pytest.mark.xdist_group("smollm2")
def test_a_real_bundle_records_the_passes_of_its_spec(smollm2: Path) -> None:
    example = ROOT / "examples" / "smollm2" / "model.yaml"
    manifest = Manifest.from_json((smollm2 / "manifest.json").read_bytes())
    assert [record.name for record in manifest.passes] == dry_run(example, kind="pass")


@pytest.mark.parametrize(("method", "rule"), [("gptq", "nearest"), ("nearest", "nearest"), ("hqq", "hqq")])
def test_the_method_of_rounding_chooses_the_passes(method: str, rule: str, tmp_path: Path) -> None:
    path, _ = folder.write(tmp_path)
    passes = plan_of(read_spec(path, ["target.weights=int4", f"quantize.method={method}"]), tmp_path).passes
    assert ("gptq" in [pass_.name for pass_ in passes]) == (method == "gptq")
    assert [pass_.rule for pass_ in passes if isinstance(pass_, Quantize)] == [rule]


def test_methods_give_other_codes_and_each_bundle_writes(tmp_path: Path) -> None:
    path, _ = folder.write(tmp_path)
    codes = set()
    for method in ("gptq", "nearest", "hqq"):
        settings = ("target.weights=int4", "target.block_size=16", f"quantize.method={method}")
        _, manifest, _ = compiled(path, settings, tmp_path / method)
        codes.add(next(file.sha256 for name, file in manifest.files.items() if name.endswith(".data")))
        with load(tmp_path / method / "bundle") as session:
            assert len(session.generate([1, 2, 3], max_new_tokens=4).ids) == 4
    assert len(codes) == 3
