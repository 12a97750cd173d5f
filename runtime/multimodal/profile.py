"""What was measured of a bundle's subsets: accuracy on labelled data, and seconds on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.names import PROFILE
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often something is right on labelled rows.

    Attributes:
        accuracy: Share of the rows it gets right.
        low: Lower end of the 95 % interval of `accuracy` (Wilson).
        high: Upper end.
    """

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetProfile(Accuracy):
    """One subset of modalities.

    Attributes:
        modalities: Their names.
        seconds: Of a batch, for each of the profile's batch sizes; encoders and the subset's own graph.
    """

    modalities: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLevel(Accuracy):
    """One setting of the gate; its accuracy is of rows that were held out.

    Attributes:
        price: Accuracy that a second must buy: a row takes the subset with the largest P(correct) - price · seconds.
        shares: Share of rows that each subset of the gate gets.
    """

    price: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GateProfile:
    """P(correct | subset), from the first subset's features and answer.

    Attributes:
        subsets: Modalities of each subset it chooses from; the first is run for every row, and its modality's
            features are what the gate reads.
        mean: Of what it reads, float[width].
        scale: One over its spread, float[width].
        weights: For each subset, float[width].
        bias: For each subset.
        seconds: Of a row, for each subset: what it costs beside the first.
        error: Calibration error on held-out rows: mean |P - share right| over five equal parts.
        rows: How many rows were held out.
        levels: From the cheapest to the most accurate.
    """

    subsets: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    seconds: tuple[float, ...]
    error: float
    rows: int
    levels: tuple[GateLevel, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was measured.

    Attributes:
        model: The model's name in the bundle.
        cpu: The machine's processor.
        threads: Of each engine.
        batches: Batch sizes that were timed, rising from 1.
        rows: Labelled rows that accuracies are of.
        subsets: In the bundle's order.
        encoders: Seconds of a batch of each encoder alone, by modality.
        gate: The learned gate, if there is one.
    """

    model: str
    cpu: str
    threads: int
    batches: tuple[int, ...]
    rows: int
    subsets: tuple[SubsetProfile, ...]
    encoders: dict[str, tuple[float, ...]]
    gate: GateProfile | None

    def to_json(self) -> str:
        """The text of `profile.json`."""
        return dumps(self)

    def subset(self, modalities: tuple[str, ...]) -> SubsetProfile:
        """What was measured of a subset."""
        return next(each for each in self.subsets if each.modalities == modalities)


def read_profile(folder: Path) -> Profile | None:
    """A bundle's profile; None if it was never profiled.

    Raises:
        BundleError: it is damaged.
    """
    path = folder / PROFILE
    if not path.exists():
        return None
    try:
        return loads(Profile, path.read_bytes())
    except BundleError as error:
        raise BundleError(f"{path}: {error}; `adaptc profile` writes it anew") from error


def wilson(right: float, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share, of which `right` of `rows` were seen (Wilson 1927)."""
    if not rows:
        return 0.0, 1.0
    share, spread = right / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
