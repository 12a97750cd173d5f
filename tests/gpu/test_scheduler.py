"""The scheduler over a GPU: sequences that join, leave, wait and are preempted write what they write alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.scheduler import Limits, Scheduler
from adaptc.runtime.generation.sequence import TokenSequence, sequence_of
from adaptc.runtime.loading import load_decoder
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions

pytestmark = pytest.mark.gpu


def sequences_for(decoder: BatchDecoder, count: int) -> list[TokenSequence]:
    """Prompts and answers of mixed lengths, by all routes; every block runs, since gates ask for all rows at once."""
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        prompt = random.integers(0, decoder.spec.vocab_size, int(random.integers(1, 40)))
        request = Request(max_new_tokens=int(random.integers(1, 30)), priority=int(random.integers(0, 2)))
        route = decoder.routes[index % len(decoder.routes)] if decoder.routes else None
        budget = 1.0 if decoder.takes_budget else None
        made.append(sequence_of(request, prompt.astype(np.int64), decoder.spec, options=RequestOptions(budget, route)))
    return made


def run(scheduler: Scheduler, sequences: list[TokenSequence], apart: int) -> None:
    """Add a sequence every few steps, and step until all have ended."""
    pending = list(sequences)
    for step in range(5000):
        if pending and step % apart == 0:
            scheduler.add([pending.pop(0)])
        scheduler.step()
        if not pending and all(each.ended for each in sequences):
            return
    raise AssertionError("somebody is stuck")


@pytest.mark.parametrize(("name", "batch", "same"), [("gated", 2, 1.0), ("routes", 4, 0.9)])
def test_sequences_that_share_steps_write_what_they_write_alone(
    built: Callable[[str], Bundle], name: str, batch: int, same: float
) -> None:
    """Tokens of the tiny random model with routes may part at near-ties of half precision, see `test_answers`."""
    decoder = load_decoder(built(name), DecoderOptions(batch=batch, chunk=8))
    try:
        alone, together = sequences_for(decoder, 40), sequences_for(decoder, 40)
        for each in alone:
            run(Scheduler(decoder), [each], 1)
        scheduler = Scheduler(decoder, Limits(piece=4, alone=8, kv_tokens=120))
        run(scheduler, together, 3)
    finally:
        decoder.close()
    assert [each.error for each in together] == [None] * 40
    assert scheduler.status.preemptions > 0
    equal = sum(
        one == other for a, b in zip(alone, together, strict=True) for one, other in zip(a.ids, b.ids, strict=True)
    )
    assert equal >= same * sum(len(each.ids) for each in alone) > 0
