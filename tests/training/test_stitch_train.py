"""Training of stitches and routers: what is learned, what stays frozen, and that a killed run goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from adaptc.compiler.cache import Cache
from adaptc.errors import LoadError, PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.stored.router_file import RouterMetadata, load_router
from adaptc.ir.stored.stitch_file import load_stitches, save_stitches
from adaptc.ir.stored.trained_file import load_trained
from adaptc.passes import Pipeline
from adaptc.passes.stitch.calibration import HeldOut, calibrated, p_value
from adaptc.passes.stitch.offers import withheld
from adaptc.passes.stitch.options import JoinOptions, Route, RouterOptions, Slice
from adaptc.passes.stitch.states import feeds
from adaptc.runtime.model.router import METADATA
from adaptc.runtime.progress import SILENT
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.chats import Chat, append_chats, begin_chats
from adaptc.sources.find import find_source
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import CalibrationSpec
from adaptc.training.loop import Training
from adaptc.training.recipe import Recipe
from adaptc.training.router import LEAST, Prompts, fitted, predicted, recovered, write_router
from adaptc.training.router_prompts import answers, halves, observe
from adaptc.training.stitches.measure import measure, stitch_metadata
from adaptc.training.stitches.objective import HELD_OUT, StitchObjective, stitch_training
from adaptc.training.stitches.predictor import Predictor, cut_before_head, divergence
from adaptc.training.stitches.run import train_router
from adaptc.training.text import TrainingText
from adaptc.training.workspace import Workspace, chats_of, training_text
from tests.fakes.progress import Told
from tests.models import stitched

RECIPE = Recipe(steps=12, rows=4, window=32, start=2048, learning_rate=5e-3)


def text(tokens: int = 6000) -> Any:
    """A text with something to learn: each token is one of three that may follow the one before."""
    random = np.random.default_rng(0)
    following = random.integers(2, 300, (300, 3))
    ids = [5]
    while len(ids) < tokens:
        ids.append(int(following[ids[-1], random.integers(3)]))
    return np.array(ids)


def trainer(recipe: Recipe = RECIPE, **options: Any) -> Training[StitchObjective]:
    objective = StitchObjective(
        [stitched.stitch().plan(stitched.program())],
        TrainingText.cut(text(), recipe.window, HELD_OUT),
        recipe,
        **options,
    )
    return stitch_training(objective)


@pytest.mark.parametrize("headed", [False, True])
def test_divergence_and_its_gradient_are_torchs(headed: bool) -> None:
    random = torch.Generator().manual_seed(0)
    wanted, head = torch.randn(6, 7, generator=random), torch.randn(7, 5, generator=random)
    read = torch.randn(6, 5 if headed else 7, generator=random).requires_grad_()
    predictor = Predictor(stitched.program().graph("small", FxGraph), head if headed else None)
    p, q = (F.log_softmax(each, -1) for each in (wanted, read @ head.T if headed else read))
    expected = F.kl_div(q, p, log_target=True, reduction="batchmean")
    torch.autograd.backward(expected)
    loss, gradient = divergence(wanted, predictor, read.detach())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, read.grad)


def test_a_graph_cut_before_its_head_predicts_the_same() -> None:
    graph = stitched.program().graph("large", FxGraph)
    ids = torch.from_numpy(text(64).reshape(2, 32))
    [logits] = graph.module(*feeds(graph, ids))
    cut = cut_before_head(graph)
    assert cut.head is not None
    [read] = cut.graph.module(*feeds(cut.graph, ids))
    torch.testing.assert_close(cut.logits(read), logits)


def test_what_does_not_count_is_not_learned() -> None:
    """Of a text whose second half is noise, only the first half counts: its KL is what is measured and trained."""
    rows = text(3200).reshape(-1, 32)
    counts = np.zeros(rows.shape, np.bool_)
    counts[:, :16] = True
    plan = stitched.stitch().plan(stitched.program())
    changed = rows.copy()
    changed[:, 17:] = 3
    found = []
    for each in (rows, changed):
        objective = StitchObjective([plan], TrainingText.of_rows(each, counts, HELD_OUT), RECIPE)
        objective.start()
        objective.restore(dict(stitch_weights()), {})
        found.append((measure(objective), objective.backward(0, np.random.default_rng(0)).loss))
    assert found[0] == found[1]


def stitch_weights() -> dict[str, torch.Tensor]:
    """Weights that fit the plan of `stitched`, drawn."""
    random = torch.Generator().manual_seed(1)
    shapes = stitched.stitch().plan(stitched.program()).shapes()
    return {name: 0.1 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def test_training_lowers_the_kl_of_routes_and_leaves_the_backbones_alone() -> None:
    training = trainer()
    before = {n: p.clone() for n, p in stitched.program().graph("large", FxGraph).module.named_parameters()}
    training.objective.start()
    _, start = measure(training.objective)
    assert set(start) == {"small", "short", "sandwich"}, "the donor's own layers need no stitch"
    training.run()
    alone, end = measure(training.objective)
    assert alone["large"].kl == pytest.approx(0, abs=1e-6)
    # Least squares leaves nothing to learn where one layer of a random model is left out.
    assert start["short"].kl < 0.01
    for route in ("small", "sandwich"):
        assert end[route].kl < 0.9 * start[route].kl, route
    after = dict(stitched.program().graph("large", FxGraph).module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = trainer()
    whole.objective.start()
    whole.run()
    half = trainer()
    half.objective.start()
    checkpoint = tmp_path / "checkpoint"

    with pytest.raises(KeyboardInterrupt):
        half.run(Told(stop_at=8), checkpoint, every=4)
    again = trainer()
    assert again.resume(checkpoint)
    assert again.step == 4
    again.run()
    for name, weight in whole.objective.weights().items():
        torch.testing.assert_close(again.objective.weights()[name], weight, rtol=1e-4, atol=1e-5)


def test_what_the_start_fitted_is_kept_before_the_first_step(tmp_path: Path) -> None:
    first = trainer()
    first.start_or_resume(tmp_path / "c", Told(), restart=False)
    again = trainer()
    again.objective.start = None  # type: ignore[assignment, method-assign]  # to be called would be an error
    again.start_or_resume(tmp_path / "c", Told(), restart=False)
    assert again.step == 0
    for name, weight in first.objective.weights().items():
        torch.testing.assert_close(again.objective.weights()[name], weight)
    again.run()
    assert again.step == RECIPE.steps


def test_a_training_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    training = trainer()
    training.start_or_resume(tmp_path / "c", Told(), restart=False)
    training.run(checkpoint=tmp_path / "c", seconds=0.0)
    assert training.step == 0, "the time is up before a step"
    again = trainer()
    assert again.resume(tmp_path / "c")
    again.run(checkpoint=tmp_path / "c")
    assert again.step == RECIPE.steps


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    first = trainer(Recipe(steps=1, rows=4, window=32, start=512))
    first.objective.start()
    first.run(checkpoint=tmp_path / "c")
    assert not trainer().resume(tmp_path / "none")
    with pytest.raises(LoadError, match="of another recipe, text, layers or routes"):
        trainer().resume(tmp_path / "c")


def test_routes_with_other_trunks_learn_in_one_pass() -> None:
    """As in a search: the backbones run once a step, and each route begins where its own trunk ends."""
    plans = [
        stitched.stitch(
            trunk=Slice("large", (0, cut)), routes={f"c{cut}": Route((Slice("small", (2, 4)),), JoinOptions())}
        ).plan(stitched.program())
        for cut in (1, 4)
    ]
    both = stitch_training(StitchObjective(plans, TrainingText.cut(text(), RECIPE.window, HELD_OUT), RECIPE))
    both.objective.start()
    both.run()
    for plan in plans:
        alone = stitch_training(StitchObjective([plan], TrainingText.cut(text(), RECIPE.window, HELD_OUT), RECIPE))
        alone.objective.start()
        alone.run()
        for name, weight in alone.objective.weights().items():
            torch.testing.assert_close(both.objective.weights()[name], weight, rtol=1e-4, atol=1e-5)


def test_what_was_trained_compiles(tmp_path: Path) -> None:
    training = trainer(Recipe(steps=2, rows=4, window=32, start=512))
    training.objective.start()
    training.run()
    plan = training.objective.routes["small"]
    metadata = stitch_metadata(training, [plan], {"large": "", "small": ""}, {})
    assert metadata.routes["sandwich"] == (("large", 0, 3), ("small", 1, 2), ("large", 4, 6))
    assert metadata.quality["model large"]["kl"] == pytest.approx(0, abs=1e-6)
    path = tmp_path / "stitch.safetensors"
    save_stitches(metadata, dict(training.objective.weights()), path)
    assert load_stitches(path)[0] == metadata
    stitched.stitch(weights=str(path)).apply(stitched.program())


def test_refuses_too_little_text_and_nothing_to_train() -> None:
    with pytest.raises(PassError, match=r"^a text of 100 tokens"):
        TrainingText.cut(text()[:100], RECIPE.window, HELD_OUT)
    donor = stitched.stitch(routes={"large": Route((Slice("large", (3, 6)),))})
    with pytest.raises(PassError, match=r"^routes: none with a stitch"):
        StitchObjective([donor.plan(stitched.program())], TrainingText.cut(text(), RECIPE.window, HELD_OUT), RECIPE)


def hard_and_easy(count: int = 400, seed: int = 0) -> Prompts:
    """Prompts of which a direction in the features says how much the cheap route loses."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 24)).astype(np.float32)
    loss = np.maximum(0, 0.4 + 0.3 * features[:, 3] - 0.2 * features[:, 7] + 0.1 * random.normal(size=count))
    lost = np.stack([np.zeros(count), 0.4 * loss, loss], 1).astype(np.float32)
    return Prompts(features, lost)


