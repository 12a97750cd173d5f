"""`verify` of image preprocessing: what a bundle makes of an image's bytes, against transformers' image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.folder import Bundle
from adaptc.sources.folder.source import FolderSource
from adaptc.spec.reading import read_spec
from adaptc.verification.kinds.images import SIZES, VALUES, image_parts
from adaptc.verification.part import Part
from tests.models import vlm

NUMBERS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
ONE_SIZE = {"size": {"shortest_edge": vlm.SIDE}, "crop_size": {"height": vlm.SIDE, "width": vlm.SIDE}, "resample": 3}
ANY_SIZE = {"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 16, "max_pixels": 65536}
TILES = {"size": {"longest_edge": 4 * vlm.SIDE}, "max_image_size": {"longest_edge": vlm.SIDE}}
RIGHT: Mapping[str, Mapping[str, Any]] = {
    "llava": {"image_processor_type": "CLIPImageProcessor", **NUMBERS, **ONE_SIZE},
    "qwen2_vl": {"image_processor_type": "Qwen2VLImageProcessor", **NUMBERS, **ANY_SIZE},
    "qwen2_5_vl": {"image_processor_type": "Qwen2VLImageProcessor", **NUMBERS, **ANY_SIZE},
    "gemma3": {
        "image_processor_type": "Gemma3ImageProcessor",
        "resample": 2,
        **NUMBERS,
        "size": {"height": vlm.SIDE, "width": vlm.SIDE},
    },
    "idefics3": {"image_processor_type": "Idefics3ImageProcessor", **NUMBERS, **TILES},
}


def settle(base: Path, settings: Mapping[str, Any]) -> None:
    """Write what the source's image processor does."""
    (base / "model" / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Bundle]]:
    """A source and its right bundle of each family, by its name."""
    bundles = {}
    for family, settings in RIGHT.items():
        base = tmp_path_factory.mktemp(family)
        vlm.write(base, family, num_hidden_layers=1)
        settle(base, settings)
        spec = read_spec(base / "model.yaml")
        bundles[family] = base, compile_spec(spec, base, base / "bundle", Cache(base / "cache")).bundle
    return bundles


def parts(base: Path, bundle: Bundle, settings: Mapping[str, Any]) -> dict[str, Part]:
    """What `verify` says of images if the source's processor were another."""
    settle(base, settings)
    return {part.name: part for part in image_parts(bundle, FolderSource(base / "model", "model", "folder"))}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3"])
def test_a_right_bundle_reads_images_as_the_processor_does(made: dict[str, tuple[Path, Bundle]], family: str) -> None:
    found = parts(*made[family], RIGHT[family])
    assert {name: (part.verdict, part.why) for name, part in found.items()} == {
        VALUES: ("passed", ()),
        SIZES: ("passed", ()),
    }
    assert found[VALUES].reference.startswith("AutoImageProcessor of transformers ")
    assert found[VALUES].figures["images"] >= 6
    assert found[VALUES].figures["refused"] >= 7, "other sizes and modes than the bundle takes"
    assert found[VALUES].figures["largest_error"] < 1e-5
    assert found[SIZES].figures["resized"] == 0


@pytest.mark.parametrize("family", RIGHT)
@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": [0.3, 0.4, 0.5]},
        {"image_std": [0.2, 0.3, 0.41]},
        {"rescale_factor": 1 / 127.5},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=str,
)
def test_other_numbers_fail(made: dict[str, tuple[Path, Bundle]], family: str, change: dict[str, Any]) -> None:
    part = parts(*made[family], {**RIGHT[family], **change})[VALUES]
    assert part.verdict == "failed"
    assert "is off by" in part.why[0]


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llava", {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}),
        ("llava", {"size": {"shortest_edge": 12}}),
        ("qwen2_vl", {"min_pixels": 65536}),
    ],
)
def test_another_size_fails(made: dict[str, tuple[Path, Bundle]], family: str, change: dict[str, Any]) -> None:
    found = parts(*made[family], {**RIGHT[family], **change})
    assert found[VALUES].verdict == "passed", found[VALUES]
    assert found[SIZES].verdict == "failed"
    assert "the source's processor makes other pixels of it" in found[SIZES].why[0]


@pytest.mark.parametrize("change", [{"patch_size": 4}, {"merge_size": 1}, {"temporal_patch_size": 1}], ids=str)
def test_other_patches_fail(made: dict[str, tuple[Path, Bundle]], change: dict[str, int]) -> None:
    assert parts(*made["qwen2_vl"], {**RIGHT["qwen2_vl"], **change})[VALUES].verdict == "failed"


def test_how_a_resized_image_is_drawn_changes_nothing_as_the_bundle_resizes_none(
    made: dict[str, tuple[Path, Bundle]],
) -> None:
    found = parts(*made["llava"], {**RIGHT["llava"], "resample": 0})
    assert {part.verdict for part in found.values()} == {"passed"}


def test_tiles_are_said_to_be_uncompared(made: dict[str, tuple[Path, Bundle]]) -> None:
    found = parts(*made["idefics3"], RIGHT["idefics3"])
    assert found[VALUES].verdict == "passed", found[VALUES]
    assert found[SIZES].verdict == "not compared"
    assert found[SIZES].why == ("the source's processor cuts images into tiles, the bundle takes one",)


def test_a_processor_that_transformers_lacks_is_said(made: dict[str, tuple[Path, Bundle]]) -> None:
    [part] = parts(*made["llava"], {**RIGHT["llava"], "image_processor_type": "NoSuchImageProcessor"}).values()
    assert (part.name, part.verdict) == (VALUES, "not compared")
    assert "transformers reads no image processor here" in part.why[0]


def test_a_model_of_text_has_no_such_part(made: dict[str, tuple[Path, Bundle]], tmp_path: Path) -> None:
    vlm.write(tmp_path, "llava", keep="[[text]]", num_hidden_layers=1)
    bundle = compile_spec(
        read_spec(tmp_path / "model.yaml"), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache")
    ).bundle
    assert parts(tmp_path, bundle, RIGHT["llava"]) == {}
