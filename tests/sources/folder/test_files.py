"""Which files of a folder count: for its hash, and for what is fetched from the hub."""

from __future__ import annotations

import importlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from adaptc.families.table import FAMILIES
from adaptc.sources.find import find_source
from adaptc.sources.hub.fetching import BELOW, WITHOUT_WEIGHTS
from adaptc.spec.schema import ModelSpec
from tests.models import folder

DECIDING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "tiktoken.model",
    "tekken.json",
    "tokenizer.4.0.0.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    folder.write(path)
    return path


def sha256(path: Path) -> str:
    return find_source(ModelSpec(source="model"), path).sha256()


@pytest.mark.parametrize("name", DECIDING)
def test_the_hash_follows_every_file_that_decides(name: str, model: Path) -> None:
    file = model / "model" / name
    file.parent.mkdir(exist_ok=True)
    old, before = file.read_bytes() if file.exists() else None, sha256(model)
    kept = old or b"xx"
    if name.endswith(".safetensors"):  # whose length says whether it is whole
        kept = kept[:-2]
    file.write_bytes(kept + b"\n ")
    changed = sha256(model)
    assert changed != before
    file.write_bytes(kept + b"\n\n")
    assert sha256(model) not in (before, changed)
    file.unlink() if old is None else file.write_bytes(old)
    assert sha256(model) == before


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "USE_POLICY.md", "training_args.bin", "trainer_state.json"])
def test_the_hash_leaves_other_files_out(name: str, model: Path) -> None:
    before = sha256(model)
    (model / "model" / name).write_text("x")
    assert sha256(model) == before


@pytest.mark.parametrize("name", [*DECIDING, "model.safetensors.index.json", "adapter_config.json", "README.md"])
def test_the_hub_is_asked_for_every_file_that_decides(name: str) -> None:
    def asked_for(file: str) -> bool:
        return any(fnmatch(file, each) for each in WITHOUT_WEIGHTS) and not any(fnmatch(file, each) for each in BELOW)

    assert asked_for(name) or name.endswith(".safetensors")
    assert not asked_for("pytorch_model.bin")
    assert not asked_for(f"original/{name}")


def test_files_of_every_family_s_tokenizer_are_known() -> None:
    for family in FAMILIES.keys() - {"whisper"}:  # which reads sound
        name: Any = TOKENIZER_MAPPING_NAMES.get(family) or "TokenizersBackend"
        module = importlib.import_module("transformers")
        kind = getattr(module, name if hasattr(module, name) else "PreTrainedTokenizerFast")
        for file in kind.vocab_files_names.values():
            assert any(fnmatch(file, pattern) for pattern in WITHOUT_WEIGHTS), (family, file)