def test_a_router_learns_which_prompts_are_hard() -> None:
    weights = fitted(hard_and_easy())
    other = hard_and_easy(seed=1)
    _, area = recovered(predicted(weights, other.features), other.lost, 2)
    random = np.random.default_rng(2).normal(size=other.lost.shape).astype(np.float32)
    _, chance = recovered(random, other.lost, 2)
    _, best = recovered(other.lost, other.lost, 2)
    assert best - 0.05 < area <= best
    assert chance == pytest.approx(0.5, abs=0.06)
    assert best > 0.65


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(PassError, match=r"^31 prompts; at least 32 are needed, and some hundred are right$"):
        fitted(hard_and_easy(31))


def test_observed_losses_are_the_routes_own() -> None:
    program = Pipeline((stitched.stitch(),)).run(stitched.program())
    plan = stitched.stitch().plan(stitched.program())
    ids = text(320).reshape(10, 32)
    found = observe(program.at_level(FxGraph), plan.costs(), halves(ids))
    given = {n: p for g in program.at_level(FxGraph).values() for n, p in g.module.named_parameters()}
    nll = []
    for route in ("large", "small"):
        logits = torch.from_numpy(stitched.eager(route, ids, given))[:, 15:-1]
        nll.append(F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(ids[:, 16:]), reduction="none").mean(1))
    np.testing.assert_allclose(found.lost[:, 1], (nll[1] - nll[0]).numpy(), atol=1e-4)
    assert (found.lost[:, 0] == 0).all()
    assert found.features.shape == (10, 96)


