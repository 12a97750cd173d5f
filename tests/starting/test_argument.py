"""What a command line names: a model.yaml, a model, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptc.errors import SpecError
from adaptc.starting.argument import PlainModel, SpecFile, read_argument


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"GGUF" if name.endswith((".gguf", ".bin")) else b"{}")


@pytest.mark.parametrize(
    ("there", "name", "expected"),
    [
        ((), "org/name", PlainModel("org/name")),
        ((), "org/name@v1", PlainModel("org/name@v1")),
        ((), "org/name/file.gguf", PlainModel("org/name/file.gguf")),
        ((), "package:p/x.gguf", PlainModel("package:p/x.gguf")),
        ((), "gone.gguf", PlainModel("gone.gguf")),
        ((), "gone.yaml", SpecFile(Path("gone.yaml"))),
        ((), "no/model.yaml", SpecFile(Path("no/model.yaml"))),
        (("m/config.json",), "m", PlainModel("m")),
        (("m/config.json",), "m/config.json", PlainModel("m")),
        (("m/x.gguf", "m/README.md"), "m", PlainModel("m/x.gguf")),
        (("m/adapter_config.json",), "m", PlainModel("m", adapter=True)),
        (("org/name/config.json",), "org/name", PlainModel("org/name")),
        (("weights.bin",), "weights.bin", PlainModel("weights.bin")),
        (("some.yml",), "some.yml", SpecFile(Path("some.yml"))),
        (("m/model.yaml",), "m", SpecFile(Path("m/model.yaml"))),
        (
            ("m/model.yaml", "m/config.json"),
            "m",
            SpecFile(
                Path("m/model.yaml"),
                "m/model.yaml is taken; m/config.json, which is there too, would name the model alone",
            ),
        ),
        (("m/model.yaml", "m/config.json"), "m/config.json", PlainModel("m")),
    ],
)
def test_what_is_named(there: tuple[str, ...], name: str, expected: PlainModel | SpecFile) -> None:
    make(*there)
    assert read_argument(name) == expected


@pytest.mark.parametrize(
    ("there", "name", "expected"),
    [
        (
            (),
            "gone",
            "gone: no such file or folder; a model.yaml, a model's folder, a .gguf file or a hub id org/name is right",
        ),
        (
            ("m/README.md",),
            "m",
            "m: a folder without model.yaml, config.json or a .gguf file; give one that has one of these",
        ),
        (("m/b.gguf", "m/a.gguf"), "m", "m: several GGUF files: a.gguf, b.gguf; give one, as m/a.gguf"),
        (
            ("m/x.safetensors",),
            "m/x.safetensors",
            "m/x.safetensors: one file of a model; give the folder that also has its config.json",
        ),
        ((), "package:p", "package:p: expected package:NAME/file, with NAME as Python imports it"),
        ((), "https://hub.test/org/name/tree/main", "https://hub.test/org/name/tree/main: a URL; org/name is right"),
        (
            (),
            "https://hub.test/org/name/blob/main/q/m.gguf?download=true",
            "https://hub.test/org/name/blob/main/q/m.gguf?download=true: a URL; org/name/q/m.gguf is right",
        ),
        ((), "https://hub.test/", "https://hub.test/: a URL; a hub id org/name is right"),
        (
            (),
            "module:m.py:build",
            "module:m.py:build: a function needs weights: beside it, so a model.yaml with models: is right",
        ),
    ],
)
def test_what_is_neither_gets_a_line(there: tuple[str, ...], name: str, expected: str) -> None:
    make(*there)
    with pytest.raises(SpecError) as caught:
        read_argument(name)
    assert str(caught.value) == expected
