"""The table of families, and a family that a package adds: one file, and its tiny config here."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from adaptc import runtime
from adaptc.checks.check import check
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import LoadError, SpecError
from adaptc.families.base import DecoderFamily
from adaptc.families.table import DECODERS, FAMILIES, MULTIMODAL, family_of, gguf_family, supported
from adaptc.spec.reading import read_spec
from tests.close import ENGINE, assert_close
from tests.models import folder, tiny, vlm
from tests.repo import ROOT

GGUF_FAMILIES = [family for family in DECODERS.values() if family.gguf is not None]
IDS = [5, 9, 40, 7, 101, 33, 12, 60]

TOY_FILE = '''"""Seed-OSS: Llama with biases of queries, keys and values."""

from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.gguf import TWO_NORMS

NAMES = TWO_NORMS | {"post_attention_norm": "post_attention_layernorm"}
SEED_OSS = DecoderFamily("seed_oss", GgufLayout("seed_oss", NAMES))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one file of a family, installed as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "seed_oss_family.py").write_text(TOY_FILE)
    about = site / "seed_oss_family-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: seed-oss-family\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[adaptc.families]\nseed_oss = seed_oss_family:SEED_OSS\n")
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("toy")
def test_a_package_adds_a_family_with_one_file(tmp_path: Path) -> None:
    spec, model = folder.write(tmp_path, "seed_oss")
    findings = check(read_spec(spec), tmp_path).findings
    assert [finding.text for finding in findings if finding.about == "lm" and finding.level == "error"] == []
    compiled = compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))
    assert compiled.bundle.manifest.models["lm"].architecture == "seed_oss"
    with runtime.load(compiled.bundle.path) as session:
        result, scores = session.generate(IDS, max_new_tokens=12), session.score(IDS).values
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), use_cache=False).logits[0].double()
    expected = torch.log_softmax(logits, -1)[range(len(IDS) - 1), IDS[1:]].numpy()
    assert_close(scores, expected.astype(np.float32), **ENGINE)
    greedy = folder.greedy(model, IDS, 12)
    stop = greedy.index(1) + 1 if 1 in greedy else len(greedy)
    assert list(result.ids) == greedy[:stop]


def test_without_its_package_the_family_is_refused(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, "seed_oss")
    with pytest.raises(SpecError, match="architecture 'seed_oss' is not supported"):
        compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))


@pytest.mark.usefixtures("toy")
def test_a_package_s_family_is_known_by_every_name() -> None:
    family = family_of("seed_oss")
    assert gguf_family("seed_oss") == family
    assert isinstance(family, DecoderFamily)
    assert_names_are_llama_cpp_s(family)
    assert supported() == (*FAMILIES, "seed_oss")


def test_packages_are_looked_for_only_where_no_family_of_ours_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(group: str) -> EntryPoints:
        raise AssertionError(f"asked every installed package for {group}")

    monkeypatch.setattr("importlib.metadata.entry_points", looked)
    assert gguf_family("llama") == family_of("llama")
    with pytest.raises(AssertionError):
        gguf_family("nobody's")


def test_a_family_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([
        EntryPoint("absent", "no_such_module:FAMILY", "adaptc.families"),
        EntryPoint("other", "adaptc.families.decoders.llama:LLAMA", "adaptc.families"),
    ])  # fmt: skip
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    with pytest.raises(LoadError, match=r"^family 'absent' of package no_such_module:FAMILY cannot be loaded: "):
        family_of("absent")
    with pytest.raises(LoadError, match=r"^family 'other' .* whose model_type is 'other' is right$"):
        family_of("other")
    assert family_of("nobody's") is None


@pytest.mark.parametrize("model_type", DECODERS)
def test_every_decoder_family_has_a_tiny_model(model_type: str) -> None:
    assert model_type in {model_type for model_type, _ in tiny.FAMILIES.values()}


def test_the_page_has_every_family_of_decoders() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)` \| `([\w-]+)` \|", (ROOT / "docs/families.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(DECODERS)
    own = {name: family.gguf.architecture for name, family in DECODERS.items() if family.gguf is not None}
    assert dict(rows) == own | {"mistral": "llama"}


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_every_multimodal_family_has_a_tiny_model(model_type: str) -> None:
    assert vlm.config(model_type).model_type == model_type


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_one_file_named_by_its_model_type(model_type: str) -> None:
    rooms = ("decoders", "layer_norms", "experts") if model_type in DECODERS else ("multimodal", "encoders")
    file = f"{model_type.replace('-', '_')}.py"
    assert sum((ROOT / "adaptc/families" / room / file).is_file() for room in rooms) == 1


@pytest.mark.parametrize("family", GGUF_FAMILIES, ids=lambda family: family.model_type)
def test_names_of_gguf_tensors_are_llama_cpp_s(family: DecoderFamily) -> None:
    assert_names_are_llama_cpp_s(family)


def assert_names_are_llama_cpp_s(family: DecoderFamily) -> None:
    """Compare the names within a layer with llama.cpp's own table, which the gguf package carries."""
    assert family.gguf is not None
    [architecture] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf.architecture]
    names = gguf.get_tensor_name_map(architecture, 1)
    given = {key: value for key, value in tiny.COMMON.items() if key != "head_dim"}
    config = transformers.CONFIG_MAPPING[family.model_type](**given, pad_token_id=None)
    stem = f"{family.names.decoder}.{family.names.layers}.0"
    with torch.device("meta"):
        parameters = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    within = {match[1] for name in parameters if (match := re.fullmatch(rf"{re.escape(stem)}\.(.*)", name))}
    paths = {name.rpartition(".")[0] for name in within if ".experts." not in name}
    assert {name for name in within if ".experts." in name} == family.gguf.experts.keys()
    for parameter, parts in family.gguf.experts.items():
        block, _, leaf = parameter.rpartition(".")
        leaves = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
        theirs = [names.get_name(f"{stem}.mlp.{block.rpartition('.')[2]}.{each}") for each in leaves]
        assert [f"blk.0.{part}" for part in parts] == theirs
    ours = {path: name for name, path in family.gguf.layer_names.items()}
    assert {path: f"blk.0.{ours[path]}" for path in paths} == {
        # Granite's router was a layer within one when llama.cpp learnt its name.
        path: names.get_name(f"{stem}.{path}") or names.get_name(f"{stem}.{path}.layer")
        for path in paths
    }
