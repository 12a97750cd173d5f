"""The decoding loop: read prompts into free slots, and add a token to every sequence at a time until all have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from time import perf_counter

from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.model.decoder import BatchDecoder, next_tokens


def write(decoder: BatchDecoder, sequences: Iterable[TokenSequence], began: float) -> Iterator[None]:
    """Decode sequences, as many at a time as the decoder has slots; a free slot takes the next prompt.

    Args:
        decoder: Its slots are used from the first one on.
        sequences: They keep what is written.
        began: `perf_counter` when the request was made.

    Yields:
        After every prompt that was read, and after every step.

    Raises:
        EngineError: the engine failed, or computed no finite numbers.
    """
    waiting = deque(sequences)
    active: list[TokenSequence] = []
    while waiting or active:
        while waiting and len(active) < decoder.batch:
            sequence = waiting.popleft()
            started = perf_counter()
            logits = decoder.start(len(active), sequence.prompt, sequence.options)
            sequence.follow_route(decoder, len(active))
            sequence.take(logits)
            sequence.prefill_seconds = perf_counter() - started
            sequence.time_to_first_token_seconds = perf_counter() - began
            sequence.complete_step()
            if sequence.reason is None:
                active.append(sequence)
            yield
        if active:
            _step(decoder, active)
            yield


def _step(decoder: BatchDecoder, active: list[TokenSequence]) -> None:
    """Add one token to each sequence, whose slot is its index; those that end leave `active`."""
    started = perf_counter()
    for slot, sequence in enumerate(active):
        sequence.follow_route(decoder, slot)
    newest = [sequence.ids[-1] for sequence in active]
    tokens = next_tokens(decoder, newest, [sequence.sampler for sequence in active])
    for sequence, token in zip(active, tokens, strict=True):
        sequence.accept(token)
    seconds = perf_counter() - started
    for slot in reversed(range(len(active))):
        sequence = active[slot]
        sequence.decode_seconds += seconds
        if (ran := decoder.ran(slot)) is not None:
            sequence.ran.append(ran)
        sequence.complete_step()
        if sequence.reason is not None:
            # All later slots hold sequences that go on: the last of them takes this slot.
            last = active.pop()
            if last is not sequence:
                active[slot] = last
                decoder.move(len(active), slot)
