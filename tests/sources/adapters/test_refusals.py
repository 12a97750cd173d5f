"""Adapters that are not merged: each in one line, with what would be right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptc.checks.check import check
from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.reading import parse_spec
from adaptc.spec.schema import AdapterSpec, ModelSpec
from tests.sources.adapters.made import adapter, base

pytest.importorskip("peft")

FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter of it, and other bases."""
    folder = tmp_path_factory.mktemp("made")
    base(folder / "base")
    base(folder / "shallow", num_hidden_layers=2)
    base(folder / "narrow", hidden_size=16, num_hidden_layers=3)
    base(folder / "deep", num_hidden_layers=4)
    adapter(folder / "lora", folder / "base", target_modules=["q_proj", "up_proj"])
    adapter(folder / "dora", folder / "base", target_modules=["q_proj"], use_dora=True)
    return folder


@pytest.fixture
def lora(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "lora", tmp_path / "lora"))


def refusal(of: Path, *adapters: Path, do: Callable[[Any], object] = lambda source: source.tensors()) -> str:
    specs = tuple(AdapterSpec(source=str(each)) for each in adapters)
    with pytest.raises(LoadError) as caught:
        do(find_source(ModelSpec(source=str(of), adapters=specs), Path.cwd()))
    assert "\n" not in str(caught.value)
    for each in adapters:
        assert str(caught.value).startswith(f"{each}: ")
    return str(caught.value).removeprefix(f"{adapters[0]}: ") if adapters else str(caught.value)


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3; adaptc merges LORA"),
        ({"peft_type": None}, "an adapter of type None; adaptc merges LORA"),
        (
            {"use_dora": True},
            "use_dora: DoRA, which scales columns by their length; merge it with merge_and_unload of peft and give",
        ),
        ({"use_qalora": True}, "use_qalora: QALoRA; adaptc merges plain LoRA"),
        (
            {"trainable_token_indices": [1]},
            "trainable_token_indices: trained rows of the embedding; adaptc merges plain LoRA",
        ),
        (
            {"layer_replication": [[0, 2]]},
            "layer_replication: layers that stand more than once; adaptc merges plain LoRA",
        ),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is pissa_niter_4: its training changed the base's weights too; peft's save_pretrained",
        ),
        ({"r": "x"}, "adapter_config.json: r is x; a number above 0 is right"),
        ({"lora_alpha": 0}, "adapter_config.json: lora_alpha is 0; a number above 0 is right"),
        ({"target_modules": None}, "adapter_config.json: target_modules is None; a list of names is right"),
        (
            {"target_modules": "("},
            "adapter_config.json: '(' is no regular expression: missing ), unterminated subpattern",
        ),
        ({"rank_pattern": [1]}, "adapter_config.json: rank_pattern is [1]; names with numbers is right"),
        ({"layers_to_transform": "1"}, "adapter_config.json: layers_to_transform is 1; a list of layers is right"),
        ({"modules_to_save": "lm_head"}, "adapter_config.json: modules_to_save is lm_head; a list of names is right"),
        ({"r": 5}, "model.layers.0.mlp.up_proj has rank 4; by its config it should be 5"),
        ({"target_modules": ["none"]}, "it changes nothing: no module of this model is one of its targets"),
        (
            {"target_modules": ["q_proj", "up_proj", "k_proj"]},
            "by its config it changes model.layers.0.self_attn.k_proj, and its file has nothing for it; it is an ",
        ),
    ],
)
def test_configs(values: dict[str, Any], expected: str, made: Path, lora: Path) -> None:
    assert refusal(made / "base", changed(lora, **values)).startswith(expected)


def test_another_base(made: Path, lora: Path) -> None:
    assert refusal(made / "shallow", lora) == (
        "model.layers.2.mlp.up_proj has no place in this model: the base has 2 layers; it is an adapter of another base"
    )
    assert refusal(made / "deep", lora).startswith(
        "by its config it changes model.layers.3.mlp.up_proj, and its file has "
    )
    assert refusal(made / "narrow", lora) == (
        "model.layers.0.mlp.up_proj: A is [4, 32] and B [64, 4], the base's weight [64, 16]; it is an adapter of "
        "another base"
    )


