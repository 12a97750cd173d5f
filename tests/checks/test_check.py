from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from adaptc.checks import check as checking
from adaptc.checks import doctor, packages
from adaptc.checks.check import check
from adaptc.checks.finding import Finding
from adaptc.checks.model_size import size_of
from adaptc.errors import LoadError
from adaptc.families.model import model_of
from adaptc.families.table import FAMILIES
from adaptc.machine import memory
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.sources.config import build_config
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import CalibrationSpec, ModelSpec, Spec, TargetSpec
from tests.models import views, vlm

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FIT = TargetSpec(max_tokens=128)
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 GB, so that findings do not depend on the one that tests run on."""
    monkeypatch.setattr(memory, "memory_bytes", lambda: (8_000_000_000, 6_000_000_000))


def folder(path: Path, tokens: int = 96, template: str | None = "x", **change: Any) -> Path:
    """A model's folder; its weights are zeros, as a check reads none."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | change))
    with contextlib.suppress(LoadError), torch.device("meta"):
        values = CONFIG | change
        config = build_config("m", values.pop("model_type"), values)
        state = model_of(config).state_dict()
        save_file({name: torch.zeros(value.shape, device="cpu") for name, value in state.items()}, path / WEIGHTS)
    Tokenizer(models.WordLevel({str(i): i for i in range(tokens)}, "0")).save(str(path / "tokenizer.json"))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def spec(target: TargetSpec = FIT, **more: Any) -> Spec:
    return Spec(version=1, models={"lm": ModelSpec(source="m")}, target=target, **more)


def troubles(tmp_path: Path, given: Spec | None = None, **change: Any) -> list[tuple[str, str, str]]:
    folder(tmp_path / "m", **change)
    found = check(given or spec(), tmp_path).findings
    return [(each.about, each.level, each.text) for each in found if each.level != "ok"]


def test_a_sound_spec_has_no_trouble(tmp_path: Path) -> None:
    folder(tmp_path / "m")
    (tmp_path / "a.txt").write_text("x" * 100_000)
    report = check(spec(calibration=CalibrationSpec(text="a.txt")), tmp_path)
    assert report.ok
    assert [(each.about, each.level, each.text) for each in report.findings[:5]] == [
        ("lm", "ok", "llama, 2 layers, width 64"),
        ("lm", "ok", "4 heads of 16, 2 with keys and values"),
        ("lm", "ok", "RoPE default; max_tokens 128 of 128"),
        ("lm", "ok", "vocabulary of 96, 96 used by the tokenizer"),
        ("lm", "ok", "0.1 M parameters, 0 MB as int4"),
    ]
    assert report.findings[-1] == Finding("calibration", "ok", "a.txt, 0.1 MB")
    assert {each.about for each in report.findings} == {"lm", "machine", "calibration"}


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"num_key_value_heads": 3}, "error", "4 attention heads cannot share 3 key-value heads; a multiple can"),
        (
            {"intermediate_size": 100},
            "warn",
            "blocks of 32 do not divide 100: rows are padded; smaller blocks waste less",
        ),
        (
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
            "warn",
            (
                "max_tokens 128 is beyond 64: dynamic NTK turns texts of every length as one of 128 tokens, as vLLM "
                "does; with max_tokens up to 64 all are turned as in training"
            ),
        ),
        (
            {"max_position_embeddings": 64},
            "warn",
            "max_tokens 128 is beyond the 64 the model was trained on; expect poor text there",
        ),
        (
            {"tokens": 97},
            "warn",
            "the tokenizer's ids go to 96, the embedding's to 95: prompts with a token past it are refused",
        ),
        ({"eos_token_id": 96}, "error", "special token 96 is outside the vocabulary of 96"),
        ({"eos_token_id": None}, "warn", "no end-of-text token: answers end only at their largest length"),
        ({"template": None}, "warn", "no chat template: generate works, chat does not"),
    ],
)
def test_each_trouble_is_one_finding(change: dict[str, Any], level: str, text: str, tmp_path: Path) -> None:
    assert troubles(tmp_path, **change) == [("lm", level, text)]


