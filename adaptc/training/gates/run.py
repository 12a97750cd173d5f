"""`adaptc train`: from a spec with `skip_ffn` to the file of gates that it names."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptc.compiler.cache import key_of
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.stages import program_from_sources
from adaptc.errors import SpecError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.stored.gates_file import GatesMetadata, load_gates, save_gates
from adaptc.passes.drop_modality.decoder import text_only
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.runtime.progress import Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText
from adaptc.sources.find import find_source
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import Spec
from adaptc.training.gates.measure import gates_metadata
from adaptc.training.gates.objective import GateObjective, gate_training
from adaptc.training.gates.text import gate_text
from adaptc.training.recipe import Recipe
from adaptc.training.sampled_text import sample, sample_by_torch
from adaptc.training.workspace import Workspace, checkpoint_of, provenance, whole_text


def train_gates(
    spec: Spec,
    recipe: Recipe,
    sampled: int,
    workspace: Workspace,
    progress: Progress,
    *,
    measure_only: bool = False,
) -> tuple[Path, GatesMetadata]:
    """Train the gates of a spec's `skip_ffn`.

    Args:
        spec: Of one model, with `skip_ffn: {policy: learned, gates: FILE}`.
        recipe: The options of the training.
        sampled: Tokens to draw from the model itself, besides the whole calibration text; 0 for none.
        workspace: Where it reads and writes, and what it runs on.
        progress: Told of stages and steps.
        measure_only: Whether to keep the gates that the spec names, and measure them anew on its text.

    Returns:
        The file that was written, and its metadata.

    Raises:
        SpecError: no such pass, or more models than one.
        AdaptcError: the text is too short, the model cannot be read, a checkpoint is of another run.
    """
    pass_ = _pass(spec)
    output = workspace.output_for(str(pass_.gates))
    [(name, model)] = spec.models.items()
    source = find_source(model, workspace.base)
    text = whole_text(spec, workspace.base, workspace.cache, workspace.device, progress)
    program = program_from_sources({name: source}, text, progress).loaded()
    drawn = _drawn(spec, source, text, recipe, sampled, workspace, progress) if sampled else None
    objective = GateObjective(
        text_only(program.graph(name, FxGraph)),
        gate_text(text, source, recipe.window, recipe.seed, drawn, whole=measure_only),
        recipe,
        layers=None if pass_.layers == "auto" else pass_.layers,
        rank=pass_.rank,
        warmup=pass_.warmup,
        device=workspace.device,
    )
    about = {"sampled_tokens": sampled, **provenance(text)}
    if measure_only:
        given = workspace.base / str(pass_.gates)
        return output, _measured_anew(given, objective, source, about, output, progress)
    training, checkpoint = gate_training(objective), checkpoint_of(output)
    training.start_or_resume(checkpoint, progress, restart=workspace.restart)
    progress.stage("train")
    training.run(progress, checkpoint, seconds=workspace.seconds)
    metadata = gates_metadata(training, source.origin, source.sha256(), about, progress)
    save_gates(metadata, dict(objective.weights()), output)
    if training.step == recipe.steps:
        checkpoint.unlink(missing_ok=True)
    return output, metadata


def _measured_anew(
    given: Path,
    objective: GateObjective,
    source: Source,
    about: dict[str, Any],
    output: Path,
    progress: Progress,
) -> GatesMetadata:
    """Measure the gates of a file on another text; what it says of their training stays."""
    old, weights = load_gates(given)
    if old.sha256 != source.sha256():
        raise SpecError(f"{given}: gates of {old.model}, other weights than {source.origin}; train for this model")
    objective.restore(weights, {"logits": torch.empty(0)})
    new = gates_metadata(gate_training(objective), source.origin, old.sha256, about, progress)
    measured = {name: new.training[name] for name in ("text", "date", "held_out_tokens", "versions")}
    metadata = replace(new, rank=old.rank, training={**old.training, "measured": measured})
    save_gates(metadata, weights, output)
    return metadata


def _pass(spec: Spec) -> SkipFfn:
    passes = [each for each in build_passes(spec) if isinstance(each, SkipFfn) and each.policy == "learned"]
    if len(passes) != 1 or passes[0].gates is None:
        raise SpecError("passes: nothing to train; 'skip_ffn: {policy: learned, gates: FILE}' is right")
    if len(spec.models) != 1:
        raise SpecError(f"models: {', '.join(spec.models)}; gates are trained for one model at a time")
    return passes[0]


def _drawn(
    spec: Spec,
    source: Source,
    text: CalibrationText,
    recipe: Recipe,
    tokens: int,
    workspace: Workspace,
    progress: Progress,
) -> npt.NDArray[np.int64]:
    """Return text drawn from the model as it was before any pass; it is kept in the cache."""
    start = text.ids(source)
    sha256 = source.sha256()
    options = {"window": recipe.window, "seed": recipe.seed}

    def make(path: Path) -> None:
        if workspace.device != "cpu":
            drawn = sample_by_torch(source, start, tokens, **options, device=workspace.device, progress=progress)
        else:
            dense = spec.model_copy(update={"passes": ()})
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                into = Path(scratch) / "dense"
                compile_spec(dense, workspace.base, into, workspace.cache, progress, text=text)
                progress.stage(f"draw {tokens} tokens")
                drawn = sample(into, start, tokens, **options, progress=progress)
        with path.open("wb") as file:
            np.save(file, drawn, allow_pickle=False)

    progress.stage(f"draw {tokens} tokens")
    key = key_of("drawn", 1, sha256, text.sha256, tokens, options, workspace.device)
    ids: npt.NDArray[np.int64] = workspace.cache.use("drawn", key, make, np.load)
    return ids
