"""Commands on something that is no bundle, and on bundles of kinds that they are not for: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import run
from tests.repo import ROOT

GATED, STITCHED = (str(ROOT / "tests/stored/schema3" / name) for name in ("gated", "stitched"))

COMMANDS = {
    "answers": ["--prompts", "prompts.jsonl"],
    "bench": [],
    "build": [],
    "chat": [],
    "eval": ["--text", "text.txt"],
    "export": ["--to", "ray"],
    "gates": ["gates.safetensors"],
    "generate": ["--prompt", "a"],
    "plot": [],
    "profile": ["--data", "rows.npz"],
    "quality": [],
    "report": [],
    "route": ["--prompts", "prompts.jsonl"],
    "strategy": [],
    "verify": [],
}
"""Commands that take a bundle, with what else they must be given."""


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_bundle_is_refused_with_what_would_be_right(name: str) -> None:
    for path in ("nothing", "folder", "file"):
        done = run(name, path, *COMMANDS[name])
        assert (done.exit_code, done.stdout) == (1, ""), path
        assert done.stderr.startswith(f"Error: {path}: no bundle: cannot read manifest.json: ")
        assert done.stderr.endswith("; a folder that `adaptc compile` wrote is right\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profile", STITCHED, "--data", "rows.npz"], "has no modalities to leave out; drop_modality makes a bundle"),
        (["gates", STITCHED, "none"], "no learned gates; `adaptc compile` with skip_ffn"),
        (["plot", STITCHED], "no gates; there is nothing to draw"),
        (["bench", GATED], "--prompt-tokens 32 --new-tokens 32 --long-tokens 63 fit"),
        (["quality", GATED, "--text", "file", "--route", "a"], "route: no route 'a'; this bundle has none"),
        (["show", "nothing"], "nothing: no such file; give the path of a model.yaml"),
    ],
)
def test_a_bundle_of_another_kind_is_refused_by_what_it_lacks(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_bench_says_fits_does_fit() -> None:
    sizes = ["--prompt-tokens", "32", "--new-tokens", "32", "--long-tokens", "63"]
    done = run("bench", GATED, *sizes, "--repeats", "1", "--samples", "1", "--threads", "1")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "content",
    [
        '{"policies": 3}',
        '{"policies": {"learned": [3]}}',
        '{"policies": {"learned": [{"share": 1}]}}',
    ],
)
def test_a_sweep_that_is_none_is_one_line(content: str) -> None:
    Path("sweep.json").write_text(content)
    done = run("plot", GATED, "--sweep", "sweep.json")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("Error: sweep.json: no sweep")