def test_positions_that_are_learned_are_all_there_are(tmp_path: Path) -> None:
    more: dict[str, Any] = {"model_type": "gpt2", "max_position_embeddings": 64, "rope_parameters": None}
    text = "max_tokens 128 is beyond the 64 positions that the model has; at most so many are right"
    wrong = [each for each in troubles(tmp_path, **more) if each[1] == "error"]
    assert wrong == [("lm", "error", text)]
    assert "error" not in {level for _, level, _ in troubles(tmp_path, **more | {"max_position_embeddings": 128})}


def test_long_factors_are_said_to_be_for_every_text(tmp_path: Path) -> None:
    long = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    more: dict[str, Any] = {
        "model_type": "phi3",
        "pad_token_id": 0,
        "rope_parameters": long,
        "original_max_position_embeddings": 64,
    }
    text = (
        "max_tokens 128 is beyond 64: LongRoPE's long factors are used for texts of every length, as llama.cpp does; "
        "with max_tokens up to 64 its short ones are"
    )
    assert troubles(tmp_path, **more) == [("lm", "warn", text)]
    assert troubles(tmp_path, **more | {"original_max_position_embeddings": 128}) == []


def test_an_unsupported_architecture_names_those_that_are(tmp_path: Path) -> None:
    [(name, level, text)] = troubles(tmp_path, model_type="opt")
    known = ", ".join(FAMILIES)
    assert (name, level) == ("lm", "error")
    assert text.startswith(f"m: architecture 'opt' is not supported; supported: {known}. A family is one value in ")
    assert "adaptc/families/table.py" in text
    assert "adaptc.families" in text


def test_a_model_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    [found] = [each for each in check(spec(), tmp_path).findings if each.level == "error"]
    assert found == Finding("lm", "error", f"m: no such file or folder: {tmp_path / 'm'}")


def test_a_tokenizer_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    folder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text('{"model": 3}')
    [found] = [each for each in check(spec(), tmp_path).findings if each.level == "error"]
    assert found.text.startswith("m: transformers cannot read its tokenizer: ")


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 layers x 2 (keys, values) x 2 heads x 16 wide x 1,048,576 tokens x 4 bytes = 537 MB a row.
    large = TargetSpec(max_tokens=1 << 20, batch=20)
    [found] = troubles(tmp_path, spec(large), max_position_embeddings=1 << 20)
    assert found[:2] == ("machine", "warn")
    assert found[2] == (
        "compiling needs about 1,000 MB of memory, running 171 (weights 0, KV cache 21 at 2,048 tokens, 10,737 at "
        "1,048,576); 6,000 are free: texts of more than about 766,596 tokens do not fit; with so small a max_tokens "
        "they are refused"
    )
    monkeypatch.setattr(memory, "memory_bytes", lambda: (160_000_000, 120_000_000))
    [found] = troubles(tmp_path, spec(large), max_position_embeddings=1 << 20)
    assert found[:2] == ("machine", "error")
    assert found[2].endswith("120 are free: a smaller max_tokens, batch or weights would fit")
    monkeypatch.setattr(memory, "memory_bytes", lambda: (8_000_000_000, 500_000_000))
    [found] = troubles(tmp_path)
    assert found[1] == "warn"
    assert found[2].endswith("500 are free: close other programs, or compile on another machine")


def test_layers_with_a_window_need_memory_for_that() -> None:
    kinds = ["sliding_attention", "full_attention"]
    values = CONFIG | {"use_sliding_window": True, "sliding_window": 100, "layer_types": kinds}
    config = build_config("m", "qwen2", {key: value for key, value in values.items() if key != "model_type"})
    for target, held in (
        (TargetSpec(max_tokens=1 << 16), [1188, 1 << 16]),
        (TargetSpec(max_tokens=512), [512, 512]),
        (TargetSpec(max_tokens=1 << 16, device="cuda"), [1 << 16, 1 << 16]),
    ):
        assert size_of(config, target, "float32").caches == tuple((2 * 2 * 16 * 4, each) for each in held)


