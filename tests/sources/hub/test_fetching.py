"""Models of the hub, from an endpoint on this machine: what is asked for, what is refused, what goes on after a cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.sources.gguf.source import GgufSource
from adaptc.sources.hub.names import HubName, hub_name
from adaptc.sources.hub.source import HubSource
from adaptc.spec.schema import AdapterSpec, ModelSpec
from tests.fakes.progress import Told
from tests.models import folder, gguf_file
from tests.sources.gguf.vocabularies import byte_level
from tests.sources.hub.endpoint import Hub, hub_server

TOKENS = byte_level("qwen2")
UNWANTED = [
    "pytorch_model.bin",
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "original/params.json",
    "onnx/model.onnx",
    "consolidated.safetensors",
    "training_args.bin",
    "model.gguf",
    "flax_model.msgpack",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny model's files."""
    written = tmp_path_factory.mktemp("model")
    folder.write(written)
    return {path.name: path.read_bytes() for path in (written / "model").iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache."""
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("time.sleep", lambda _: None)  # before each new try
        yield server


def source(name: str, **more: Any) -> HubSource:
    found = find_source(ModelSpec(source=name, **more), Path.cwd())
    assert isinstance(found, HubSource)
    return found


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(LoadError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_weights(found: Mapping[str, torch.Tensor], model: Mapping[str, bytes], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, content in model.items():
        (plain / name).write_bytes(content)
    wanted = find_source(ModelSpec(source=str(plain)), tmp_path).tensors()
    assert set(found) == set(wanted)
    for name in wanted:
        assert torch.equal(found[name], wanted[name])


def test_only_the_files_that_are_needed_are_fetched(hub: Hub, model: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.add("org/name", {**model, **dict.fromkeys(UNWANTED, b"x"), "README.md": b"---\nlicense: mit\n---\n"})
    found = source("org/name")
    assert found.config().hidden_size == 32
    assert found.token_ids().eos == (1,)
    assert found.licence() == "mit"
    assert found.commit() == commit
    assert hub.fetched() == sorted({*model, "README.md"} - {"model.safetensors"})
    assert_weights(found.tensors(), model, tmp_path)
    assert hub.fetched() == sorted({*model, "README.md"})


def test_an_adapter_is_fetched_beside_its_base(hub: Hub, model: dict[str, bytes], tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    stem = "model.layers.0.self_attn.q_proj"
    out, inner = load(model["model.safetensors"])[f"{stem}.weight"].shape
    pair = {"A": torch.ones(2, inner), "B": torch.ones(out, 2)}
    rows = {f"base_model.model.{stem}.lora_{side}.weight": tensor for side, tensor in pair.items()}
    hub.add("org/base", model)
    hub.add(
        "org/lora",
        {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": save(rows),
            **dict.fromkeys(("optimizer.pt", "checkpoint-1/adapter_model.safetensors"), b"x"),
        },
    )
    found = find_source(ModelSpec(source="org/base", adapters=(AdapterSpec(source="org/lora@main"),)), tmp_path)
    assert hub.fetched() == []
    changed, plain = found.tensors(), source("org/base").tensors()
    for name in plain:
        delta = changed[name] - plain[name]
        assert torch.allclose(delta, torch.full_like(delta, 2.0 if "0.self_attn.q_proj" in name else 0.0)), name
    assert hub.fetched() == sorted({*model, "adapter_config.json", "adapter_model.safetensors"})
    assert refusal(source("org/lora").config) == (
        "org/lora: the hub's repository has no config.json, but adapter_config.json: an adapter; source: its base, and "
        "adapters: [org/lora], are right"
    )


def test_a_second_use_asks_for_nothing(hub: Hub, model: dict[str, bytes]) -> None:
    hub.add("org/name", model)
    first = source("org/name").sha256()
    hub.asked.clear()
    hub.add("org/name", model | {"config.json": b"{}"})  # the branch goes on; what is cached stays what it was
    assert source("org/name").sha256() == first
    assert hub.asked == []


@pytest.mark.parametrize("extra", [{}, {"model.safetensors": b""}])
def test_shards_are_those_of_the_index(extra: dict[str, bytes], hub: Hub, tmp_path: Path) -> None:
    _, built = folder.write(tmp_path / "m")
    sharded = tmp_path / "sharded"
    built.save_pretrained(sharded, max_shard_size="20KB")
    shards = {path.name: path.read_bytes() for path in sharded.glob("model-*.safetensors")}
    assert len(shards) > 2
    whole = {path.name: path.read_bytes() for path in (tmp_path / "m/model").iterdir()}
    index = {"model.safetensors.index.json": (sharded / "model.safetensors.index.json").read_bytes()}
    # A file beside the index is what transformers reads.
    both = {name: whole[name] for name in extra}
    small = {name: content for name, content in whole.items() if name != "model.safetensors"}
    hub.add("org/name", {**small, **shards, **index, **both, "model-00009-of-00009.safetensors": b"of another save"})
    assert set(source("org/name").tensors()) == set(dict(built.named_parameters()))
    read = [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert read == (sorted(extra) or sorted(shards))


def test_revisions(hub: Hub, model: dict[str, bytes]) -> None:
    other = {**model, "generation_config.json": b'{"eos_token_id": 7}'}
    first, second = hub.add("org/name", model), hub.add("org/name", other, "v2")
    assert first != second
    assert source("org/name@v2").token_ids().eos == (7,)
    assert source("org/name", revision="v2").commit() == second
    assert source(f"org/name@{second}").token_ids().eos == (7,)
    assert source("org/name").commit() == first
    assert refusal(lambda: source("org/name@v1", revision="v2")) == (
        "org/name@v1: revision: v2 is another than the one after @; one of the two is right"
    )
    assert refusal(lambda: source("org/name@v9").config()) == (
        f"org/name@v9: the hub's repository has no revision 'v9'; {hub.url}/org/name lists its branches and tags"
    )


def test_a_connection_that_breaks_is_gone_on_with(
    hub: Hub, model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", model)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 5_000)  # what is kept of a broken one
    weights = "model.safetensors"
    hub.cut_after[weights] = [20_000, 45_000]
    assert len(model[weights]) > 60_000
    assert_weights(source("org/name").tensors(), model, tmp_path)
    ranges = [range_ for method, path, range_ in hub.asked if method == "GET" and path.endswith(weights)]
    assert len(ranges) == 3
    begins = [int(each.removeprefix("bytes=").partition("-")[0] or 0) for each in ranges]
    assert begins[0] == 0
    assert begins[1:] == [20_000, 45_000]


def test_progress_counts_megabytes(hub: Hub, model: dict[str, bytes]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [750_000], "data_offsets": [0, 3_000_000]}}).encode()
    hub.add("org/name", {**model, "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(3_000_000)})
    told = Told()
    source("org/name").local(told)
    assert told.steps
    assert told.steps[-1][1:] == (3, 3)


TERMS = "its owner asks for consent to terms (N): give it on the model's page, URL/org/name; then `hf auth login`"
NONE = (
    "no such folder here, and no such repository on the hub (N); if it is private, `hf auth login` with an account "
    "that may read it"
)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", TERMS),
        (401, "GatedRepo", TERMS),
        (404, "RepoNotFound", NONE),
        (401, "RepoNotFound", NONE),
        (403, "", "the hub refuses it (N); `hf auth login` with a token that may read this repository is right"),
        (503, "", "the hub answers N; try again later"),
    ],
)
def test_a_refusal_is_a_line_with_its_remedy(status: int, code: str, expected: str, hub: Hub) -> None:
    hub.refuse["org/name"] = (status, code)
    assert refusal(source("org/name").config) == (
        "org/name: " + expected.replace("URL", hub.url).replace("(N)", f"({status})").replace(" N;", f" {status};")
    )


def test_the_token_of_the_hub_s_own_login_is_used(
    hub: Hub, model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text("hf_of_a_login")
    hub.add("org/name", model)
    source("org/name").config()
    assert hub.tokens == {"Bearer hf_of_a_login"}


def test_a_repository_without_safetensors_says_what_it_has(hub: Hub, model: dict[str, bytes]) -> None:
    small = {name: content for name, content in model.items() if name != "model.safetensors"}
    hub.add("org/name", {**small, "pytorch_model.bin": b"x"})
    assert refusal(source("org/name").tensors) == (
        "org/name: the hub's repository has no model.safetensors, but pytorch_model.bin, a pickle, which adaptc never "
        "opens"
    )
    hub.add("org/quantized", {"README.md": b"", "name.Q4_0.gguf": b"x"})
    assert refusal(source("org/quantized").config) == (
        "org/quantized: the hub's repository has no config.json, but GGUF files: org/quantized/name.Q4_0.gguf names one"
    )


def test_one_gguf_file_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    path = gguf_file.write(tmp_path / "x.gguf", gguf_file.tiny_model("llama", len(TOKENS.texts)), "llama", TOKENS)
    hub.add("org/name", {"sub/x.Q8_0.gguf": path.read_bytes(), "y.gguf": b"y"})
    found = source("org/name/sub/x.Q8_0.gguf")
    assert isinstance(found.local(), GgufSource)
    assert set(found.tensors()) == set(find_source(ModelSpec(source=str(path)), tmp_path).tensors())
    assert hub.fetched() == ["sub/x.Q8_0.gguf"]
    assert refusal(source("org/name/z.gguf").config) == (
        f"org/name/z.gguf: the hub's repository has no z.gguf; {hub.url}/org/name lists its files"
    )


def test_offline_says_so_and_reads_what_is_cached(
    hub: Hub, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("org/name", model)
    source("org/name").config()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert source("org/name").config().hidden_size == 32
    for do in (source("org/name").tensors, source("org/other").config):
        said = refusal(do)
        assert f"not whole in the hub's cache ({tmp_path / 'hub'}), and HF_HUB_OFFLINE is set" in said
        assert "`hf download org/" in said


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    said = refusal(source("org/name").config)
    assert said.startswith(
        f"org/name: no such folder here, not in the hub's cache, and the hub cannot be reached: {nobody}: "
    )


def test_the_environment_means_what_it_means_to_the_hub_s_library(
    hub: Hub, model: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("org/name", model)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_HUB_CACHE", None)

    code = (
        "from pathlib import Path\nfrom adaptc.sources.find import find_source\n"
        "from adaptc.spec.schema import ModelSpec\n"
        "print(find_source(ModelSpec(source='org/name'), Path()).commit())"
    )

    def commit(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, check=False
        )

    done = commit()
    assert (done.stdout, done.stderr) == (hub.commit_of("org/name", "main") + "\n", "")
    assert (tmp_path / "home" / "hub" / "models--org--name").is_dir()
    assert commit(HF_HUB_OFFLINE="1").stdout == done.stdout
    there = tmp_path / "elsewhere"
    refused = commit(HF_HUB_CACHE=str(there), HF_HUB_OFFLINE="1")
    assert f"cache ({there}), and HF_HUB_OFFLINE is set" in refused.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("org/name/a/b.gguf", HubName("org/name", None, "a/b.gguf")),
        ("org/name@main/b.gguf", HubName("org/name", "main", "b.gguf")),
        ("org/name.gguf", None),
        ("org/name/../b.gguf", None),
        ("./org/name", None),
        ("/org/name", None),
        ("name", None),
        ("org/name@", None),
        ("a/b/c", None),
    ],
)
def test_names(name: str, expected: HubName | None) -> None:
    assert hub_name(name) == expected
