"""The calibration text of a spec, where a model of it writes that: `calibration: {text: self}`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from adaptc.compiler.cache import Cache, key_of
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.calibration_text import SELF, CalibrationText, calibration_text, names_of
from adaptc.spec.schema import CalibrationSpec, Spec
from adaptc.writing.exclusion import excluded
from adaptc.writing.recipe import WritingRecipe
from adaptc.writing.run import Device, WritingLimits, WritingPlace, model_to_write, write_data

RECIPE = WritingRecipe(window=512, most=256)
"""Shorter chats than those to train on: a CPU writes some thousand tokens of them in minutes."""

_FORM = 1
"""Of what is written: another one where seeds or filters have changed so much that chats must be written anew."""


def calibration_of(
    spec: Spec, base: Path, cache: Cache, progress: Progress = SILENT, device: Device = "cpu"
) -> CalibrationText:
    """Read a spec's calibration text; what a model writes for it is kept in the cache.

    Args:
        spec: The largest of its models writes, `calibration.tokens` tokens.
        base: The folder that relative paths in the spec start from.
        cache: For the chats, and for the bundle that writes them.
        progress: Told of stages and steps.
        device: What they are written on, where they are not in the cache.

    Raises:
        AdaptcError: a text cannot be read, or the model cannot write chats.
    """
    asked = spec.calibration
    if asked is None or SELF not in names_of(asked):
        return calibration_text(asked, base)
    name, _, source = model_to_write(spec, base)
    recipe, without = RECIPE, excluded()
    key = key_of("chats", _FORM, source.sha256(progress), asdict(recipe), without, asked.tokens)

    def make(path: Path) -> None:
        place = WritingPlace(base, path, cache, device)
        write_data(spec, recipe, WritingLimits(asked.tokens), place, name=name, without=without, progress=progress)

    def read(path: Path) -> CalibrationText:
        return calibration_text(_with_file(asked, path), base)

    return cache.use("chats", key, make, read).renamed(names_of(asked))


def _with_file(asked: CalibrationSpec, path: Path) -> CalibrationSpec:
    """The texts, with a file in the place of `self`."""
    names = [str(path.resolve()) if name == SELF else name for name in names_of(asked)]
    return asked.model_copy(update={"text": tuple(names)})
