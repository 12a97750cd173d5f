"""drop_modality: a subset's graph says what the model says without the others, and has nothing of theirs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaptc.capture.module import capture_module
from adaptc.errors import PassError, SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.drop_modality.drop_modality import DropModality
from adaptc.passes.lower.lower import Lower
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.spec.passes import build_passes
from adaptc.spec.reading import parse_spec
from tests.close import ENGINE, FLOAT32, assert_close
from tests.models import tiny, views

WHOLE = tuple(views.MODALITIES)
SUBSETS = [s for size in (1, 2, 3) for s in combinations(WHOLE, size)]


def dropped(**options: Any) -> Program:
    return Pipeline((DropModality(modalities=views.MODALITIES, **options),)).run(views.program())


@pytest.fixture(scope="module")
def learned() -> Program:
    return dropped()


@pytest.fixture(scope="module")
def lowered(learned: Program) -> Program:
    return Pipeline((Lower(),)).run(learned)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("drop_modality/learned", str(dropped(keep=(("text",), WHOLE))))
    golden("drop_modality/empty", str(dropped(keep=(("image", "sound"),), stand_in="empty")))


@settings(max_examples=20, deadline=None)
@given(subset=st.sampled_from(SUBSETS), rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_equals_eager(learned: Program, lowered: Program, subset: tuple[str, ...], rows: int, seed: int) -> None:
    given = views.feeds(rows, seed)
    expected = views.eager(given, subset)
    assert_close(views.run(learned, given, subset), expected, **FLOAT32)
    assert_close(views.run(lowered, given, subset), expected, **ENGINE)


@pytest.mark.parametrize("subset", SUBSETS)
def test_no_tokens_equals_eager_without_them(subset: tuple[str, ...]) -> None:
    made = dropped(keep=(subset,), stand_in="empty")
    given = views.feeds(4, 1)
    expected = views.eager(given, subset, "empty")
    assert_close(views.run(made, given, subset), expected, **FLOAT32)
    assert_close(views.run(Pipeline((Lower(),)).run(made), given, subset), expected, **ENGINE)


def test_mean_stands_for_the_features_over_the_data(tmp_path: Path) -> None:
    path = views.labelled(tmp_path / "data.npz")
    made = dropped(keep=(("image", "text"),), stand_in="mean", data=str(path))
    with np.load(path) as file:
        wave = torch.from_numpy(file["wave"])
    model, given = views.model(), views.feeds(3)
    average = torch.tanh(model.sound(wave)).mean(0)
    parts = [model.image(torch.from_numpy(given["pixels"]).float() / 255)]
    parts.append((model.words(torch.from_numpy(given["ids"])) * torch.from_numpy(given["mask"])[..., None]).sum(1))
    expected = model.head(model.layer(torch.stack([*parts, average.expand(3, -1)], 1)).mean(1))
    assert_close(views.run(made, given, ("image", "text")), expected.numpy(), **FLOAT32)


def test_a_head_fitted_anew_is_better_than_the_mean(tmp_path: Path) -> None:
    path = views.labelled(tmp_path / "data.npz", 400)
    with np.load(path) as file:
        given = {name: file[name] for name in file.files}

    def loss(how: str) -> float:
        made = dropped(keep=(("text",),), stand_in=how, data=str(path))
        logits = torch.from_numpy(views.run(made, given, ("text",)))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(given["labels"])))

    assert loss("refit") < loss("mean") - 0.05


def test_a_subset_has_nothing_of_what_it_leaves_out(lowered: Program) -> None:
    modal = lowered.modal["views"]
    for each in modal.subsets:
        graph = lowered.graph(each.graph, OnnxGraph).model.graph
        assert {v.name for v in graph.inputs} == {f"{name}_features" for name in each.modalities}
        encoders = {str(name).partition(".")[0] for name in graph.initializers}
        assert not encoders & {"image", "words", "sound"}
    reads = {name: set(lowered.graph(f"views.encode.{name}", OnnxGraph).model.graph.initializers) for name in WHOLE}
    assert reads["image"] == {"image.0.weight", "image.0.bias", "image.3.weight", "image.3.bias"}
    assert reads["sound"] == {"sound.weight", "sound.bias"}


def test_the_plan_runs_encoders_and_one_of_the_subsets(learned: Program) -> None:
    *encoders, switch = learned.plan
    assert encoders == [Run(f"views.encode.{name}") for name in WHOLE]
    assert isinstance(switch, Switch)
    assert next(iter(switch.routes)) == "image+text+sound"
    assert set(switch.routes.values()) == {each.graph for each in learned.modal["views"].subsets}


def test_input_is_untouched_and_weights_are_shared() -> None:
    before = str(views.program())
    made = dropped()
    assert str(views.program()) == before
    own = dict(views.program().graph("views", FxGraph).module.named_parameters())
    for name in WHOLE:
        for weight, value in made.graph(f"views.encode.{name}", FxGraph).module.named_parameters():
            assert value is own[weight]


def test_no_match_returns_the_same_program() -> None:
    lowered = Pipeline((Lower(),)).run(views.program())
    assert DropModality(modalities=views.MODALITIES).apply(lowered) is lowered


def test_a_stand_in_goes_where_its_shape_is() -> None:
    """Layers that read one modality's features only are run on what stands for them, too."""

    class Votes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(4, 5)})
            self.vote = nn.ModuleDict({"a": nn.Linear(5, 2), "b": nn.Linear(5, 2)})
            self.missing = nn.ParameterDict({"a": nn.Parameter(torch.ones(5)), "b": nn.Parameter(torch.ones(5))})

        def forward(self, a: torch.Tensor | None = None, b: torch.Tensor | None = None) -> torch.Tensor:
            x = {n: self.missing[n][None] if v is None else self.encode[n](v) for n, v in {"a": a, "b": b}.items()}
            total: torch.Tensor = self.vote["a"](x["a"]) + self.vote["b"](x["b"]) * x["a"].sum(1, keepdim=True)
            return total

    torch.manual_seed(0)
    model = Votes().eval().requires_grad_(False)
    given = {"a": torch.randn(3, 3), "b": torch.randn(3, 4)}
    graph = capture_module(model, given)
    made = DropModality({"a": ("a",), "b": ("b",)}, keep=(("b",),)).apply(Program({"m": graph}, (Run("m"),)))
    features = made.graphs["m.encode.b"].run({"b": given["b"].numpy()})
    assert features["b_features"].shape == (3, 5)
    assert_close(made.graphs["m.fuse.b"].run(features)["logits"], model(b=given["b"]).numpy(), **FLOAT32)  # type: ignore[arg-type]


