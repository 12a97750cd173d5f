"""What gates are trained and measured on: text that is read token by token, and chats whose answers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError
from adaptc.sources.base import Source
from adaptc.sources.calibration_text import CalibrationText, WrittenChats
from adaptc.sources.chats import Chat, pack
from adaptc.training.text import Ids, Mask, TrainingText

HELD_OUT = 8
"""One sequence of so many is held out, and one chat of so many."""


@dataclass(frozen=True, slots=True, eq=False)
class CountedRows:
    """Some sequences of one kind of text.

    Attributes:
        ids: int64 [sequences, tokens].
        counts: bool of the same shape: tokens that a step reads alone, so that its gates decide. Of a plain text all,
            of a chat those of the answers: prompts are read in pieces, which run every block.
    """

    ids: Ids
    counts: Mask

    def first(self, tokens: int) -> CountedRows:
        """Return the first sequences that together have so many tokens that count, or all; at least one."""
        enough = int(np.searchsorted(self.counts.sum(1).cumsum(), tokens)) + 1
        return CountedRows(self.ids[:enough], self.counts[:enough])


@dataclass(frozen=True, slots=True, eq=False)
class GateText:
    """Sequences to train gates on, and others to measure them on.

    Attributes:
        train: By kind of text, the same number of tokens a sequence.
        scored: Held-out text that is read token by token.
        written: Held-out chats, one in a sequence, whose answers count; None if there are no chats.
    """

    train: tuple[CountedRows, ...]
    scored: CountedRows
    written: CountedRows | None = None

    @classmethod
    def plain(cls, ids: Ids, window: int) -> GateText:
        """Cut a plain text into sequences and hold out an eighth of them.

        Args:
            ids: int64 [tokens].
            window: Tokens of a sequence.

        Raises:
            PassError: the text is too short.
        """
        cut = TrainingText.cut(ids, window, HELD_OUT)
        return cls((CountedRows(cut.train, cut.train_counts),), CountedRows(cut.held_out, cut.held_out_counts))

    def first(self, tokens: int) -> CountedRows:
        """Return sequences to train on with so many tokens that count, of each kind the same share of them."""
        parts = [each.first(tokens // len(self.train)) for each in self.train]
        return CountedRows(
            np.concatenate([each.ids for each in parts]), np.concatenate([each.counts for each in parts])
        )

    def draw(self, random: np.random.Generator, rows: int) -> CountedRows:
        """Draw at most so many sequences to train on, of all kinds alike."""
        sizes = [len(each.ids) for each in self.train]
        weights = np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])
        drawn = random.choice(sum(sizes), min(rows, sum(sizes)), replace=False, p=weights)
        ids, counts = (np.concatenate([getattr(each, name) for each in self.train]) for name in ("ids", "counts"))
        return CountedRows(ids[drawn], counts[drawn])

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return sum(each.ids.size for each in self.train)

    @property
    def identity(self) -> list[int]:
        """Three numbers that differ for other texts to train on."""
        ids = sum(int(each.ids.sum()) for each in self.train)
        return [self.tokens, ids % (1 << 32), sum(int(each.counts.sum()) for each in self.train)]


def gate_text(
    text: CalibrationText,
    source: Source,
    window: int,
    seed: int,
    drawn: Ids | None = None,
    *,
    whole: bool = False,
) -> GateText:
    """Return a calibration text as what gates are trained on.

    Args:
        text: The spec's, its plain texts and its chats.
        source: The model whose token ids are read.
        window: Tokens of a sequence; what is longer of a chat is cut.
        seed: Of the order, so that every kind of a text is among what is held out.
        drawn: int64 [tokens], more plain text; None for none.
        whole: Whether all chats are measured on, as gates that are there were fitted to others. Of plain text the
            eighth that a training with this seed holds out is, in any case.

    Raises:
        SpecError: chats are written in another vocabulary.
        PassError: a text is too short.
    """
    random = np.random.default_rng(seed)
    plain = [part.ids(source, text.tokens) for part in text.parts if not isinstance(part, WrittenChats)]
    plain += [] if drawn is None else [drawn]
    chats: list[Chat] = []
    for part in text.parts:
        if isinstance(part, WrittenChats):
            chats += part.chats_for(source)
    read = GateText.plain(_shuffled(np.concatenate(plain), window, random), window) if plain else None
    if not chats:
        assert read is not None, "a calibration text has a part"
        return read
    written, train = _chat_rows([chats[at] for at in random.permutation(len(chats))], window, whole=whole)
    if read is None:  # the same chats, scored from their beginning to their end
        return GateText((train,), CountedRows(written.ids, _real(written)), written)
    return GateText((*read.train, train), read.scored, written)


def _shuffled(ids: Ids, window: int, random: np.random.Generator) -> Ids:
    """Return a text with its sequences in an order that is drawn; int64 [tokens]."""
    rows = ids[: len(ids) // window * window].reshape(-1, window)
    return random.permutation(rows).reshape(-1) if len(rows) else ids


def _chat_rows(chats: Sequence[Chat], window: int, *, whole: bool) -> tuple[CountedRows, CountedRows]:
    """Hold out an eighth of some chats, or all, one in a sequence, and pack the others; (held out, others)."""
    count = len(chats) // HELD_OUT
    held, others = (chats, chats) if whole else (chats[:count], chats[count:])
    if not held:
        raise PassError(f"{len(chats)} chats; at least {HELD_OUT} are needed for training, and some thousand are right")
    alone = [pack([each], window) for each in held]
    train = pack(others, window)
    ids, counts = (np.concatenate([each[part] for each in alone]) for part in (0, 1))
    return CountedRows(ids, counts), CountedRows(*train)


def _real(rows: CountedRows) -> npt.NDArray[np.bool_]:
    """Return which tokens are not padding, as far as answers tell: those up to the last one of an answer."""
    reversed_counts = rows.counts[:, ::-1]
    return np.logical_or.accumulate(reversed_counts, axis=1)[:, ::-1]
