"""What a search for stitches measured, and how each stitch lies to the line between the models that it joins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from adaptc.training.stitches.candidates import StitchPlace


@dataclass(frozen=True, slots=True)
class Donor:
    """One of the two models by itself.

    Attributes:
        name: Name of the model.
        bytes: Bytes of weights read for a token.
        ms: Milliseconds of a decode step of one sequence.
        log_perplexity: Log-perplexity of the measured text, nats a token.
        kl: KL(teacher || it), nats a token.
    """

    name: str
    bytes: float
    ms: float
    log_perplexity: float
    kl: float


@dataclass(frozen=True, slots=True)
class MeasuredStitch:
    """A stitch that was measured.

    Attributes:
        place: Where it is.
        bytes: Bytes of weights read for a token, the stitch's own included.
        ms: Milliseconds of a decode step of one sequence.
        log_perplexity: Log-perplexity of the measured text, nats a token; of chats, of their answers.
        kl: KL(teacher || it), nats a token, likewise.
    """

    place: StitchPlace
    bytes: float
    ms: float
    log_perplexity: float
    kl: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The measured stitches of a search, and the models they join.

    Attributes:
        stitches: Measured stitches, the closest to the teacher first.
        donors: The models.
        enumerated: Number of stitches that there are.
        dearer: Number of stitches that read as much as the dearer donor, or more; these are not measured.
        read: What was measured on: "text", or "answers" of chats.
    """

    stitches: tuple[MeasuredStitch, ...]
    donors: tuple[Donor, ...]
    enumerated: int
    dearer: int
    read: str

    @property
    def most_bytes(self) -> float:
        """Bytes of weights that the dearer donor reads for a token."""
        return max(donor.bytes for donor in self.donors)

    def above(self, stitch: MeasuredStitch) -> float:
        """Return a stitch's KL minus that of the line between the donors at its cost; below 0 is good."""
        (x0, y0), (x1, y1) = sorted((donor.bytes, donor.kl) for donor in self.donors)
        line = y0 + (y1 - y0) * (stitch.bytes - x0) / (x1 - x0) if x1 > x0 else min(y0, y1)
        return stitch.kl - line

    def record(self) -> dict[str, Any]:
        """Return the result as plain values."""
        stitches = [asdict(each) | {"above_line": self.above(each)} for each in self.stitches]
        return {**asdict(self), "stitches": stitches}
