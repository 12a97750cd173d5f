"""From two models and a spec with `stitch` to a bundle whose routes write what their layers would write one by one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler import pipeline
from adaptc.compiler import tuning as pays
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.weights_file import INLINE_BYTES
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes import Pipeline
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import read_spec
from tests.close import ENGINE, assert_close
from tests.gpu.answers import mixed
from tests.models import stitched
from tests.passes.stitch.test_stitch import Gating

TOLERANCE = 1e-3
"""What a logit may be off by; logits here are about 1."""

PROMPTS = [np.random.default_rng(n).integers(2, 300, n).tolist() for n in (5, 3, 9, 1, 7, 12, 4, 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitched")
    stitched.write(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return build(folder, "bundle")


def build(folder: Path, into: str, *overrides: str) -> Bundle:
    spec = read_spec(folder / "model.yaml", overrides)
    return compile_spec(spec, folder, folder / into, Cache(folder / "cache")).bundle


def given() -> Any:
    return stitched.halved(stitched.weights(stitched.stitch().plan(stitched.program())))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def test_the_router_picks_by_the_prompts_states(bundle: Bundle) -> None:
    """What the runtime reads off a bundle's files equals the router on transformers' own states."""
    import torch
    from safetensors.numpy import load_file

    from adaptc.runtime.model.router import features, picked
    from adaptc.training.router import predicted

    switch = bundle.manifest.plan[1]
    assert isinstance(switch, Switch)
    assert switch.router is not None
    weights = load_file(bundle.path / switch.router.file)
    model = stitched.model("large")
    picks = set()
    with runtime.load(bundle.path, threads=1) as session:
        for prompt in PROMPTS:
            with torch.no_grad():
                states = model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False).hidden_states[3]
            said = predicted(weights, features(states[0].numpy()))
            choice = session.choose(prompt)
            np.testing.assert_allclose(list(choice.losses.values()), said, atol=1e-4)
            assert choice.route == picked(choice.losses, choice.costs, switch.router.threshold)
            assert session.generate(prompt, max_new_tokens=2).trace.route == choice.route
            assert session.score(prompt).route == choice.route
            assert session.generate(prompt, max_new_tokens=2, budget=1).trace.route == "large"
            picks.add(choice.route)
    assert len(picks) > 1, "or the router would not matter"
    bound = switch.router.bound
    assert bound["target_share"] == 0.25
    assert bound["share"] <= 0.25
    costs = [cost for cost, _ in switch.router.levels]
    assert costs == sorted(costs, reverse=True)
    assert switch.router.levels[0] == (1.0, -math.inf)


def test_route_explains(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n\nnaïve café\n")
    arguments = ["route", str(bundle.path), "--prompts", str(tmp_path / "prompts.txt"), "--threads", "1"]
    done = CliRunner().invoke(main, [*arguments, "--explain"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[1:] for line in (lines[0], lines[5])] == [["the", "cat"], ["naïve", "café"]]
    assert len(lines) == 10
    assert [line.split()[0] for line in lines[1:5]] == list(stitched.ROUTES)
    assert lines[1].split()[1:7] == ["loses", lines[1].split()[2], "nats", "a", "token,", lines[1].split()[6]]
    assert "mean cost" in done.stderr
    rows = [json.loads(line) for line in CliRunner().invoke(main, [*arguments, "--json"]).stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "naïve café"]
    dear = [
        json.loads(x) for x in CliRunner().invoke(main, [*arguments, "--json", "--budget", "1"]).stdout.splitlines()
    ]
    assert {row["route"] for row in dear} == {"large"}


def test_generate_takes_a_route(bundle: Bundle) -> None:
    for route in ("small", "short"):
        arguments = ["generate", str(bundle.path), "-p", "the cat", "-n", "3", "--json", "--route", route]
        done = CliRunner().invoke(main, arguments)
        assert json.loads(done.stdout)["trace"]["routes"] == [[0, route]]
    done = CliRunner().invoke(main, ["generate", str(bundle.path), "-p", "the cat", "--route", "no"])
    assert done.exit_code == 1
    assert done.stderr == "Error: route: no route 'no'; there are: large, small, short, sandwich\n"


@pytest.mark.parametrize("route", stitched.ROUTES)
def test_a_route_is_its_eager_composition(bundle: Bundle, route: str) -> None:
    """Read in chunks and token by token; and the first is the donor, as its layers are the donor's own."""
    ids = np.random.default_rng(3).integers(2, 300, 40)
    expected = stitched.eager(route, ids[None], given())[0]
    if route == "large":
        with runtime.load(bundle.path) as session:
            logits = np.concatenate(list(session._decoder.score(ids, 7, RequestOptions(route=route))))
        assert np.abs(logits - expected).max() < TOLERANCE
    chosen = log_softmax(expected)[np.arange(39), ids[1:]]
    with runtime.load(bundle.path, chunk=16, threads=1) as session:
        for step in (False, True):
            found = session.score(ids.tolist(), route=route, step=step).values
            assert_close(found, chosen.astype(np.float32), **ENGINE)
        written = session.generate(PROMPTS[0], max_new_tokens=12, route=route)
    assert list(written.ids) == stitched.greedy(route, PROMPTS[0], len(written.ids), given())[0]


