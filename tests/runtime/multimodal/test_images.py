"""Images of a request, on fake encoders: where they go, what is fed when, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.bundle.manifest import GraphSpec, ModalitySpec, ModalSpec, SubsetSpec, TensorSpec
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.model.inserts import ExtraInputs, Inserts, piece_end
from adaptc.runtime.multimodal.grid_images import GridImages, positions, windows
from adaptc.runtime.multimodal.images import GridSpec, Images, ImageSpec, Picture, read_image_spec, uses_images
from adaptc.runtime.multimodal.subsets import ModalGraphs

SPEC = ImageSpec(9, (1, 2), (3,), 1 / 255, (0.5,), (0.25,), None)
TEXT, BOTH = SubsetSpec(("text",), "lm"), SubsetSpec(("image", "text"), "lm")


def modal(*subsets: SubsetSpec) -> ModalSpec:
    image = ModalitySpec(("pixel_values",), "lm.encode.image", ("image_features",))
    return ModalSpec({"image": image, "text": ModalitySpec(("input_ids",), None, ("input_ids",))}, subsets)


def images(spec: ImageSpec = SPEC) -> Images:
    """An encoder whose features are the sums of an image's rows, or of a place's numbers."""

    def encode(feeds: Arrays, outputs: Arrays) -> None:
        outputs["image_features"][:] = feeds["pixel_values"].sum((1, 3) if spec.grid is None else (1, 2))[..., None]

    shape: tuple[int | str, ...] = ("images", 1, 3, 3) if spec.grid is None else ("cells", 4, 4)
    result: tuple[int | str, ...] = ("images", 3, 1) if spec.grid is None else ("cells", 1)
    inputs: tuple[TensorSpec, ...] = (TensorSpec("pixel_values", "float32", shape),)
    if spec.grid is not None:
        inputs += (TensorSpec("patch_positions", "int64", ("cells", 4, 2)),)
    outputs = (TensorSpec("image_features", "float32", result),)
    graph = GraphSpec("e.onnx", inputs, outputs, (), None)
    graphs = ModalGraphs(modal(TEXT, BOTH), lambda _: FakeEngine(inputs, outputs, encode))
    return (Images if spec.grid is None else GridImages)(spec, "image", graphs, graph)


def test_an_image_token_becomes_a_place_for_each_feature() -> None:
    made, raw = images(), np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1)
    ids, encode = made.insert(np.array([7, 9, 8, 9]), list(raw))
    assert ids.tolist() == [7, 1, 2, 9, 9, 9, 3, 8, 1, 2, 9, 9, 9, 3]
    assert encode is not None
    assert not made.graphs.loaded  # nothing runs before the prompt is read
    found = encode()
    assert found.places.tolist() == [3, 4, 5, 10, 11, 12]
    assert np.allclose(found.values[:, 0], ((raw / 255 - 0.5) / 0.25).sum((2, 3)).reshape(-1), atol=1e-5)
    same, _ = made.insert(ids, list(raw))
    assert same is ids
    assert made.insert(np.array([7, 8]), [])[1] is None
    pixels = np.zeros((1, 2, 1, 3, 3), np.float32)  # as a processor of tiles gives them: of one text, two
    assert len(made.read({"pixel_values": pixels, "pixel_attention_mask": np.ones((1, 2, 3, 3))})) == 2
    with pytest.raises(RequestError, match=r"^images: pixel_attention_mask leaves parts out"):
        made.read({"pixel_values": pixels, "pixel_attention_mask": np.eye(3)})


def test_a_request_uses_what_is_given_and_compiled() -> None:
    made, whole = images(), modal(TEXT, BOTH)
    assert uses_images(whole, made, True, None)
    assert not uses_images(whole, made, False, None)
    assert not uses_images(whole, made, True, ["text"])
    assert not uses_images(None, None, False, None)
    for given, message in (
        ((modal(BOTH), made, False, None), "modalities: text was not compiled; there are: image+text"),
        ((modal(TEXT), None, True, None), "images: this bundle reads text only"),
        ((None, None, True, None), "images: this bundle reads text only"),
        ((None, None, False, ["sound"]), "modalities: no 'sound'; there are: text"),
    ):
        with pytest.raises(RequestError) as caught:
            uses_images(*given)
        assert str(caught.value) == message


def test_features_go_to_the_part_of_a_prompt_that_is_read() -> None:
    inputs = (
        TensorSpec("image_features", "float32", ("places", 2)),
        TensorSpec("image_places", "int64", ("places",)),
        TensorSpec("position_ids", "int64", (3, "batch", "tokens")),
    )
    beside = ExtraInputs(inputs, 2)
    where = np.array([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]])
    given = Inserts(np.arange(1, 5), np.arange(8, dtype=np.float32).reshape(4, 2), where)
    assert given.shift == -2
    part = beside.read(1, 3, 3, given)
    assert part["image_places"].tolist() == [0, 1]
    assert part["image_features"].tolist() == [[4, 5], [6, 7]]
    assert part["position_ids"].tolist() == where[:, None, 3:].tolist()
    plain = beside.read(0, 2, 2, None)
    assert plain["image_features"].shape == (0, 2)
    assert plain["position_ids"].tolist() == [[[2, 3]]] * 3
    step = beside.step(2)
    beside.advance(np.array([4, 6], np.int32))
    assert step["position_ids"].tolist() == [[[4], [4]]] * 3  # row 1 is two positions behind
    beside.move(1, 0)
    beside.advance(np.array([7, 7], np.int32))
    assert step["position_ids"][0, 0, 0] == 5
    assert ExtraInputs((), 1).read(0, 0, 4, None) == {}


def test_images_of_any_size_are_cut_into_places() -> None:
    made = images(ImageSpec(9, (), (), 1.0, (0.0,), (1.0,), GridSpec(1, 4, 2)))
    raw = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    ids, encode = made.insert(np.array([7, 9, 8]), [raw])
    assert ids.tolist() == [7, *[9] * 6, 8]
    assert encode is not None
    found = encode()
    squares: npt.NDArray[Any] = raw[..., 0].reshape(2, 2, 3, 2).sum((1, 3)).reshape(-1) * 4
    assert found.values[:, 0].tolist() == squares.tolist()
    assert found.positions is not None
    assert found.positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    encode()
    assert made.graphs.ran == {"lm.encode.image": 1}
    with pytest.raises(RequestError) as caught:
        made.insert(np.array([9]), [np.zeros((3, 4, 1), np.uint8)])
    assert str(caught.value) == (
        "images[0]: uint8[3, 4, 1]; a height and a width that 2 divides are needed: uint8[height, width, 1], or "
        "float32[3, height, width] as its processor gives it"
    )
    patches = np.zeros((4, 4), np.float32)
    odd = (
        "images: pixel_values float32[4, 4] and image_grid_thw [[2, 2, 2]]; patches of 4 numbers are needed, as many "
        "as the grids [1, rows, columns] have, by 2 divisible"
    )
    for given, message in (
        ({"pixel_values": patches}, "images: no 'image_grid_thw'; pixel_values and image_grid_thw are needed"),
        (
            {"pixel_values": patches, "image_grid_thw": np.array([[2, 2, 2]])},
            odd,
        ),
    ):
        with pytest.raises(RequestError) as caught:
            made.insert(np.array([9]), given)
        assert str(caught.value) == message


def test_positions_go_on_after_the_longer_side() -> None:
    none = np.zeros(0, np.float32)
    found = positions(np.array([5, 9, 9, 9, 9, 9, 6]), 9, [Picture(none, 2, 1), Picture(none, 3, 3)])
    assert found[0].tolist() == [0, 1, 1, 3, 3, 3, 6]
    assert found[1].tolist() == [0, 1, 1, 3, 4, 5, 6]
    assert found[2].tolist() == [0, 1, 2, 3, 3, 3, 6]


def test_what_a_bundle_says_of_images_is_read_back() -> None:
    whole = ImageSpec(9, (), (), 1.0, (), (), None, whole=True, mark="<a>", written="<a>{}<b>", resample=2)
    for spec in (SPEC, whole, ImageSpec(9, (), (), 1.0, (), (), GridSpec(14, 2, 2, 4, 56, 560))):
        assert read_image_spec(spec.to_json(), "images.json") == spec
    with pytest.raises(BundleError, match=r"^images.json: .*; compile again$"):
        read_image_spec(b"{}", "images.json")


@pytest.mark.parametrize(
    ("rows", "columns", "side", "expected"),
    [
        (1, 1, 2, [[0, -1, -1, -1]]),
        (2, 3, 2, [[0, 1, 3, 4], [2, -1, 5, -1]]),
        (3, 2, 2, [[0, 1, 2, 3], [4, 5, -1, -1]]),
        (2, 2, 1, [[0], [1], [2], [3]]),
    ],
)
def test_windows_lie_side_by_side(rows: int, columns: int, side: int, expected: list[list[int]]) -> None:
    assert windows(rows, columns, side).tolist() == expected


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 2, 2),  # before the image
        (0, 3, 3),  # at its beginning
        (0, 5, 3),  # in it: it is left for the next piece
        (3, 5, 7),  # which begins with it and has it whole
        (2, 5, 7),  # a token alone goes with it
        (3, 7, 7),
        (7, 9, 14),
        (8, 9, 14),  # the token behind the last image goes with it, too
        (3, 14, 14),
    ],
)
def test_a_piece_of_a_prompt_cuts_no_image_that_is_read_whole(start: int, stop: int, expected: int) -> None:
    """Images at 3 to 6 and at 8 to 12, in 14 tokens."""
    places = np.array([3, 4, 5, 6, 8, 9, 10, 11, 12])
    values = np.zeros((9, 1), np.float32)
    assert piece_end(Inserts(places, values, whole=True), start, stop, 14) == expected
    assert piece_end(Inserts(places, values), start, stop, 14) == stop
    assert piece_end(None, start, stop, 14) == stop


def test_images_that_follow_each_other_are_one() -> None:
    """Without a token between them they attend to each other, as in transformers."""
    inserts = Inserts(np.arange(1, 9), np.zeros((8, 1), np.float32), whole=True)
    assert piece_end(inserts, 0, 5, 20) == 9


def test_what_an_older_bundle_says_of_images_is_read() -> None:
    older = b"""{"token": 9, "before": [], "after": [], "scale": 1.0, "mean": [], "std": [],
        "grid": {"patch": 14, "frames": 2, "merge": 2}}"""
    assert read_image_spec(older, "images.json") == ImageSpec(9, (), (), 1.0, (), (), GridSpec(14, 2, 2))


def test_a_mark_in_a_text_becomes_what_the_processor_writes() -> None:
    marked = images(replace(SPEC, mark="<s>", written="\n<s><i><e>\n"))
    assert marked.written("a<s>b<s>") == "a\n<s><i><e>\nb\n<s><i><e>\n"
    assert images().written("a<s>b") == "a<s>b"


@pytest.mark.parametrize("size", [(1, 1), (40, 40), (150, 300), (301, 97), (57, 2000), (1199, 1603)])
def test_sizes_are_those_of_the_processor(size: tuple[int, int]) -> None:
    """transformers' own smart_resize, where it is installed; up to the limit that is ours."""
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for least, most in ((56 * 56, 1280 * 28 * 28), (4 * 28 * 28, 100 * 28 * 28)):
        grid = GridSpec(14, 2, 2, 0, least, most)
        found = images(replace(SPEC, grid=grid)).fitted(*size)
        assert found == processing.smart_resize(*size, 28, least, most)
