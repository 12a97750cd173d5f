"""`adaptc train`: from a spec with `skip_ffn` to the file of gates that it names."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from adaptc import __version__
from adaptc.compiler.cache import Cache, key_of
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.gates_file import Card, save_gates
from adaptc.ir.graph import FxGraph
from adaptc.passes.drop_modality.decoder import text_only
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import calibration_text
from adaptc.sources.find import find_source
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import Spec
from adaptc.training.gates.trainer import Told, Trainer
from adaptc.training.recipe import Recipe
from adaptc.training.sampled_text import sample, sample_by_torch

Stage = Callable[[str], None]
WHOLE = 1 << 40


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training keeps things, and what it runs on.

    Attributes:
        base: Folder that relative paths in the spec start from.
        output: The gates file; None for the one the spec names.
        cache: For the bundle that text is drawn with.
        restart: Begin anew, whatever is there.
        device: "cpu" or "cuda".
    """

    base: Path
    output: Path | None
    cache: Cache
    restart: bool
    device: str


def train_spec(spec: Spec, recipe: Recipe, sampled: int, place: Place, stage: Stage, told: Told) -> tuple[Path, Card]:
    """Train the gates of a spec's `skip_ffn`.

    Args:
        spec: Of one model, with `skip_ffn: {policy: learned, gates: FILE}`.
        recipe: How.
        sampled: Tokens to draw from the model itself, besides the whole calibration text; 0 for none.
        place: Where.
        stage: Told of each stage as it begins.
        told: Told of each step.

    Returns:
        The file that was written, and its card.

    Raises:
        SpecError: no such pass, or more models than one.
        AdaptcError: the text is too short, the model cannot be read, a checkpoint is of another run.
    """
    pass_ = _pass(spec)
    output = place.output or place.base / str(pass_.gates)
    [(name, model)] = spec.models.items()
    source = find_source(model, place.base)
    text = replace(calibration_text(spec.calibration, place.base), tokens=WHOLE)
    program = program_from_sources({name: source}, text, stage)
    ids = program.samples[name]
    if sampled:
        ids = np.concatenate([ids, _drawn(spec, source, recipe, sampled, place, stage)])
    # Every kind of text shall be among what is held out, and among the tokens of the start.
    rows = ids[: len(ids) // recipe.window * recipe.window].reshape(-1, recipe.window)
    ids = np.random.default_rng(recipe.seed).permutation(rows).reshape(-1)
    trainer = Trainer(
        text_only(program.graph(name, FxGraph)),
        ids,
        recipe,
        layers=None if pass_.layers == "auto" else pass_.layers,
        rank=pass_.rank,
        warmup=pass_.warmup,
        device=place.device,
    )
    checkpoint = output.with_suffix(".checkpoint")
    output.parent.mkdir(parents=True, exist_ok=True)
    if place.restart or not trainer.load(checkpoint):
        trainer.start(stage)
    stage(f"train, {recipe.steps} steps")
    trainer.run(told, checkpoint)
    libraries = {each: importlib.metadata.version(each) for each in ("torch", "transformers")}
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "text": text.name,
        "sampled_tokens": sampled,
        "versions": {"adaptc": __version__, **libraries},
    }
    card = trainer.card(source.origin, source.sha256(), about, stage)
    save_gates(card, dict(trainer.weights), output)
    checkpoint.unlink(missing_ok=True)
    return output, card


def device_of(name: str) -> str:
    """The device of this name, which must be there.

    Raises:
        SpecError: it is not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch finds no GPU here; --device cpu is right")
    return name


def _pass(spec: Spec) -> SkipFfn:
    found = [each for each in build_passes(spec) if isinstance(each, SkipFfn) and each.policy == "learned"]
    if len(found) != 1 or found[0].gates is None:
        raise SpecError("passes: nothing to train; 'skip_ffn: {policy: learned, gates: FILE}' is right")
    if len(spec.models) != 1:
        raise SpecError(f"models: {', '.join(spec.models)}; gates are trained for one model at a time")
    return found[0]


def _drawn(
    spec: Spec, source: Source, recipe: Recipe, tokens: int, place: Place, stage: Stage
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Text drawn from the model as it was before any pass; kept in the cache."""
    text = calibration_text(spec.calibration, place.base)
    given = replace(text, tokens=WHOLE).ids(source)
    sha256 = source.sha256()
    options = {"window": recipe.window, "seed": recipe.seed}

    def make(path: Path) -> None:
        if place.device != "cpu":
            drawn = sample_by_torch(source, given, tokens, **options, device=place.device)
        else:
            dense = spec.model_copy(update={"passes": ()})
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                into = Path(scratch) / "dense"
                compile_spec(dense, place.base, into, place.cache, stage)
                stage(f"draw {tokens} tokens")
                drawn = sample(into, given, tokens, **options, told=lambda _: None)
        with path.open("wb") as file:
            np.save(file, drawn, allow_pickle=False)

    stage(f"draw {tokens} tokens")
    key = key_of("drawn", 1, sha256, text.sha256, tokens, options, place.device)
    found: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.load(place.cache.get("drawn", key, make))
    return found
