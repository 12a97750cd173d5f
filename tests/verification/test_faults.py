"""Negative controls: `verify` fails for each kind of fault, whatever the weights, and passes where there is none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime import open_bundle
from adaptc.sources.folder.source import FolderSource
from adaptc.spec.reading import parse_spec
from adaptc.verification import probes
from tests.verification import wrong

WEIGHTS = ("fp32", "fp16", "int8", "int4")


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer texts than the command has, so that many faults can be tried."""
    monkeypatch.setattr("adaptc.verification.kinds.steps.PROMPTS", probes.PROMPTS[:1])
    monkeypatch.setattr("adaptc.verification.kinds.source.texts", partial(probes.texts, drawn=20))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrong.write(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def bundles(source: Path) -> dict[str, Path]:
    """A right bundle of each kind of weights."""
    cache = Cache(source / "cache")
    for weights in WEIGHTS:
        spec = parse_spec(wrong.SPEC.format(weights=weights), "model.yaml")
        compile_spec(spec, source, source / weights, cache)
    return {weights: source / weights for weights in WEIGHTS}


def verify(bundle: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """`verify` as it would be if the bundle were compiled from what now lies in the folder."""
    [model] = open_bundle(bundle, verify=False).manifest.models.values()
    monkeypatch.setattr(FolderSource, "sha256", lambda self: model.sha256)
    return CliRunner().invoke(main, ["verify", str(bundle), "--base", str(base), "--json", "--threads", "1"])


def parts(shown: Result) -> dict[str, dict[str, Any]]:
    return {part["part"]: part for part in json.loads(shown.stdout)["parts"]}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_right_bundles_pass(
    bundles: dict[str, Path], source: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = verify(bundles[weights], source, monkeypatch)
    assert shown.exit_code == 0, shown.stderr
    found = parts(shown)
    assert {part["verdict"] for part in found.values()} == {"passed"}
    assert list(found)[:5] == ["tokenizer", "chat template", "ends of answers", "weights", "lowering"]
    assert ("arithmetic" in found) == (weights in ("int8", "int4"))
    assert found["tokenizer"]["reference"].startswith("AutoTokenizer of transformers ")
    assert found["loss"]["reference"].startswith("AutoModelForCausalLM of transformers ")


FAULTS = [(fault, weights) for fault in wrong.MODELS for weights in ("fp32", "int4")]
FAULTS += [("causal mask in the place of none", weights) for weights in ("fp16", "int8")]
"""Every fault with the least and the most rounding; `python -m tests.verification.figures` tries all weights."""


@pytest.mark.parametrize(("fault", "weights"), FAULTS)
def test_a_wrong_model_fails(
    bundles: dict[str, Path], source: Path, tmp_path: Path, weights: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = wrong.changed(source, tmp_path, wrong.MODELS[fault])
    shown = verify(bundles[weights], base, monkeypatch)
    assert shown.exit_code == 1, parts(shown)
    assert len(shown.stderr.strip().splitlines()[-1:]) == 1
    failed = {name for name, part in parts(shown).items() if part["verdict"] == "failed"}
    assert failed & {"lowering", "weights"}, parts(shown)


@pytest.mark.parametrize("fault", wrong.TEXTS)
def test_wrong_text_fails(
    bundles: dict[str, Path], source: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, change = wrong.TEXTS[fault]
    shown = verify(bundles["int4"], wrong.changed(source, tmp_path, change), monkeypatch)
    assert shown.exit_code == 1, parts(shown)
    assert parts(shown)[part]["verdict"] == "failed"
    assert f"not its source model in int4: {part}: " in shown.stderr
