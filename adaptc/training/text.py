"""The text of a training, cut into sequences; some of them are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingText:
    """Token ids to train on, and others to measure on.

    Attributes:
        train: int64 [sequences, window].
        held_out: int64 [sequences, window].
        train_counts: Tokens whose prediction is trained, bool of the same shape: of chats those of the answers.
        held_out_counts: Tokens whose prediction is measured; likewise.
    """

    train: Ids
    held_out: Ids
    train_counts: Mask
    held_out_counts: Mask

    @classmethod
    def cut(cls, ids: Ids, window: int, parts: int) -> TrainingText:
        """Cut a text into sequences and hold out the first of so many equal parts; every token counts.

        Args:
            ids: int64 [tokens].
            window: Tokens of a sequence.
            parts: Number of parts; also the smallest number of sequences.

        Raises:
            PassError: the text is too short.
        """
        rows = len(ids) // window
        _check_enough(rows, window, parts, len(ids))
        whole = ids[: rows * window].reshape(rows, window)
        counts = np.ones(whole.shape, np.bool_)
        at = rows // parts
        return cls(whole[at:], whole[:at], counts[at:], counts[:at])

    @classmethod
    def of_rows(cls, rows: Ids, counts: Mask, parts: int) -> TrainingText:
        """Hold out one of so many sequences, all along the text, so that each kind of it is measured too.

        Args:
            rows: int64 [sequences, window].
            counts: Tokens whose prediction counts, bool of the same shape.
            parts: One of so many is held out; also the smallest number of sequences.

        Raises:
            PassError: too few sequences.
        """
        _check_enough(len(rows), rows.shape[1], parts, rows.size)
        held = np.arange(len(rows)) % parts == 0
        return cls(rows[~held], rows[held], counts[~held], counts[held])

    def draw(self, random: np.random.Generator, rows: int) -> tuple[Ids, Mask]:
        """Draw sequences to train on, with the tokens of them that count: int64 and bool [at most `rows`, window]."""
        drawn = random.choice(len(self.train), min(rows, len(self.train)), replace=False)
        return self.train[drawn], self.train_counts[drawn]

    def first(self, tokens: int) -> Ids:
        """Return the first sequences to train on, of so many tokens together; at least one."""
        return self.train[: max(1, tokens // self.train.shape[1])]

    @property
    def identity(self) -> list[int]:
        """Three numbers that differ for other texts to train on."""
        return [self.train.size, int(self.train.sum()) % (1 << 32), int(self.train_counts.sum())]


def _check_enough(rows: int, window: int, parts: int, tokens: int) -> None:
    if rows < parts:
        raise PassError(
            f"a text of {tokens} tokens; at least {parts * window} are needed for training, and some hundred "
            "thousand are right"
        )


def predicts(counts: Mask) -> Mask:
    """Return the positions whose next token counts: bool of the same shape, False at the last of each sequence."""
    following = np.zeros_like(counts)
    following[:, :-1] = counts[:, 1:]
    return following


def batches(ids: Ids, rows: int) -> Iterator[Ids]:
    """Yield sequences in batches of so many rows."""
    yield from (ids[at : at + rows] for at in range(0, len(ids), rows))
