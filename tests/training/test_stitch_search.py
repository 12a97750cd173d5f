"""stitch-search: every path, its price, and where it lies; and what check says of models that cannot be stitched."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from adaptc.checks.check import check
from adaptc.errors import SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.stitch.slices import LayeredDecoder
from adaptc.plots.stitches import draw
from adaptc.spec.reading import parse_spec
from adaptc.training.stitches.candidates import Price, StitchPlace, spread, stitches
from adaptc.training.stitches.search_result import Donor, MeasuredStitch, SearchResult
from tests.models import stitched

PRICES = {"large": (Price(100, 1.0), Price(50, 0.5)), "small": (Price(10, 0.2), Price(20, 0.3))}

LAYERS = {"large": 6, "small": 4}


def decoders() -> dict[str, LayeredDecoder]:
    return {name: LayeredDecoder(name, stitched.program().graph(name, FxGraph)) for name in stitched.SHAPES}


def test_every_cut_and_entry_is_priced_by_its_path() -> None:
    found = {each.place: each.price for each in stitches(decoders(), PRICES)}
    into = {StitchPlace("large", cut, "small", entry) for cut in range(1, 7) for entry in range(4)}
    back = {StitchPlace("small", cut, "large", entry) for cut in range(1, 5) for entry in range(6)}
    past = {StitchPlace("large", cut, "large", entry) for cut in range(1, 6) for entry in range(cut + 1, 6)}
    past |= {StitchPlace("small", cut, "small", entry) for cut in range(1, 4) for entry in range(cut + 1, 4)}
    assert set(found) == into | back | past
    weights = decoders()["large"]
    layer = sum(
        parameter.numel()
        for name, parameter in weights.graph.module.named_parameters()
        if ".layers.0." in name and parameter.ndim == 2
    )
    for place in into:
        own = 100 * 48 * 32 / layer
        assert found[place].bytes == pytest.approx(place.cut * 100 + own + (4 - place.entry) * 10 + 20)
        assert found[place].ms == pytest.approx(place.cut * 1.0 + own / 100 + (4 - place.entry) * 0.2 + 0.3)
    left_out = StitchPlace("large", 2, "large", 5)
    assert found[left_out].bytes == pytest.approx(2 * 100 + 100 * 48 * 48 / layer + 100 + 50)


def test_what_is_measured_is_spread_over_cost_and_kinds() -> None:
    every = list(stitches(decoders(), PRICES))
    kept = spread(every, 12, LAYERS)
    assert len(kept) == len({each.place for each in kept}) == 12
    costs = [each.price.bytes for each in kept]
    assert costs == sorted(costs)
    assert {(each.place.first, each.place.second) for each in kept} == set(product(LAYERS, LAYERS))
    assert StitchPlace("small", 2, "large", 3) in {each.place for each in kept}, "of like depth"
    assert spread(every, 999, LAYERS) == sorted(every, key=lambda each: each.price.bytes)


def test_a_place_is_read_as_it_is_written() -> None:
    place = StitchPlace("small", 10, "large", 15)
    assert str(place) == "small:10,large:15"
    assert StitchPlace.parse(str(place)) == place
    with pytest.raises(SpecError, match=r"^small:10; no place|^small:10: no place; FIRST:CUT,SECOND:ENTRY is right"):
        StitchPlace.parse("small:10")


def result() -> SearchResult:
    good, bad = StitchPlace("large", 3, "small", 1), StitchPlace("large", 2, "small", 1)
    return SearchResult(
        (MeasuredStitch(good, 60, 1.0, 2.5, 0.1), MeasuredStitch(bad, 50, 0.9, 2.9, 0.3)),
        (Donor("large", 100, 2.0, 2.0, 0.0), Donor("small", 20, 0.5, 3.0, 0.4)),
        24,
        6,
        "answers",
    )


def test_the_line_between_the_models_tells_good_from_bad() -> None:
    good, bad = result().stitches
    assert result().above(good) == pytest.approx(0.1 - 0.2)
    assert result().above(bad) == pytest.approx(0.3 - 0.25)
    assert result().record()["stitches"][1]["above_line"] == pytest.approx(0.05)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(result(), tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    assert text.startswith("<?xml")
    assert len(text) > 5000


def faults(folder: Path, spec: str) -> list[str]:
    report = check(parse_spec(spec), folder)
    return [each.text for each in report.findings if each.about == "stitch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    stitched.write(folder)
    return folder


def test_check_has_nothing_to_say_of_a_right_spec(folder: Path) -> None:
    assert faults(folder, stitched.SPEC) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[3, 6]}]}",
            "[3, 9]}]}",
            "routes.large: layer_range [3, 9] of large; it has layers 0 to 5, so END is at most 6",
        ),
        (
            "[1, 4]}]}]",
            "[1, 3]}]}]",
            (
                "routes.small: ends at layer 3 of small; a route ends with its model's last layer, 4, "
                "as the head reads that"
            ),
        ),
        ("model: small", "model: middle", "routes.small: no model 'middle'; there are: large, small"),
    ],
)
def test_check_refuses_before_weights_are_read(folder: Path, old: str, new: str, message: str) -> None:
    assert message in faults(folder, stitched.SPEC.replace(old, new))


def test_check_refuses_other_vocabularies(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(folder, tmp_path / "pair")
    there = tmp_path / "pair"
    file = there / "small" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokenizer))
    [fault] = faults(there, stitched.SPEC)
    first = min(a, b)
    assert fault == (
        f"2 tokens have other ids in 'small' than in 'large': {first!r} is {vocabulary[first]}, not "
        f"{vocabulary[max(a, b)]}; models with one vocabulary are right"
    )
    config = json.loads((there / "small" / "config.json").read_text())
    (there / "small" / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    size = config["vocab_size"]
    assert faults(there, stitched.SPEC) == [
        f"'small' has 301 token ids, 'large' {size}; models with one vocabulary are right"
    ]