def test_disk_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    [found] = troubles(tmp_path)
    assert found == (
        "machine",
        "error",
        "the bundle and the cache need about 0 MB of disk; 0 free: make room",
    )


def test_versions_below_the_wanted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = packages.Package("torch", "compile", "2.12", "2.3.1")
    absent = packages.Package("gguf", "compile", "0.17", None)
    monkeypatch.setattr(packages, "packages", lambda: (old, absent))
    assert troubles(tmp_path) == [
        ("machine", "error", "torch is 2.3.1, 2.12 or newer is needed; pip install 'adaptc[compile]'"),
        ("machine", "error", "gguf is not installed, 0.17 or newer is needed; pip install 'adaptc[compile]'"),
    ]


def test_calibration_text_that_is_not_there(tmp_path: Path) -> None:
    given = spec(calibration=CalibrationSpec(text="no.txt"))
    missing = "no.txt: No such file or directory; a text file is right"
    assert troubles(tmp_path, given) == [("calibration", "error", missing)]
    given = spec(calibration=CalibrationSpec(text="package:no_such_thing/a"))
    assert troubles(tmp_path, given) == [
        (
            "calibration",
            "error",
            "package:no_such_thing/a: no_such_thing is not installed; pip install --no-deps no-such-thing",
        )
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_model(tied: bool) -> None:
    config = transformers.LlamaConfig(
        **{k: v for k, v in CONFIG.items() if k != "model_type"}, tie_word_embeddings=tied
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    size = size_of(config, TargetSpec(weights="fp32", max_tokens=10, batch=3), "bfloat16")
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.bundle == 4 * size.parameters
    assert size.read == 2 * size.parameters
    assert size.cache == 2 * 2 * 2 * 16 * 10 * 4 * 3
    codes = size_of(config, TargetSpec(weights="fp32", max_tokens=10, batch=3, kv_cache="int8"), "bfloat16")
    assert 4 * codes.cache == size.cache


def test_quantized_sizes() -> None:
    config = transformers.LlamaConfig(
        **{k: v for k, v in CONFIG.items() if k != "model_type"}, tie_word_embeddings=True
    )
    matrices, table, vectors = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3), 96 * 64, 5 * 64
    int8 = size_of(config, TargetSpec(weights="int8", block_size=32), "float32")
    assert int8.bundle == int((matrices + table) * 1.125 + vectors * 4)
    int4 = size_of(config, TargetSpec(weights="int4", block_size=32), "float32")
    four = 0.5 + 4.5 / 32
    head = table * (four * 7 / 8 + 1.125 / 8)
    assert int4.bundle == int(matrices * four + table * 1.125 + head + vectors * 4)


def test_a_model_that_takes_images_is_looked_at_in_its_parts(tmp_path: Path) -> None:
    vlm.write(tmp_path, "smolvlm")
    given = read_spec(tmp_path / "model.yaml")
    report = check(given, tmp_path)
    assert report.ok
    assert [each.text for each in report.findings[:5]] == [
        "llama, 3 layers, width 32",
        "smolvlm: images through smolvlm_vision, 3 layers",
        "4 heads of 16, 2 with keys and values",
        "RoPE default; max_tokens 96 of 128",
        "vocabulary of 326, 326 used by the tokenizer",
    ]
    config = vlm.config("smolvlm")
    whole, blind = (size_of(config, given.target, "float32", images=images) for images in (True, False))
    model = vlm.model("smolvlm")
    assert whole.parameters == sum(p.numel() for p in model.parameters())
    words = [p.numel() for n, p in model.named_parameters() if "text_model" in n or "lm_head" in n]
    assert blind.parameters == sum(words)
    silent = given.model_copy(update={"passes": ()})
    [fault] = [each.text for each in check(silent, tmp_path).findings if each.level == "error"]
    assert fault == (
        "smolvlm takes images, and no pass says what becomes of them; drop_modality: {modalities: {image: "
        "[pixel_values], text: [input_ids]}, stand_in: empty} is right"
    )


def test_a_factory_is_looked_at_and_not_run(tmp_path: Path) -> None:
    path = views.write(tmp_path)
    (tmp_path / "views.py").write_text("1 / 0\n")
    report = check(read_spec(path), tmp_path)
    assert report.ok
    assert report.findings[0].text == "built by build in views.py, 24 weights"
    assert report.findings[1].text.endswith("MB as fp32")
    silent = read_spec(path).model_copy(update={"passes": ()})
    assert [each.text for each in check(silent, tmp_path).findings if each.level == "warn"] == [
        "no pass drop_modality says what its inputs are; the runtime runs no such bundle"
    ]
    (tmp_path / "views.safetensors").write_bytes(b"no weights")
    [found] = [each for each in check(read_spec(path), tmp_path).findings if each.level == "error"]
    assert found.text.startswith("module:views.py:build: ")


# ---- doctor ----


def test_packages_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click>=8.1", 'torch>=99.1; extra == "compile"', 'adaptc[compile]; extra == "dev"', 'x; extra == "gpu"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    click, torch, missing = packages.packages()
    assert (click.name, click.extra, click.wanted, click.ok) == ("click", None, "8.1", True)
    assert (torch.name, torch.extra, torch.wanted, torch.ok) == ("torch", "compile", "99.1", False)
    assert (missing.name, missing.installed, missing.install) == ("x", None, "pip install 'adaptc[gpu]'")


@pytest.mark.parametrize(
    ("text", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("1.2.dev3", (1, 2)), ("10.0rc1", (10, 0)), ("x", ())]
)
def test_numbers_of_versions(text: str, expected: tuple[int, ...]) -> None:
    assert packages.number(text) == expected


def test_a_diagnosis_is_whole_and_json() -> None:
    found = doctor.diagnose()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"adaptc", "python", "system", "cpu", "memory", "gpu", "engines", "packages"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["python"])
    assert "CPUExecutionProvider" in found["engines"]["onnxruntime"]["providers"]
    assert found["cpu"]["cores"] == physical_cores()


