"""`adaptc init`: a file that `check` accepts, whose comments are true of the model and this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import gguf
import pytest

from adaptc.checks.model_size import Size
from adaptc.spec.reading import parse_spec, read_spec
from adaptc.starting import advice as advising
from adaptc.starting.advice import Goal, advise
from adaptc.starting.argument import PlainModel
from adaptc.starting.commented import commented
from tests.cli.running import run
from tests.models import folder, gguf_file
from tests.sources.gguf.vocabularies import byte_level

TOKENS = byte_level("qwen2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.write(tmp_path)
    (tmp_path / "model.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("goal", get_args(Goal))
def test_check_accepts_what_is_written(goal: str, here: Path) -> None:
    done = run("init", "model", "--goal", goal)
    assert done.exit_code == 0, done.stderr
    assert "llama, 3 layers" in done.stdout
    assert "next: adaptc check model.yaml" in done.stdout
    text = Path("model.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 80
    checked = run("check", "model.yaml")
    assert checked.exit_code == 0, checked.stdout
    assert " warn " not in checked.stdout
    target = read_spec("model.yaml").target
    assert (target.weights, target.max_tokens) == ("int8" if goal == "quality" else "int4", 128)


def test_an_older_file_is_overwritten_only_if_asked(here: Path) -> None:
    Path("model.yaml").write_text("mine")
    done = run("init", "model")
    assert done.stderr == "Error: model.yaml: exists; --force overwrites it, -o writes another file\n"
    assert Path("model.yaml").read_text() == "mine"
    assert run("init", "model", "--force").exit_code == 0
    assert read_spec("model.yaml").name == "model"


def test_paths_start_from_the_file_s_folder(here: Path) -> None:
    Path("specs").mkdir()
    assert run("init", "model", "-o", "specs/m.yaml").exit_code == 0
    assert read_spec("specs/m.yaml").models["lm"].source == "../model"
    assert run("check", "specs/m.yaml").exit_code == 0


def test_it_is_printed_for_a_dash(here: Path) -> None:
    done = run("init", "model", "-o", "-")
    assert parse_spec(done.stdout).models["lm"].source == "model"
    assert not Path("model.yaml").exists()


def test_what_is_no_model_is_refused(here: Path) -> None:
    Path("own.yaml").write_text("version: 1\n")
    assert run("init", "own.yaml").stderr == "Error: own.yaml: a model.yaml; `adaptc init` takes a model\n"
    done = run("init", "gone")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: gone: no such file or folder; ")


def test_a_quantized_file_is_told_apart(here: Path) -> None:
    model = gguf_file.tiny_model("llama", len(TOKENS.texts))
    kinds = {"q": (gguf.GGMLQuantizationType.Q4_0, "Q4_0"), "f": (gguf.GGMLQuantizationType.F16, "F16")}
    for name, (kind, called) in kinds.items():
        gguf_file.write(here / f"{name}.gguf", model, "llama", TOKENS, kind=kind)
        text = run("init", f"{name}.gguf", "-o", "-").stdout
        assert f"stored as {called}" in text
        assert ("rounded to about 4 bits before" in " ".join(text.replace("#", "").split())) == (name == "q")


def test_skipping_is_offered_by_the_size_of_a_block(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = advise(PlainModel("model"), None, "speed", Path())
    small = commented(advice, "m.yaml")
    assert "skip_ffn) pays from some 5 MB on" in " ".join(small.replace("#", "").split())
    assert "# passes:" not in small
    large = commented(replace(advice, block=8_400_000), "m.yaml")
    assert "# A feed-forward block has 8.4 MB here" in large
    uncommented = large.replace("# passes:", "passes:").replace("#   - skip_ffn", "  - skip_ffn")
    [entry] = parse_spec(uncommented).passes
    assert entry == ("skip_ffn", {"gates": "gates.safetensors", "budget": 0.5})
    assert "# passes:" not in commented(replace(advice, block=8_400_000, goal="quality"), "m.yaml")
    # 3 matrices of 32 x 64 in int4 with a scale and a zero point for 32 weights.
    assert advice.block == int(3 * 32 * 64 * (0.5 + 4.5 / 32))


def test_weights_are_those_that_fit_into_memory() -> None:
    sizes = {kind: Size(1, 1, 1, size) for kind, size in (("fp16", 16e9), ("int8", 9e9), ("int4", 5e9))}  # type: ignore[arg-type]
    for goal, device, memory, expected in (
        ("quality", "cpu", 16e9, "int8"),
        ("quality", "cpu", 8e9, "int4"),
        ("quality", "cuda", 64e9, "fp16"),
        ("both", "cpu", 64e9, "int4"),
        ("speed", "cpu", 1e9, "int4"),
    ):
        assert advising._weights(goal, device, sizes, int(memory)) == expected  # type: ignore[arg-type]


def test_a_gpu_that_runs_bundles_is_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advising, "describe_gpu", lambda: {"lacks": [], "gpus": [{"name": "H200"}]})
    advice = advise(PlainModel("model"), None, "both", Path())
    assert advice.spec.target.device == "cuda"
    assert "# cpu, or cuda for NVIDIA GPUs (H200)." in commented(advice, "m.yaml")
    lacking = {"lacks": ["NVRTC: not loadable"], "gpus": [{"name": "H200"}]}
    monkeypatch.setattr(advising, "describe_gpu", lambda: lacking)
    assert advise(PlainModel("model"), None, "both", Path()).spec.target.device == "cpu"
