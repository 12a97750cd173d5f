"""What a router is worth: points that can be computed by hand, a bundle's own, and a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import RequestError
from adaptc.evaluation.routing import Routing, measure_routing, routing
from adaptc.plots.routing import draw
from adaptc.runtime.bundle.folder import Bundle
from adaptc.sources.chats import Chat, append_chats, begin_chats
from adaptc.sources.find import find_source
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.reading import read_spec
from tests.models import stitched

NAMES, COSTS = ("dear", "middle", "cheap"), np.array([1.0, 0.6, 0.3])
LOST = np.array([[0.0, 0.1, 0.2], [0.0, 0.5, 1.0], [0.0, 0.0, 0.1], [0.0, 0.6, 0.9]])


def measured(predicted: np.ndarray = LOST, threshold: float = 0.15, **options: object) -> Routing:
    return routing(NAMES, COSTS, LOST, predicted, threshold, 40, **options)  # type: ignore[arg-type]


def test_points_are_means_over_prompts() -> None:
    found = measured()
    assert found.routes["cheap"].cost == pytest.approx(0.3)
    assert found.routes["cheap"].loss == pytest.approx(0.55)
    assert found.routes["cheap"].kept == pytest.approx(math.exp(-0.55))
    assert found.routes["dear"].loss == 0
    # Of the four the first goes to the middle one (0.1), the third to the cheapest (0.1), the others to the dearest.
    assert found.calibrated.cost == pytest.approx((0.6 + 1 + 0.3 + 1) / 4)
    assert found.calibrated.loss == pytest.approx(0.05)
    assert found.shares == {"dear": 0.5, "middle": 0.25, "cheap": 0.25}
    # A coin between cheap and dear, under which the middle one lies above the line.
    assert [(each.cost, each.loss) for each in found.coin] == [
        (0.3, pytest.approx(0.55)),
        (0.6, pytest.approx(0.3)),
        (1.0, 0.0),
    ]
    at = found.calibrated.cost
    assert found.beats_coin_by == pytest.approx(0.3 * (1 - at) / 0.4 - 0.05)


def test_a_route_above_the_line_is_no_corner_of_a_coin() -> None:
    lost = np.array([[0.0, 0.5, 0.6]] * 3)
    found = routing(NAMES, COSTS, lost, lost, 0.0, 9)
    assert [each.cost for each in found.coin] == [0.3, 1.0]


def test_an_oracle_is_never_worse_than_a_router() -> None:
    random = np.random.default_rng(0)
    lost = random.exponential(0.3, (300, 3)) * np.array([0, 0.5, 1.0])
    blind = random.normal(size=(300, 3))
    half = lost + random.normal(scale=0.2, size=(300, 3))
    worth = {}
    for name, predicted in {"blind": blind, "half": half, "knows": lost}.items():
        found = routing(NAMES, COSTS, lost, predicted, 0.1, 9)
        costs, losses = zip(*sorted((each.cost, each.loss) for each in found.oracle), strict=True)
        for point in found.router:
            assert point.loss >= np.interp(point.cost, costs, losses) - 1e-4
        worth[name] = found.beats_coin_by
    assert worth["blind"] < 0.02 < worth["half"] < worth["knows"]


def test_a_withheld_route_is_not_picked() -> None:
    found = measured(offered=np.array([True, False, True]))
    assert found.shares == {"dear": 0.75, "middle": 0.0, "cheap": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routing")
    stitched.write(folder)
    spec = read_spec(folder / "model.yaml")
    compile_spec(spec, folder, folder / "bundle", Cache(folder / "cache"))
    random = np.random.default_rng(2)
    begin_chats(folder / "chats.jsonl", {"vocabulary": vocabulary(find_source(spec.models["large"], folder))})
    lengths = (20, 30, 44, 12, 63, 90)
    chats = [Chat(tuple(random.integers(2, 300, n).tolist()), ((n // 2, n),), "any", ()) for n in lengths]
    append_chats(folder / "chats.jsonl", chats)
    return folder


def opened(folder: Path) -> Bundle:
    return runtime.open_bundle(folder / "bundle")


def test_a_bundles_routes_are_run_over_answers(folder: Path) -> None:
    """What is measured equals transformers' own layers; what the router says equals the session's choice."""
    found = measure_routing(opened(folder), folder / "chats.jsonl")
    assert (found.prompts, found.tokens) == (5, 10 + 15 + 22 + 6 + 32), "one chat is longer than the bundle holds"
    given = stitched.halved(stitched.weights(stitched.stitch().plan(stitched.program())))
    random, lost = np.random.default_rng(2), []
    for n in (20, 30, 44, 12, 63):
        ids = random.integers(2, 300, n)
        nll = []
        for route in stitched.ROUTES:
            logits = stitched.eager(route, ids[None], given)[0, n // 2 - 1 : -1].astype(np.float64)
            log_softmax = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            log_softmax -= logits.max(-1, keepdims=True)
            nll.append(-log_softmax[np.arange(n - n // 2), ids[n // 2 :]].mean())
        lost.append(np.array(nll))
    costs = opened(folder).manifest.route_bytes["router"]
    dearest = list(costs).index(max(costs, key=lambda name: costs[name]))
    mean = (np.array(lost) - np.array(lost)[:, dearest, None]).mean(0)
    for name, expected in zip(stitched.ROUTES, mean, strict=True):
        assert found.routes[name].loss == pytest.approx(expected, abs=2e-3)
    assert sum(found.shares.values()) == pytest.approx(1)


def test_the_command_writes_a_picture_and_its_figures(folder: Path, tmp_path: Path) -> None:
    chats = ["--chats", str(folder / "chats.jsonl")]
    arguments = ["quality", str(folder / "bundle"), "--router", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, *chats, "--limit", "3"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "router.json").read_text())
    assert record["prompts"] == 3
    assert record["routes"].keys() == stitched.ROUTES.keys()
    assert "| **router** |" in done.stdout
    assert (tmp_path / "out" / "router.png").read_bytes().startswith(b"\x89PNG")
    for more in (["--tokens", "9"], ["--route", "large"], ["--budget", "0.5"]):
        refused = CliRunner().invoke(main, [*arguments, *chats, *more])
        assert (refused.exit_code, f"{more[0]}: not with --router" in refused.output) == (2, True)
    assert CliRunner().invoke(main, arguments).exit_code == 2, "without chats there is nothing to measure"


def test_other_chats_are_refused(folder: Path, tmp_path: Path) -> None:
    begin_chats(tmp_path / "other.jsonl", {"vocabulary": "0" * 64})
    append_chats(tmp_path / "other.jsonl", [Chat((1, 2, 3), ((1, 3),), "any", ())])
    with pytest.raises(RequestError, match=r"other.jsonl: chats in another vocabulary"):
        measure_routing(opened(folder), tmp_path / "other.jsonl")


def test_a_route_that_loses_far_more_does_not_press_the_picture_flat(tmp_path: Path) -> None:
    lost = np.concatenate([LOST, np.full((4, 1), 9.0)], 1)
    found = routing((*NAMES, "broken"), np.array([1.0, 0.6, 0.3, 0.4]), lost, lost, 0.15, 40)
    draw(found, "four routes", tmp_path / "router.png")
    assert (tmp_path / "router.png").stat().st_size > 10_000
