"""From a spec with adapters to text: the bundle writes what PEFT's model writes, and `verify` says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.spec.reading import read_spec
from tests.cli.running import run
from tests.models import gguf_file
from tests.models.folder import greedy, scores
from tests.models.gguf_file import tiny_model, write
from tests.sources.adapters.made import adapter, base, loaded
from tests.sources.gguf.vocabularies import byte_level

pytest.importorskip("peft")

IDS = [5, 9, 40, 7, 101, 33]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters and a spec."""
    folder = tmp_path_factory.mktemp("made")
    base(folder / "base")
    adapter(folder / "one", folder / "base", seed=1, target_modules="all-linear", modules_to_save=["lm_head"])
    adapter(folder / "two", folder / "base", seed=2, target_modules=["q_proj", "down_proj"], use_rslora=True)
    (folder / "model.yaml").write_text(
        "version: 1\nmodels:\n  lm: {source: base, adapters: [one]}\ntarget: {weights: fp32, max_tokens: 64}\n"
    )
    return folder


def test_a_bundle_writes_what_peft_does_and_verify_says_so(made: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    compiled = compile_spec(read_spec(made / "model.yaml"), made, tmp_path / "bundle", cache)
    theirs = loaded(made / "base", made / "one")
    with runtime.load(compiled.bundle.path) as session:
        expected = greedy(theirs, IDS, 12)
        stop = expected.index(1) + 1 if 1 in expected else len(expected)
        assert [*session.generate(IDS, max_new_tokens=12).ids] == expected[:stop]
        found = session.score(IDS).values
    assert abs(found - scores(theirs, IDS)).max() < 1e-4
    plain = loaded(made / "base", made / "two")
    assert abs(found - scores(plain, IDS)).max() > 1e-3  # another adapter gives other numbers
    done = run("verify", str(tmp_path / "bundle"), "--base", str(made), "--json")
    assert done.exit_code == 0, done.stdout + done.stderr
    assert compiled.bundle.manifest.models["lm"].source == "base + one"
    assert "peft 0." in json.dumps(json.loads(done.stdout))
    # The same spec with another adapter or weight is another bundle.
    for settings in (["models.lm.adapters=[two]"], ["models.lm.adapters=[{source: one, weight: 0.5}]"]):
        other = compile_spec(read_spec(made / "model.yaml", settings), made, tmp_path / "other", cache)
        assert not other.cached
        assert other.bundle.manifest.models["lm"].sha256 != compiled.bundle.manifest.models["lm"].sha256


def test_the_folder_of_an_adapter_stands_for_its_base_with_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    config = json.loads((made / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made / "base")
    done = run("compile", "one", "--print-spec")
    assert done.stdout.startswith(
        f"version: 1\nname: one\nmodels:\n  lm:\n    source: {made / 'base'}\n    adapters:\n    - source: one\n"
    )
    added = run("compile", "base", "--adapter", "one", "--adapter", "two=0.25", "--print-spec")
    assert "    adapters:\n    - source: one\n    - source: two\n      weight: 0.25\n" in added.stdout
    assert run("check", "one", "--max-tokens", "64").exit_code == 0


def test_an_adapter_of_a_gguf_file(tmp_path: Path) -> None:
    """Names of a GGUF file's parameters are transformers', so an adapter of the model fits the file too."""
    import peft
    import transformers

    tokens = byte_level("qwen2")
    model = tiny_model("llama", len(tokens.texts))
    model.save_pretrained(tmp_path / "base")
    write(tmp_path / "m.gguf", model, "llama", tokens, kind=gguf_file.F32)
    adapter(tmp_path / "lora", tmp_path / "base", target_modules=["q_proj", "k_proj", "down_proj"])
    (tmp_path / "model.yaml").write_text(
        "version: 1\nmodels:\n  lm: {source: m.gguf, adapters: [lora]}\ntarget: {weights: fp32, max_tokens: 64}\n"
    )
    bundle = compile_spec(
        read_spec(tmp_path / "model.yaml"), tmp_path, tmp_path / "b", Cache(tmp_path / "cache")
    ).bundle
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "lora")).eval()
    with runtime.load(bundle.path) as session:
        found = session.score(IDS).values
    assert abs(found - scores(theirs, IDS)).max() < 1e-4