def refusal(**options: Any) -> str:
    with pytest.raises(PassError) as caught:
        DropModality(**{"modalities": views.MODALITIES, **options}).apply(views.program())
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": {"a": ("x",)}}, "modalities: 1; two or more are right, or there is nothing to leave out"),
        (
            {"modalities": {"a": ("pixels",), "b": ()}},
            "modalities: b: no inputs; names of the model's inputs are right",
        ),
        (
            {"modalities": {"a": ("pixels",), "b": ("smell",)}},
            "modalities: b: no input 'smell'; the model has: pixels, ids, mask, wave",
        ),
        (
            {"modalities": {"a": ("pixels", "wave"), "b": ("wave", "ids", "mask")}},
            "modalities: wave: both of a and of b; one is right",
        ),
        (
            {"modalities": {"a": ("pixels",), "b": ("ids", "mask")}},
            "modalities: wave: an input of none; each input belongs to one modality",
        ),
        ({"keep": (("image", "smell"),)}, "keep: no modality 'smell'; there are: image, text, sound"),
        ({"keep": (("image", "image"),)}, "keep: ['image', 'image']; one or more modalities, each once, are right"),
        ({"stand_in": "mean"}, "data: stand_in: mean needs an .npz file of inputs"),
        ({"data": "x.npz"}, "data: stand_in: learned reads none; stand_in: mean or refit do"),
        ({"model": "lm"}, "no graph 'lm'; this program has: views"),
    ],
)
def test_refuses_what_cannot_be(options: dict[str, Any], message: str) -> None:
    assert refusal(**options) == message


def test_refuses_a_modality_without_a_stand_in() -> None:
    class Bare(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a * 2 + b

    graph = capture_module(Bare(), {"a": torch.zeros(1, 3), "b": torch.zeros(1, 3)})
    program = Program({"m": graph}, (Run("m"),))
    parts: dict[str, tuple[str, ...]] = {"a": ("a",), "b": ("b",)}
    with pytest.raises(PassError) as caught:
        DropModality(parts, keep=(("a",),)).apply(program)
    assert str(caught.value) == ("stand_in: learned needs a parameter missing.b of shape [3], and the model has none")
    with pytest.raises(PassError) as caught:
        DropModality(parts, keep=(("a",),), stand_in="empty").apply(program)
    assert str(caught.value) == "keep: a: b: add cannot do without it; stand_in: learned or mean can"


def test_refuses_data_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert refusal(stand_in="mean", data=str(path)).startswith("data: data.npz cannot be read: ")
    np.savez(path, pixels=np.zeros((2, 1, 6, 6), np.uint8))
    assert refusal(stand_in="mean", data=str(path)) == "data: data.npz has no 'ids'; it has: pixels"
    given: Any = views.feeds(4) | {"labels": np.array([0, 1, 2, 9])}
    np.savez(path, **given)
    assert refusal(stand_in="refit", data=str(path), keep=(("text",),)) == (
        "data: labels from 0 to 9; 0 to 2 are right"
    )


def test_options_come_from_yaml_and_are_checked() -> None:
    spec = parse_spec(
        "version: 1\nmodels: {m: {source: x}}\npasses:\n  - drop_modality:\n"
        "      modalities: {image: [pixels], text: [ids, mask]}\n      keep: [[text], [image, text]]\n"
    )
    [pass_] = build_passes(spec)
    assert isinstance(pass_, DropModality)
    assert pass_.subsets() == (("text",), ("image", "text"))
    with pytest.raises(SpecError, match=r"passes\.0\.drop_modality.keeps: unknown key.*'keep'"):
        parse_spec(
            "version: 1\nmodels: {m: {source: x}}\npasses:\n  - drop_modality:\n"
            "      modalities: {image: [pixels], text: [ids]}\n      keeps: all\n"
        )


def test_language_models_are_left_alone_unless_named() -> None:
    with pytest.raises(PassError, match=r"^modalities: image: no input 'pixels'"):
        DropModality(modalities=views.MODALITIES).apply(tiny.program("llama"))