def test_a_diagnosis_without_anything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    monkeypatch.setattr("importlib.metadata.requires", absent)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setattr(Path, "read_text", _unreadable)
    found = doctor.diagnose()
    assert found["packages"] == []
    assert found["adaptc"] is None
    assert found["engines"]["onnxruntime"]["providers"] == []
    assert found["cpu"]["flags"] == []


def _unreadable(*_: Any, **__: Any) -> Iterator[str]:
    raise OSError(2, "No such file")


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    files = {
        "/proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 5000 kB\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "1024000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self, *_: files.get(str(self)) or _unreadable())
    assert memory.memory_bytes() == (4096000, 3072000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.memory_bytes() == (8192000, 5120000)


def test_the_check_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "m")
    monkeypatch.setattr("adaptc.sources.tensors.Tensors.__getitem__", lambda *_: pytest.fail("a weight was read"))
    assert checking.check(spec(), tmp_path).ok


def test_weights_that_do_not_fit_are_found_by_their_headers(tmp_path: Path) -> None:
    folder(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG | {"intermediate_size": 128}))
    [found] = [each for each in checking.check(spec(), tmp_path).findings if each.level == "error"]
    assert re.fullmatch(r"m: model\S+ is \[.*\]; by its config it should be \[.*\]", found.text)
    (tmp_path / "m" / WEIGHTS).unlink()
    [found] = [each for each in checking.check(spec(), tmp_path).findings if each.level == "error"]
    assert found.text == "m: model.safetensors is missing; fetch the model again"
