"""The text of a training, cut into sequences; some of them are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingText:
    """Token ids to train on, and others to measure on.

    Attributes:
        train: int64 [sequences, window].
        held_out: int64 [sequences, window].
    """

    train: Ids
    held_out: Ids

    @classmethod
    def cut(cls, ids: Ids, window: int, parts: int) -> TrainingText:
        """Cut a text into sequences and hold out the first of so many equal parts.

        Args:
            ids: int64 [tokens].
            window: Tokens of a sequence.
            parts: Number of parts; also the smallest number of sequences.

        Raises:
            PassError: the text is too short.
        """
        rows = len(ids) // window
        if rows < parts:
            raise PassError(
                f"a text of {len(ids)} tokens; at least {parts * window} are needed for training, and some hundred "
                "thousand are right"
            )
        whole = ids[: rows * window].reshape(rows, window)
        return cls(whole[rows // parts :], whole[: rows // parts])

    def draw(self, random: np.random.Generator, rows: int) -> Ids:
        """Draw sequences to train on: int64 [at most `rows`, window]."""
        return self.train[random.choice(len(self.train), min(rows, len(self.train)), replace=False)]

    def first(self, tokens: int) -> Ids:
        """Return the first sequences to train on, of so many tokens together; at least one."""
        return self.train[: max(1, tokens // self.train.shape[1])]

    @property
    def identity(self) -> list[int]:
        """Two numbers that differ for other texts to train on."""
        return [self.train.size, int(self.train.sum()) % (1 << 32)]


def batches(ids: Ids, rows: int) -> Iterator[Ids]:
    """Yield sequences in batches of so many rows."""
    yield from (ids[at : at + rows] for at in range(0, len(ids), rows))
