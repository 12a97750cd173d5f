"""Folders that say two things of their weights, held against what transformers reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models import folder


def source(path: Path) -> Any:
    return find_source(ModelSpec(source="model"), path)


def eager(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path / "model").eval()


def change(path: Path, **values: Any) -> None:
    config = path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def same_weights(path: Path) -> None:
    """Compare every weight that adaptc reads with transformers' own."""
    state, found = eager(path).state_dict(), source(path).tensors()
    assert found
    for name, weight in found.items():
        assert torch.equal(weight, state[name]), name


def test_a_sound_folder_has_no_remarks(tmp_path: Path) -> None:
    folder.write(tmp_path)
    assert source(tmp_path).remarks() == ()


def test_a_head_of_its_own_is_kept_though_the_config_says_tied(tmp_path: Path) -> None:
    folder.write(tmp_path, tie_word_embeddings=False)
    change(tmp_path, tie_word_embeddings=True)
    found = source(tmp_path)
    assert found.config().tie_word_embeddings is False
    assert "lm_head.weight" in found.tensors()
    same_weights(tmp_path)
    [remark] = found.remarks()
    assert remark.startswith("config.json says that the head is the embedding, and the weights hold another")


def test_a_head_that_is_the_embedding_stays_tied(tmp_path: Path) -> None:
    folder.write(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model" / "model.safetensors"
    stored = load_file(path)
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    assert source(tmp_path).config().tie_word_embeddings is True
    assert "lm_head.weight" not in source(tmp_path).tensors()
    assert source(tmp_path).remarks() == ()
    same_weights(tmp_path)


def test_a_head_without_an_embedding_is_tied_to_it(tmp_path: Path) -> None:
    folder.write(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model" / "model.safetensors"
    stored = load_file(path)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, path, {"format": "pt"})
    same_weights(tmp_path)


def test_a_file_is_read_before_an_old_index(tmp_path: Path) -> None:
    _, old = folder.write(tmp_path / "old", tie_word_embeddings=False)
    old.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    _, new = folder.write(tmp_path, tie_word_embeddings=False)
    with torch.no_grad():
        new.lm_head.weight.mul_(2)
    new.save_pretrained(tmp_path / "model")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, tmp_path / "model")
    assert set(source(tmp_path).files()) & {"model.safetensors.index.json", "model-00001-of-00003.safetensors"} == set()
    same_weights(tmp_path)
    [remark] = source(tmp_path).remarks()
    assert remark == (
        "model.safetensors stands beside model.safetensors.index.json; the file is read, as transformers does, and the "
        "index's shards are not"
    )


def test_tensors_without_a_place_are_left_out_with_a_remark(tmp_path: Path) -> None:
    folder.write(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    extra = ("score.weight", "model.mtp.0.weight", "a", "b", "model.layers.3.mlp.up_proj.weight")
    save_file(load_file(path) | {name: torch.ones(2, 2) for name in extra}, path, {"format": "pt"})
    same_weights(tmp_path)
    [remark] = source(tmp_path).remarks()
    assert remark == (
        "5 tensors have no place in a llama model and are not read: a, b, model.layers.3.mlp.up_proj.weight, …"
    )


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            "adapter_config.json",
            b"{}",
            "adapter_config.json: an adapter, which changes the weights of its base; so",
        ),
        ("model.fp16.safetensors", None, "model.safetensors is missing, and model.fp16.safetensors is not read in its"),
        ("consolidated.safetensors", None, "model.safetensors is missing, and consolidated.safetensors is not read in"),
        ("pytorch_model.bin", None, "only pytorch_model.bin, a pickle, which adaptc never opens"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "x.bin"}}',
            "model.safetensors.index.json names x.bin;",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": ".."}}',
            "model.safetensors.index.json names ..; only",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "\\u0000"}}',
            "model.safetensors.index.json names a fil",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "model.safetensors.index.json has no weight_map; the"),
        ("model.safetensors.index.json", b'{"weight_map": [5]}', "model.safetensors.index.json has no weight_map; the"),
    ],
)
def test_folders_that_are_refused(file: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    folder.write(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    if content is None:
        weights.rename(tmp_path / "model" / file)
    else:
        (tmp_path / "model" / file).write_bytes(content)
        if "adapter" not in file:
            weights.unlink()
    with pytest.raises(LoadError) as refused:
        source(tmp_path).tensors()
    assert str(refused.value).startswith(f"model: {expected}")
    assert "\n" not in str(refused.value)


def test_other_variants_beside_the_file_change_nothing(tmp_path: Path) -> None:
    folder.write(tmp_path)
    for name in ("model.fp16.safetensors", "consolidated.safetensors"):
        (tmp_path / "model" / name).write_bytes(b"another form")
    same_weights(tmp_path)
    assert source(tmp_path).remarks() == ()


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder.write(tmp_path, tie_word_embeddings=False)
    path = tmp_path / "model" / "model.safetensors"
    whole = load_file(path)
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
        with pytest.raises(LoadError, match=f"the weights have no {name}, which a llama model needs"):
            source(tmp_path).tensors()
