"""How well a bundle foretells answers of held-out chats, by route and budget, and how far it is from another bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.evaluation.figures import Figure, mean_over
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import load_decoder, tokenizer_of
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Logits
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.runtime.text.templates import Message
from adaptc.sources.chats import Chat

_AT_ONCE = 64  # positions whose logits are in memory: 39 MB of a vocabulary of 152,000


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """What was measured over the answer tokens of chats; intervals take chats, not tokens, as independent.

    Attributes:
        nll: Negative log-likelihood of a token of an answer, in nats.
        kl: KL of the next token, reference against bundle, at the same places, in nats; None without a reference.
        tokens: Tokens of answers.
        ffn_skipped: Share of gated blocks that did not run, 0 to 1.
    """

    nll: Figure
    kl: Figure | None
    tokens: int
    ffn_skipped: float


def answer_losses(
    bundle: Bundle,
    chats: Sequence[Chat],
    ways: Sequence[RequestOptions],
    reference: Bundle | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> list[AnswerLoss]:
    """Measure answers of chats; under a budget below 1 they go token by token, as if they were being written.

    Args:
        bundle: With a tokenizer that reads the chats as they were written.
        chats: Cut to what the bundle holds.
        ways: Routes and budgets.
        reference: A bundle with the same vocabulary, run dense by its default route.
        threads: Threads of each engine.
        progress: Told of each chat that is done.

    Raises:
        RequestError: there are no answers, or the chats are another tokenizer's.
    """
    check_tokenizer(bundle, chats)
    decoder = load_decoder(bundle, DecoderOptions(threads=threads))
    other = None if reference is None else load_decoder(reference, DecoderOptions(threads=threads))
    if other is not None and other.spec.vocab_size != decoder.spec.vocab_size:
        raise RequestError(
            f"reference: {other.spec.vocab_size} tokens in its vocabulary, not {decoder.spec.vocab_size}"
        )
    held = min(each.spec.max_tokens for each in (decoder, other) if each is not None)
    rows: list[list[_Row]] = [[] for _ in ways]
    for chat in counted(chats, progress):
        ids = np.array(chat.ids[:held], np.int64)
        places = _places(chat, len(ids))
        if len(places):
            expected = None if other is None else _log_probabilities(other, ids, places, NO_OPTIONS)
            for found, way in zip(rows, ways, strict=True):
                found.append(_row(decoder, ids, places, way, expected))
    decoder.close()
    if other is not None:
        other.close()
    if not rows or not rows[0]:
        raise RequestError("chats: no answer within what the bundle holds; adaptc write-data writes some")
    return [_loss(each) for each in rows]


@dataclass(frozen=True, slots=True)
class _Row:
    """Sums over one chat's answers."""

    tokens: int
    nll: float
    kl: float | None
    ran: tuple[bytes, ...]
    share: float


def check_tokenizer(bundle: Bundle, chats: Sequence[Chat]) -> None:
    """Refuse chats whose ids a bundle's tokenizer does not give: the ids up to the first answer are compared.

    Raises:
        RequestError: they are another tokenizer's, or the bundle has none.
    """
    tokenizer = tokenizer_of(bundle)
    if tokenizer is None:
        raise RequestError(f"{bundle.path}: no tokenizer; chats cannot be read")
    for chat in (each for each in chats if each.answers and each.messages):
        before: list[Message] = []
        for message in chat.messages:
            if message["role"] == "assistant":
                break
            before.append({"role": message["role"], "content": message["content"]})
        ids = tokenizer.encode(tokenizer.render(before), special=False)
        if list(chat.ids[: chat.answers[0][0]]) != ids:
            raise RequestError(f"{bundle.path}: its tokenizer or template is another than that of the chats")
        return


def _places(chat: Chat, length: int) -> Ids:
    """Positions of answer tokens that something stands before."""
    return np.array([at for first, end in chat.answers for at in range(max(first, 1), min(end, length))], np.int64)


def _row(
    decoder: BatchDecoder, ids: Ids, places: Ids, way: RequestOptions, expected: npt.NDArray[np.float32] | None
) -> _Row:
    ran: list[bytes] = []
    found = _log_probabilities(decoder, ids, places, way, ran)
    nll = -found[np.arange(len(places)), ids[places]].sum(dtype=np.float64)
    kl = None
    if expected is not None:
        kl = float(sum((np.exp(p.astype(np.float64)) * (p - q)).sum() for p, q in zip(expected, found, strict=True)))
    skips = decoder.skips(ran, decoder.route(0)) if ran else None
    return _Row(len(places), float(nll), kl, tuple(ran), 0.0 if skips is None else skips.share)


def _log_probabilities(
    decoder: BatchDecoder, ids: Ids, places: Ids, way: RequestOptions, ran: list[bytes] | None = None
) -> npt.NDArray[np.float32]:
    """Of all tokens at places: float32 [places, vocab]; `ran` gets which gated blocks ran, token by token."""
    wanted = set((places - 1).tolist())
    kept: list[Logits] = []
    at = 0
    for block in _logits(decoder, ids, way, [] if ran is None else ran):
        rows = [row for row in range(len(block)) if at + row in wanted]
        if rows:
            logits = block[rows].astype(np.float32)
            logits -= logits.max(-1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            kept.append(logits)
        at += len(block)
    return np.concatenate(kept)


def _logits(decoder: BatchDecoder, ids: Ids, way: RequestOptions, ran: list[bytes]) -> Iterator[Logits]:
    if decoder.dense(way):
        yield from decoder.score(ids, _AT_ONCE, way)
        return
    yield decoder.start(0, ids[:1], way)[None]
    for token in ids[1:-1].tolist():
        yield decoder.decode([token])
        if (now := decoder.ran(0)) is not None:
            ran.append(now)


def _loss(rows: Sequence[_Row]) -> AnswerLoss:
    tokens = [each.tokens for each in rows]
    kls = [each.kl for each in rows if each.kl is not None]
    steps = sum(len(each.ran) for each in rows)
    return AnswerLoss(
        mean_over("nll", [each.nll for each in rows], tokens),
        mean_over("kl", kls, tokens) if kls else None,
        sum(tokens),
        sum(each.share * len(each.ran) for each in rows) / steps if steps else 0.0,
    )