def test_the_donors_route_is_the_model_itself(bundle: Bundle) -> None:
    import torch

    ids = np.random.default_rng(4).integers(2, 300, 30)
    with torch.no_grad():
        donor = stitched.model("large")(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    with runtime.load(bundle.path, threads=1) as session:
        logits = np.concatenate(list(session._decoder.score(ids, 30, RequestOptions(route="large"))))
    assert np.abs(logits - donor).max() < TOLERANCE


@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_of_mixed_routes_equals_recomputing_every_step(bundle: Bundle, batch: int) -> None:
    """Each answer is held against a full recomputation at each of its tokens, so a stale cache shows at once."""
    routes = [list(stitched.ROUTES)[index % 4] for index in range(8)]
    with runtime.load(bundle.path, batch=batch, threads=1) as session:
        found = mixed(session, list(zip(PROMPTS, routes, strict=True)), 10)
    for prompt, route, ids in zip(PROMPTS, routes, found, strict=True):
        assert ids == stitched.greedy(route, prompt, len(ids), given())[0], route


def test_reroute_equals_a_prompt_that_was_on_the_new_route_all_along(bundle: Bundle) -> None:
    with runtime.load(bundle.path, threads=1) as session:
        decoder = session._decoder
        ids = list(PROMPTS[2])
        ids.append(int(decoder.start(0, np.array(ids), RequestOptions(route="large")).argmax()))
        ids.append(int(decoder.decode(ids[-1:])[0].argmax()))
        decoder.reroute(0, "small")
        logits = decoder.decode(ids[-1:])[0]
    expected = stitched.eager("small", np.array([ids]), given())[0, -1]
    assert_close(logits, expected, **ENGINE)


def test_every_weight_is_in_the_bundle_once(bundle: Bundle) -> None:
    """One data file a backbone; the bytes of all distinct weights, and no more than 5 % beside them."""
    manifest = bundle.manifest
    assert {name: spec.data for name, spec in manifest.graphs.items()}["tail.small"] == (
        "graphs/large-small.data",
        "graphs/small.data",
    )
    distinct: dict[bytes, int] = {}
    held = 0
    for spec in manifest.graphs.values():
        model = onnx.load(bundle.path / spec.file)
        for tensor in model.graph.initializer:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(content) > INLINE_BYTES:
                distinct[content] = len(content)
                held += len(content)
    stored = sum(record.bytes for name, record in manifest.files.items() if name.endswith(".data"))
    pages = 4096 * len(distinct)  # a tensor begins on a page, which is much for tiny ones
    assert sum(distinct.values()) <= stored <= sum(distinct.values()) * 1.05 + pages
    assert held > 1.2 * sum(distinct.values()), "routes do share weights, or this would show nothing"


def test_the_manifest_says_what_each_route_costs(bundle: Bundle) -> None:
    first, switch = bundle.manifest.plan
    assert first.graphs == ("trunk",)
    assert isinstance(switch, Switch)
    assert list(switch.routes) == list(stitched.ROUTES)
    costs = bundle.manifest.route_bytes[switch.gate]
    assert costs["short"] < costs["sandwich"] < costs["large"]
    assert bundle.manifest.bytes_per_token == costs["large"]
    assert json.loads((bundle.path / "manifest.json").read_text())["plan"][1]["gate"] == "router"


def test_the_lowered_program_comes_back_from_the_cache(folder: Path, bundle: Bundle) -> None:
    for entry in (folder / "cache" / "bundle").iterdir():
        Cache(folder / "cache").drop("bundle", entry.name)
    again = build(folder, "again")
    kept = {name: record for name, record in bundle.manifest.files.items() if name.startswith("graphs/")}
    assert kept.items() <= again.manifest.files.items()
    assert again.manifest.plan == bundle.manifest.plan


def test_int4_keeps_its_routes_close(folder: Path) -> None:
    """Blocks of 16 on tiny random weights: rougher than any real model, but the same model."""
    made = build(folder, "int4", "target.weights=int4", "target.block_size=16")
    ids = np.random.default_rng(3).integers(2, 300, 40)
    with runtime.load(made.path, threads=1) as session:
        for route in stitched.ROUTES:
            found = session.score(ids.tolist(), route=route).values
            chosen = log_softmax(stitched.eager(route, ids[None], given())[0])[np.arange(39), ids[1:]]
            other = "short" if route == "small" else "small"
            wrong = log_softmax(stitched.eager(other, ids[None], given())[0])[np.arange(39), ids[1:]]
            assert np.abs(found - chosen).mean() < 0.6 * np.abs(found - wrong).mean(), route


def test_skipping_in_a_backbone_composes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both graphs' gates follow one budget; what is skipped is what the eager graphs skip at that threshold."""
    passes = (Gating(), stitched.stitch(weights=str(folder / "stitch.safetensors")))
    real = pays.payoff

    def measured(*given: Any) -> Payoff:
        found = real(*given)  # a trunk and tails can be timed by themselves
        assert min(found.dense, found.run, found.skipped) > 0
        return Payoff(1e-3, 1.01e-3, 0.8e-3, found.gates)

    monkeypatch.setattr(pipeline, "build_passes", lambda _: passes)
    monkeypatch.setattr(pays, "payoff", measured)
    # A cache of its own: the spec, which keys it, does not know of the passes put in its place.
    made = compile_spec(read_spec(folder / "model.yaml"), folder, folder / "gated", Cache(folder / "other")).bundle
    assert set(made.manifest.gates) == {"trunk", "tail.large", "tail.sandwich"}
    ids = np.random.default_rng(3).integers(2, 300, 12)
    program = Pipeline(passes).run(stitched.program())
    with runtime.load(made.path, threads=1) as session:
        dense = session.score(ids.tolist(), route="large", step=True).values
        scored = session.score(ids.tolist(), route="large", budget=0)
        cheap = scored.values
        assert scored.skips is not None
        assert scored.skips.ran.shape == (12 - 2 - 2 + 1, 3)
        assert scored.skips.share > 0
        written = session.generate(ids.tolist(), max_new_tokens=4, route="large", budget=0)
        assert written.trace.skips is not None
        assert session.generate(ids.tolist(), max_new_tokens=4, route="small", budget=0).trace.skips is not None
    warm = np.full((1, 12), 0.0, np.float32)
    warm[:, :2] = -np.inf
    for found, threshold in ((dense, np.full((1, 12), -np.inf, np.float32)), (cheap, warm)):
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids[None],
            "position_ids": np.arange(12)[None],
            "threshold": threshold,
        }
        feeds["hidden"] = program.graph("trunk", FxGraph).run(feeds)["hidden"]
        logits = program.graph("tail.large", FxGraph).run(feeds)["logits"][0].astype(np.float32)
        assert_close(found, log_softmax(logits)[np.arange(11), ids[1:]].astype(np.float32), **ENGINE)


def test_a_manifest_refuses_a_switch_that_leads_nowhere(bundle: Bundle, tmp_path: Path) -> None:
    switch = bundle.manifest.plan[1]
    assert isinstance(switch, Switch)
    wrong = dataclasses.replace(switch, routes={"a": "tail.b"})
    files: dict[str, Path | bytes] = {name: bundle.path / name for name in bundle.manifest.files}
    with pytest.raises(runtime.BundleError, match=r"^plan\[1\]: no graph 'tail.b'"):
        write_bundle(tmp_path / "b", files, dataclasses.replace(bundle.manifest, plan=(bundle.manifest.plan[0], wrong)))