def test_losses_on_answers_are_of_their_tokens_alone() -> None:
    """Texts of other lengths share a run; what is measured of each begins behind its own prompt."""
    program = Pipeline((stitched.stitch(),)).run(stitched.program())
    plan = stitched.stitch().plan(stitched.program())
    random = np.random.default_rng(4)
    chats = []
    for length in (9, 30, 14, 22, 50, 12):
        ids = tuple(random.integers(2, 300, length).tolist())
        chats.append(Chat(ids, ((length // 3, length - 2),), "any", ()))
    texts = answers(chats, 10, 40)
    assert sorted(len(each.ids) for each in texts) == [7, 10, 12, 20, 28, 40]
    found = observe(program.at_level(FxGraph), plan.costs(), texts)
    given = {n: p for g in program.at_level(FxGraph).values() for n, p in g.module.named_parameters()}
    for each, lost in zip(texts, found.lost, strict=True):
        nll = []
        for route in stitched.ROUTES:
            logits = torch.from_numpy(stitched.eager(route, each.ids[None], given))[0, each.start - 1 : -1]
            nll.append(float(F.cross_entropy(logits, torch.from_numpy(each.ids[each.start :]))))
        np.testing.assert_allclose(lost, np.array(nll) - nll[0], atol=1e-4)


def test_answers_are_one_a_chat_and_fit() -> None:
    two = Chat(tuple(range(20)), ((4, 8), (12, 20)), "any", ())
    assert {(each.start, len(each.ids)) for seed in range(20) for each in answers([two], 5, 99, seed)} == {
        (4, 8),
        (12, 20),
    }
    assert answers([two], 5, 5) == [], "an answer of one token says nothing"
    assert len(answers([two] * 9, 5, 99)) == 5
    assert answers([Chat((1, 2, 3), ((0, 3),), "any", ())], 5, 99) == [], "without a prompt there is no state to read"


def routing(path: Path, **options: float) -> RouterOptions:
    return RouterOptions(str(path), **options)


@pytest.fixture
def router(tmp_path: Path) -> Path:
    path = tmp_path / "router.safetensors"
    write_router(fitted(hard_and_easy()), ("dear", "middle", "cheap"), hard_and_easy(500, seed=1), {}, path)
    return path


def test_a_missing_file_of_stitches_is_refused_beside_a_router_too(router: Path, tmp_path: Path) -> None:
    pass_ = stitched.stitch(weights=str(tmp_path / "none"), router=routing(router, target_share=0.5))
    with pytest.raises(PassError, match="none: no such file"):
        pass_.apply(stitched.program())


COSTS = {"dear": 100, "middle": 60, "cheap": 30}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_calibrated_to_a_share(router: Path, share: float) -> None:
    found = calibrated(routing(router, target_share=share), COSTS)
    assert share - 0.06 < found.bound["share"] <= share


def test_a_withheld_route_is_never_picked(router: Path) -> None:
    every = calibrated(routing(router, mean_cost=0.6), COSTS)
    found = calibrated(routing(router, mean_cost=0.6), COSTS, {"middle": "'cheap' is better"})
    assert found.withheld == {"middle": "'cheap' is better"}
    assert found.bound["mean_cost"] <= 0.6
    assert found.bound["share"] != every.bound["share"], "what went to the middle one goes elsewhere"
    fresh = hard_and_easy(400, seed=3)
    held_out = HeldOut(predicted(fitted(hard_and_easy()), fresh.features), fresh.lost, np.array([1, 0.6, 0.3]))
    only = replace(held_out, offered=np.array([True, False, True]))
    assert 1 in held_out.picks(found.threshold)
    assert set(only.picks(found.threshold)) == {0, 2}


def test_routes_that_a_cheaper_one_outdoes_are_withheld() -> None:
    kl = {"dear": 0.0, "middle": 0.5, "cheap": 0.4}
    reason = "'cheap' is cheaper and nearer to the teacher: KL 0.400 against 0.500"
    assert withheld(COSTS, kl) == {"middle": reason}
    assert withheld(COSTS, kl | {"middle": 0.3}) == {}
    assert withheld(COSTS, {"middle": 0.5}) == {}, "of the others nothing is known"
    assert withheld(COSTS, kl | {"dear": 0.9}) == {"middle": reason}, "the dearest is where doubt leads"


@pytest.mark.parametrize("cost", [0.35, 0.6, 0.9])
def test_calibrated_to_a_mean_cost(router: Path, cost: float) -> None:
    found = calibrated(routing(router, mean_cost=cost), COSTS)
    assert cost - 0.06 < found.bound["mean_cost"] <= cost


def test_calibrated_to_a_quality_floor_that_holds_on_other_prompts(router: Path) -> None:
    found = calibrated(routing(router, max_loss=0.15, confidence=0.9), COSTS)
    assert found.bound["mean_loss"] < 0.15
    assert found.bound["mean_cost"] < 0.95, "or it would be met by doing nothing"
    fresh = hard_and_easy(4000, seed=3)
    held_out = HeldOut(predicted(fitted(hard_and_easy()), fresh.features), fresh.lost, np.array([1, 0.6, 0.3]))
    assert held_out.losses(found.threshold).mean() < 0.15
    stricter = calibrated(routing(router, max_loss=0.15, confidence=0.999), COSTS)
    assert stricter.threshold < found.threshold


def test_a_bound_is_broken_as_seldom_as_it_says() -> None:
    """Of many draws whose true mean is above what is allowed, few are taken for good."""
    random = np.random.default_rng(0)
    wrong = sum(p_value(float(random.binomial(1, 0.22, 100).mean()), 100, 0.2) <= 0.1 for _ in range(1000))
    right = sum(p_value(float(random.binomial(1, 0.05, 100).mean()), 100, 0.2) <= 0.1 for _ in range(1000))
    assert wrong <= 100
    assert right > 900


def test_refuses_what_cannot_be_met(router: Path, tmp_path: Path) -> None:
    with pytest.raises(PassError) as caught:
        calibrated(routing(router, mean_cost=0.2), COSTS)
    assert str(caught.value) == (
        "router: mean_cost: 0.2; the cheapest route costs 0.30 of the dearest, so that or more is right"
    )
    with pytest.raises(PassError) as caught:
        calibrated(routing(router, max_loss=0.002), COSTS)
    assert str(caught.value) == (
        "router: max_loss: 0.002 at confidence 0.9 cannot be shown on 500 held-out prompts, even with all on the "
        f"dearest route; {math.ceil(math.log(0.1) / math.log(0.998))} prompts, or a larger loss, are right"
    )
    with pytest.raises(PassError, match=r"^router.safetensors: a router of dear, middle, cheap"):
        calibrated(routing(router, target_share=0.5), {"a": 1, "b": 2})
    with pytest.raises(PassError, match="none: no such file"):
        calibrated(routing(tmp_path / "none", target_share=0.5), COSTS)
    (tmp_path / "bad").write_bytes(b"not a router")
    with pytest.raises(PassError, match=r"bad: cannot be read as a router \(.*"):
        calibrated(routing(tmp_path / "bad", target_share=0.5), COSTS)


def test_the_table_of_a_budget_falls_in_cost(router: Path) -> None:
    levels = calibrated(routing(router, target_share=0.5), COSTS).levels
    assert levels[0] == (1.0, -math.inf)
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(levels))
    assert levels[-1][0] < 0.4


def chats_file(path: Path, source: Source, count: int) -> tuple[Chat, ...]:
    random = np.random.default_rng(7)
    lengths = random.integers(6, 40, count).tolist()
    chats = tuple(Chat(tuple(random.integers(2, 300, n).tolist()), ((n // 2, n),), "any", ()) for n in lengths)
    begin_chats(path, {"vocabulary": vocabulary(source)})
    append_chats(path, chats)
    return chats


def test_chats_that_are_held_out_are_in_no_row_that_is_trained_on(tmp_path: Path) -> None:
    stitched.write(tmp_path)
    source = find_source(read_spec(tmp_path / "model.yaml").models["large"], tmp_path)
    chats = chats_file(tmp_path / "chats.jsonl", source, 200)
    (tmp_path / "prose.txt").write_text("the cat sat on the mat " * 400)
    names = ("prose.txt", "chats.jsonl")
    written = replace(calibration_text(CalibrationSpec(text=names), tmp_path), tokens=1 << 30)
    train, held_out = chats_of(written, source, 48, 4)
    assert sorted([*train, *held_out], key=hash) == sorted(chats, key=hash)
    assert 20 < len(held_out) < 80
    rows = training_text(written, source, 48, 4)
    trained, measured = ({tuple(row[mask]) for row, mask in zip(*pair, strict=True)} for pair in (
        (rows.train, rows.train_counts), (rows.held_out, rows.held_out_counts)
    ))  # fmt: skip

    def found(chat: Chat, among: set[tuple[int, ...]]) -> bool:
        start, end = chat.answers[0]
        return any(str(chat.ids[start:end])[1:-1] in str(tuple(map(int, row))) for row in among)

    assert all(found(chat, measured) and not found(chat, trained) for chat in held_out)
    assert all(found(chat, trained) and not found(chat, measured) for chat in train)


def test_a_router_is_trained_on_answers(tmp_path: Path) -> None:
    path = stitched.write(tmp_path)
    spec = read_spec(path, ["calibration={text: chats.jsonl}"])
    source = find_source(spec.models["large"], tmp_path)
    chats_file(tmp_path / "chats.jsonl", source, 700)
    workspace = Workspace(tmp_path, tmp_path / "new.safetensors", Cache(tmp_path / "cache"), False, "cpu")
    written, quality = train_router(spec, Recipe(window=64), workspace, SILENT)
    stored = load_router(written)
    assert quality["prompts"] == len(stored.lost) >= LEAST
    metadata, _ = load_trained(written, METADATA, RouterMetadata, "a router")
    assert metadata.training["labels"] == "answers"
    few = calibrated(routing(written, max_loss=0.9, confidence=0.8), dict.fromkeys(stored.routes, 1.0))
    assert few.bound["prompts"] == len(stored.lost)
