"""Encoders: what their exports serve, and what commands that are about text say of them, in one line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

from adaptc import runtime
from adaptc.runtime.server.scaling.scaling_options import ScalingOptions
from tests.cli.running import run
from tests.close import ENGINE, assert_close
from tests.models import encoders
from tests.server.served import ask

NO_TEXT = "an encoder, which writes no text; load, and embed or classify, are right"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    encoders.write(folder, "bert")
    return encoders.compiled(folder).path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    encoders.write(folder, "bert", transformers.AutoModelForSequenceClassification)
    return encoders.compiled(folder).path


def test_a_replica_of_ray_s_folder_answers_with_vectors(bundle: Path, tmp_path: Path) -> None:
    """With the arguments of serve.yaml, as `application_from` hands them on."""
    done = run("export", str(bundle), "--to", "ray", "-o", str(tmp_path / "ray"), "--name", "words")
    assert done.exit_code == 0, done.stderr
    [application] = yaml.safe_load((tmp_path / "ray/serve.yaml").read_text())["applications"]
    parts = ScalingOptions.read(application["args"], tmp_path / "ray").replica("replicas")
    try:
        [found] = ask(parts, "/v1/embeddings", {"input": "the cat", "model": "words"}).json()["data"]
    finally:
        parts.models.close()
    with runtime.load_encoder(bundle) as session:
        assert_close(np.float32(found["embedding"]), session.embed("the cat"), **ENGINE)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_container_s_folder_is_written(kind: str, bundle: Path, tmp_path: Path) -> None:
    done = run("export", str(bundle), "--to", kind, "-o", str(tmp_path / kind))
    assert done.exit_code == 0, done.stderr
    assert "--max-batch" not in "".join(
        file.read_text() for file in (tmp_path / kind).iterdir() if file.suffix in ("", ".yaml") and file.is_file()
    )
    copied = [each.parent for each in (tmp_path / kind).rglob("manifest.json")]
    assert len(copied) == (kind == "docker"), "the image has it"
    for each in copied:
        runtime.load_encoder(each).close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("export", "--to", "triton"), "an encoder has no form for Triton; --to docker, ray or kubernetes is right"),
        (("export", "--to", "ray", "--max-batch", "4"), "--max-batch: {} answers each input by itself; leave it out"),
        (("generate", "-p", "the cat"), NO_TEXT),
        (("chat",), NO_TEXT),
        (("bench",), NO_TEXT),
        (("bench", "--speculate", "auto"), NO_TEXT),
        (("eval", "--text", "README"), NO_TEXT),
        (("eval", "--text", "README", "--sweep"), NO_TEXT),
        (("quality", "--text", "README"), NO_TEXT),
        (("quality",), NO_TEXT),
        (("route", "--prompts", "README"), NO_TEXT),
        (("answers", "--prompts", "README"), "neither gates nor a router"),
        (("gates", "g.safetensors"), "no learned gates"),
        (("strategy",), "has no modalities to leave out"),
        (("profile", "--data", "d.npz"), "has no modalities to leave out"),
    ],
    ids=str,
)
def test_what_has_no_meaning_for_encoders_is_one_line(
    command: tuple[str, ...], said: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("README", "g.safetensors", "d.npz"):
        Path(name).write_text("the cat sat\n")
    done = run(command[0], str(bundle), *command[1:])
    assert (done.exit_code, done.stdout) == (1, "")
    [line] = done.stderr.strip().splitlines()
    assert said.format(bundle) in line
    assert sorted(each.name for each in tmp_path.iterdir()) == ["README", "d.npz", "g.safetensors"]


def test_training_gates_of_an_encoder_is_refused(bundle: Path) -> None:
    done = run("train", str(bundle.parent / "model.yaml"))
    assert done.exit_code == 1
    assert "nothing to train" in done.stderr


@pytest.mark.parametrize("kind", ["ray", "triton", "docker", "kubernetes"])
def test_what_no_server_answers_with_is_not_exported(kind: str, labels: Path, tmp_path: Path) -> None:
    done = run("export", str(labels), "--to", kind, "-o", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "an encoder that gives scores of labels, which no server answers with" in done.stderr
    assert not (tmp_path / "out").exists()
