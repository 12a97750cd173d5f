"""`verify`, `bench` and `eval` on a bundle with routes: what they say of each is what its layers do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.stored.stitch_file import StitchMetadata, save_stitches
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.models import stitched

TEXT = "the cat sat on the mat; naïve café, the family sat on the cat " * 4
WINDOW = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched")
    stitched.write(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return compile_spec(read_spec(folder / "model.yaml"), folder, folder / "bundle", Cache(folder / "cache")).bundle


def run(command: str, bundle: Bundle, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, str(bundle.path), *map(str, arguments), "--threads", "1"])


def test_verify_compares_every_route(bundle: Bundle, folder: Path) -> None:
    shown = run("verify", bundle, "--base", folder, "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["passed"]
    assert list(found["routes"]) == list(stitched.ROUTES)
    for parity in found["routes"].values():
        assert parity["same_tokens"] == 20
        assert parity["max_logit_error"] <= 1e-3
    parts = {part["part"]: part for part in found["parts"]}
    assert parts["capture of small"]["reference"].startswith("AutoModelForCausalLM of transformers ")
    assert {parts[f"capture of {name}"]["verdict"] for name in ("large", "small")} == {"passed"}
    shown = run("verify", bundle, "--base", folder, "--route", "short")
    assert shown.exit_code == 0, shown.stderr
    assert "loss of route short" in shown.stdout
    assert "route large" not in shown.stdout


def test_verify_sees_other_stitches(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    """Of the routes that have stitches; the donor's own is as it was."""
    for file in folder.iterdir():
        if file.name not in ("stitch.safetensors", "bundle", "cache"):
            (tmp_path / file.name).symlink_to(file)
    plan = stitched.stitch().plan(stitched.program())
    other = {name: value * 1.05 for name, value in stitched.weights(plan).items()}
    save_stitches(StitchMetadata({}, {}), other, tmp_path / "stitch.safetensors")
    shown = run("verify", bundle, "--base", tmp_path, "--route", "large", "--route", "small")
    assert shown.exit_code == 1
    assert ": a logit is off by " in shown.stderr
    assert "weights of route small: " in shown.stderr
    assert "route large: " not in shown.stderr


def test_an_unknown_route_is_one_line(bundle: Bundle, folder: Path) -> None:
    for command, *more in (("verify", "--base", folder), ("bench",), ("eval", "--text", folder / "text.txt")):
        shown = run(str(command), bundle, *more, "--route", "long")
        assert shown.exit_code == 1, command
        assert shown.stderr == "Error: route: no route 'long'; there are: large, small, short, sandwich\n"


def test_eval_has_every_route_the_router_and_the_models(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    arguments = ("--text", folder / "text.txt", "--base", folder, "--cache-dir", tmp_path, "--window", WINDOW, "--json")
    shown = run("eval", bundle, *arguments)
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert list(found["routes"]) == [*stitched.ROUTES, "router"]
    assert list(found["models"]) == ["large", "small"]
    assert found["routes"]["large"]["perplexity"] == pytest.approx(found["models"]["large"], rel=1e-4)
    costs = {name: each["bytes_per_token"] for name, each in found["routes"].items()}
    assert costs["short"] < costs["large"]
    router = found["routes"]["router"]
    assert sum(router["shares"].values()) == pytest.approx(1)
    assert costs["router"] == pytest.approx(sum(costs[name] * share for name, share in router["shares"].items()))
    for route in ("small", "sandwich"):
        assert found["routes"][route]["perplexity"] == pytest.approx(eager_perplexity(bundle, route), rel=1e-3)
    shown = run("eval", bundle, *arguments, "--route", "small", "--no-dense")
    assert json.loads(shown.stdout)["routes"] == {"small": found["routes"]["small"]}


def eager_perplexity(bundle: Bundle, route: str) -> float:
    from adaptc.evaluation.text import windows
    from adaptc.runtime.loading import tokenizer_of

    plan = stitched.stitch().plan(stitched.program())
    given = stitched.halved(stitched.weights(plan))
    tokenizer = tokenizer_of(bundle)
    assert tokenizer is not None
    ids = np.array(tokenizer.encode(TEXT))
    lost = []
    for piece in windows(ids, WINDOW):
        logits = stitched.eager(route, piece[None], given)[0].astype(np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        lost += (-logits[np.arange(len(piece) - 1), piece[1:]]).tolist()
    return math.exp(sum(lost) / len(lost))


def test_bench_measures_routes_side_by_side(bundle: Bundle) -> None:
    sizes = ("--prompt-tokens", 9, "--new-tokens", 5, "--long-tokens", 20, "--repeats", 1, "--samples", 2)
    shown = run("bench", bundle, *sizes, "--route", "short", "--route", "small", "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert list(found["results"]) == ["adaptc short", "adaptc small"]
    assert found["results"]["adaptc short"]["same_tokens"] == 5
    assert found["ratios"]["decode_vs_adaptc small"] > 0
    shown = run("bench", bundle, *sizes, "--route", "large")
    assert shown.exit_code == 0, shown.stderr
    assert "adaptc large" in shown.stdout


def test_answers_leaves_routes_to_quality(bundle: Bundle, tmp_path: Path) -> None:
    asked = tmp_path / "q.jsonl"
    asked.write_text("\n".join(json.dumps({"question": f"{n}?", "answers": ["x"]}) for n in range(6)))
    shown = run("answers", bundle, "--questions", asked)
    assert shown.exit_code == 1
    assert shown.stderr.endswith(f"Error: {bundle.path}: has routes; adaptc quality asks questions by each of them\n")
