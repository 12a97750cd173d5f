"""The self check: a decoder that verifies otherwise than it writes is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.options import NO_OPTIONS
from adaptc.runtime.model.verifier import Verified
from adaptc.runtime.speculation.self_check import CLOSE, SelfCheck, self_check
from adaptc.runtime.speculation.starting import speculation_of
from tests.models.history_lm import decoder_spec
from tests.models.verifying_lm import VerifyingLm

Verify = Callable[[int, Sequence[int]], Verified]


def decoder_of(
    max_tokens: int = 90, other: Callable[[VerifyingDecoder, Verify], Verify] | None = None
) -> VerifyingDecoder:
    """A decoder, whose `verify` is another one made of its own."""
    made: Any = VerifyingLm(decoder_spec(max_tokens=max_tokens)).decoder()
    if other is not None:
        made.verify = other(made, made.verify)
    decoder: VerifyingDecoder = made
    return decoder


def shifted(by: float) -> Callable[[VerifyingDecoder, Verify], Verify]:
    """Logits that differ, and the same cache."""

    def make(_: VerifyingDecoder, verify: Verify) -> Verify:
        def other(slot: int, tokens: Sequence[int]) -> Verified:
            found = verify(slot, tokens)
            found.logits[-1] += np.float32(by)
            return found

        return other

    return make


def spoilt(decoder: VerifyingDecoder, verify: Verify) -> Verify:
    """The same logits, and one other bit in the cache where three tokens are read at once."""

    def other(slot: int, tokens: Sequence[int]) -> Verified:
        found = verify(slot, tokens)
        if len(tokens) == 3:
            cache = next(iter(decoder.kv.arrays.values()))
            place = decoder.length(slot) - 1
            cache[slot, 0, place] = np.nextafter(cache[slot, 0, place], np.float32(1e9))
        return found

    return other


def checked(decoder: VerifyingDecoder) -> SelfCheck:
    return self_check(decoder, decoder)


def test_an_exact_decoder_passes_and_is_timed() -> None:
    ticks = iter(range(10**6))
    decoder = decoder_of()
    found = self_check(decoder, decoder, clock=lambda: float(next(ticks)))
    assert found == SelfCheck(True, 0.0, dict.fromkeys(range(1, 9), 1.0))


def test_logits_that_differ_a_little_are_close() -> None:
    found = checked(decoder_of(other=shifted(CLOSE / 10)))
    assert found.exact
    assert CLOSE / 10 < found.close < CLOSE


@pytest.mark.parametrize("other", [shifted(2 * CLOSE), spoilt])
def test_a_decoder_that_verifies_otherwise_is_refused(other: Callable[[VerifyingDecoder, Verify], Verify]) -> None:
    assert not checked(decoder_of(other=other)).exact
    assert speculation_of(decoder_of(other=other), "auto") is None
    with pytest.raises(RequestError, match=r"^speculate: 'lookup'; this processor rounds .* 'off' is right$"):
        speculation_of(decoder_of(other=other), "lookup")


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8, 9, 31, 32])
def test_a_cache_of_any_size_is_enough(max_tokens: int) -> None:
    found = checked(decoder_of(max_tokens))
    assert found.exact
    assert max(found.seconds) == min(max(max_tokens - 1, 1), 8)
    assert checked(decoder_of(9, other=spoilt)).exact is False


def test_nothing_of_it_is_left() -> None:
    decoder = decoder_of()
    before = decoder.start(0, np.array([1, 2, 3]), NO_OPTIONS).copy()
    checked(decoder)
    np.testing.assert_array_equal(decoder.start(0, np.array([1, 2, 3]), NO_OPTIONS), before)
