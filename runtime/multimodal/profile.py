"""The profile of a bundle's subsets of modalities: accuracy on labelled data, and seconds on one machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import PROFILE
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Measured accuracy on labelled rows.

    Attributes:
        accuracy: Share of the rows that are processed correctly, 0 to 1.
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
        seconds: Time of a batch for each of the profile's batch sizes, encoders and the subset's own graph together.
    """

    modalities: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityGateLevel(Accuracy):
    """One setting of the modality gate; its accuracy is measured on rows that were held out.

    Attributes:
        price: Accuracy that a second must buy: a row takes the subset with the largest P(correct) - price · seconds.
        shares: Share of rows that goes to each subset of the gate.
    """

    price: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModalityGate:
    """The modality gate: P(correct | subset), from the first subset's features and outputs.

    Attributes:
        subsets: Modalities of each subset it chooses from; the first is run for every row, and its modality's
            features are what the gate reads.
        mean: Mean of its inputs, float[width].
        scale: One over their standard deviation, float[width].
        weights: For each subset, float[width].
        bias: For each subset.
        seconds: Extra time of a row for each subset, besides the first.
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
    levels: tuple[ModalityGateLevel, ...]


@dataclass(frozen=True, slots=True)
class ModalProfile:
    """The measurements of one bundle on one machine.

    Attributes:
        model: The model's name in the bundle.
        cpu: The machine's processor.
        threads: Threads of each engine.
        batches: Batch sizes that were timed, rising from 1.
        rows: Number of labelled rows behind the accuracies.
        subsets: Their measurements, in the bundle's order.
        encoders: Seconds of a batch for each encoder alone, by modality.
        gate: The modality gate, if there is one.
    """

    model: str
    cpu: str
    threads: int
    batches: tuple[int, ...]
    rows: int
    subsets: tuple[SubsetProfile, ...]
    encoders: dict[str, tuple[float, ...]]
    gate: ModalityGate | None

    def to_json(self) -> str:
        """The text of `profile.json`."""
        return dumps(self)

    def subset(self, modalities: tuple[str, ...]) -> SubsetProfile:
        """The measurements of a subset."""
        return next(each for each in self.subsets if each.modalities == modalities)


def read_profile(bundle: Bundle) -> ModalProfile | None:
    """A bundle's profile; None if it was never profiled.

    Raises:
        BundleError: it is damaged.
    """
    if not bundle.has(PROFILE):
        return None
    content = bundle.read(PROFILE)
    try:
        return loads(ModalProfile, content)
    except BundleError as error:
        raise BundleError(f"{bundle.path / PROFILE}: {error}; `adaptc profile` writes it anew") from error


def wilson(right: float, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share, of which `right` of `rows` were seen (Wilson 1927)."""
    if not rows:
        return 0.0, 1.0
    share, spread = right / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