def test_tensors(made: Path, lora: Path) -> None:
    whole = load_file(lora / FILE)
    stem = "base_model.model.model.layers.0."
    first = f"{stem}mlp.up_proj.lora_A.weight"
    for change, expected in (
        (
            {n: t for n, t in whole.items() if n != first},
            "model.layers.0.mlp.up_proj has only one of A and B; the file is",
        ),
        (
            {**whole, f"{stem}self_attn.q_proj.lora_magnitude_vector": torch.ones(64)},
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector: DoRA; adaptc merges plain LoRA",
        ),
        (
            {**whole, f"{stem}self_attn.q_proj.oft_r": torch.ones(2)},
            "model.layers.0.self_attn.q_proj.oft_r has no place in this model: it is an adapter of another base, or",
        ),
        (
            {**whole, "base_model.model.lm_head.weight": torch.ones(400, 32)},
            "lm_head.weight is [400, 32], the base's [321, 32]; it was trained with a vocabulary of another size",
        ),
        (
            {**whole, f"{stem}mlp.up_proj.lora_B.bias": torch.ones(64)},
            "model.layers.0.mlp.up_proj has a bias beside B, which the base's layer cannot take",
        ),
        ({**whole, first: torch.ones(4, 32, dtype=torch.int8)}, f"{first} is I8; adaptc reads F64, F32, F16, BF16"),
    ):
        save_file(change, lora / FILE)
        assert refusal(made / "base", lora).startswith(expected)
    (lora / FILE).write_bytes(b"\x08")
    assert refusal(made / "base", lora).startswith(f"{FILE} is damaged or cut short: ")
    (lora / FILE).rename(lora / "adapter_model.bin")
    assert refusal(made / "base", lora) == f"no {FILE}; adapter_model.bin is a pickle, which adaptc never opens"


def test_values_that_are_not_finite(made: Path, lora: Path) -> None:
    whole = load_file(lora / FILE)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({**whole, name: torch.full((4, 32), torch.nan)}, lora / FILE)
    found = find_source(ModelSpec(source=str(made / "base"), adapters=(AdapterSpec(source=str(lora)),)), Path.cwd())
    with pytest.raises(LoadError, match=r"model.layers.0.mlp.up_proj.weight has values that are not finite"):
        found.tensors()["model.layers.0.mlp.up_proj.weight"]


def test_places(made: Path, tmp_path: Path) -> None:
    assert refusal(made / "base", tmp_path / "gone") == f"no such folder: {tmp_path / 'gone'}"
    assert refusal(made / "base", made / "base") == (
        "no adapter_config.json; the folder of an adapter, as peft saves it, is right"
    )
    assert refusal(made / "base", made / "lora" / FILE) == (
        "one file of an adapter; the folder that also has its adapter_config.json is right"
    )
    said = refusal(made / "lora")
    assert "adapter_config.json" in said


def test_a_real_dora(made: Path) -> None:
    assert refusal(made / "base", made / "dora").startswith("use_dora: DoRA, ")


def test_check_tells_it_and_remarks_are_warnings(made: Path, lora: Path) -> None:
    def findings(of: str) -> list[tuple[str, str]]:
        spec = parse_spec(f"version: 1\nmodels: {{lm: {{source: {made / of}, adapters: [{lora}]}}}}\n")
        return [(each.level, each.text) for each in check(spec, made).findings if str(lora) in each.text]

    assert findings("base") == []
    [(level, text)] = findings("shallow")
    assert level == "error"
    assert "the base has 2 layers" in text
    shutil.copy(made / "base" / "tokenizer.json", lora / "tokenizer.json")
    changed(lora, layers_to_transform=[0], base_model_name_or_path="other/model")
    unread = "model.layers.1.mlp.up_proj, model.layers.1.self_attn.q_proj, model.layers.2.mlp.up_proj, …"
    assert findings("base") == [
        ("warn", f"{lora}: {text}")
        for text in (
            f"4 modules have matrices and are no targets by its config; they are not read, nor by peft: {unread}",
            f"by its config it was trained on other/model; this is {made / 'base'}",
            "it has a tokenizer of its own, which is not read; that of the base is taken",
        )
    ]


def test_the_hash_follows_files_and_weights(made: Path, lora: Path) -> None:
    def sha256(weight: float = 1.0) -> str:
        adapters = (AdapterSpec(source=str(lora), weight=weight),)
        return find_source(ModelSpec(source=str(made / "base"), adapters=adapters), Path.cwd()).sha256()

    plain = find_source(ModelSpec(source=str(made / "base")), Path.cwd()).sha256()
    first = sha256()
    changed(lora, lora_alpha=13)
    assert len({plain, first, sha256(), sha256(0.5)}) == 4
