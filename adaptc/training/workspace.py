"""Where a training reads and writes, what it runs on, and what its files say of their origin."""

from __future__ import annotations

import importlib.metadata
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptc import __version__
from adaptc.compiler.cache import Cache
from adaptc.errors import SpecError
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText, WrittenChats
from adaptc.sources.chats import Chat, pack, rows_of
from adaptc.spec.schema import Spec
from adaptc.training.text import TrainingText
from adaptc.writing.calibration import calibration_of
from adaptc.writing.run import Device

WHOLE = 1 << 40
"""More tokens than a calibration text has."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a training keeps things, and what it runs on.

    Attributes:
        base: Folder that relative paths in the spec start from.
        output: File to write; None for the one that the spec names.
        cache: Cache for the bundle that text is drawn with.
        restart: Whether to begin anew, whatever checkpoint is there.
        device: "cpu" or "cuda".
        seconds: Time after which a training stops, to go on when the same command is given again.
    """

    base: Path
    output: Path | None
    cache: Cache
    restart: bool
    device: str
    seconds: float = math.inf

    def output_for(self, name: str) -> Path:
        """Return the file to write, in a folder that exists; `name` is the one that the spec names."""
        output = self.output or self.base / name
        output.parent.mkdir(parents=True, exist_ok=True)
        return output


def checkpoint_of(output: Path) -> Path:
    """Return the checkpoint beside a file of trained parts."""
    return output.with_suffix(".checkpoint")


def whole_text(spec: Spec, base: Path, cache: Cache, device: str, progress: Progress = SILENT) -> CalibrationText:
    """Return the whole calibration text of a spec, not its first tokens alone.

    Args:
        spec: With the text; where a model of it is to write that, it does.
        base: Folder that relative paths in the spec start from.
        cache: For what is written.
        device: "cpu" or "cuda".
        progress: Told of stages and steps.

    Raises:
        AdaptcError: as `calibration_of`.
    """
    on: Device = "cuda" if device == "cuda" else "cpu"
    return replace(calibration_of(spec, base, cache, progress, on), tokens=WHOLE)


def training_text(text: CalibrationText, source: Source, window: int, parts: int) -> TrainingText:
    """Return a calibration text as sequences to train on, in an order that is drawn, one of so many held out.

    Of plain text every token counts; of chats those of the answers, and each sequence begins with a chat, as a prompt
    does.

    Args:
        text: The spec's.
        source: The model whose token ids are read; the others have the same.
        window: Tokens of a sequence.
        parts: One of so many sequences is held out.

    Raises:
        SpecError: chats are written in another vocabulary.
        PassError: the text is too short.
    """
    ids, answers, _ = _rows(text, source, window)
    order = _order(len(ids))
    return TrainingText.of_rows(ids[order], answers[order], parts)


def chats_of(
    text: CalibrationText, source: Source, window: int, parts: int
) -> tuple[tuple[Chat, ...], tuple[Chat, ...]]:
    """Return the chats of a calibration text: those that `training_text` gives to train on, and those it holds out.

    Args:
        text: As there; so are the others.
        source: As there.
        window: As there.
        parts: As there.

    Raises:
        SpecError: chats are written in another vocabulary.
    """
    ids, _, placed = _rows(text, source, window)
    place = np.argsort(_order(len(ids)))
    held = [place[row] % parts == 0 for _, row in placed]
    train = tuple(chat for (chat, _), out in zip(placed, held, strict=True) if not out)
    return train, tuple(chat for (chat, _), out in zip(placed, held, strict=True) if out)


def _rows(
    text: CalibrationText, source: Source, window: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], list[tuple[Chat, int]]]:
    """A text as rows of token ids, which of them count, and each chat with its row."""
    rows: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.bool_]] = []
    placed: list[tuple[Chat, int]] = []
    for part in text.parts:
        before = sum(len(each) for each in rows)
        if isinstance(part, WrittenChats):
            ids, answers = pack(part.chats_for(source), window)
            placed += zip(part.chats, (before + rows_of(part.chats, window)).tolist(), strict=True)
        else:
            found = part.ids(source, WHOLE)
            ids = found[: len(found) // window * window].reshape(-1, window)
            answers = np.ones(ids.shape, np.bool_)
        rows.append(ids)
        counts.append(answers)
    return np.concatenate(rows), np.concatenate(counts), placed


def _order(rows: int) -> npt.NDArray[np.int64]:
    """The order in which rows are trained on, drawn, but always the same for as many."""
    return np.random.default_rng(0).permutation(rows)


def provenance(text: CalibrationText) -> dict[str, Any]:
    """Return data and versions, for readers of a file of trained parts."""
    libraries = {each: importlib.metadata.version(each) for each in ("torch", "transformers")}
    return {"date": time.strftime("%Y-%m-%d"), "text": text.name, "versions": {"adaptc": __version__, **libraries}}


def device_of(name: str) -> str:
    """Return the name of a torch device, which must be there.

    Raises:
        SpecError: torch finds no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch finds no GPU here; --device cpu is right")
    return name
