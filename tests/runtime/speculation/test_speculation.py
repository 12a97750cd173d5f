"""How many tokens of a draft are verified, and when none are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.model.verifier import Verified
from adaptc.runtime.speculation.drafter import NOTHING, Draft, Drafter
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.speculation import Drafted, Proposal, Speculation
from adaptc.runtime.speculation.step_costs import StepCosts

FLAT = {1: 1.0, **dict.fromkeys(range(2, 9), 1.1)}
"""A verification of any size takes hardly longer than a step."""


@dataclass(eq=False)
class Text:
    """A sequence for which tokens may be drafted."""

    speculate: str = "auto"
    left: int = 100
    caught_up: bool = True
    slot: int = 0
    options: RequestOptions = NO_OPTIONS

    def all_ids(self) -> Sequence[int]:
        return [1, 2, 3]


@dataclass
class Decoder:
    """What a `Speculation` asks of a `Verifier`."""

    most: int = 8
    capacity: int = 1000
    lengths: dict[int, int] = field(default_factory=dict)

    def verifiable(self, options: RequestOptions) -> int:
        return self.most

    def length(self, slot: int) -> int:
        return self.lengths.get(slot, 3)

    def verify(self, slot: int, tokens: Sequence[int]) -> Verified:
        raise NotImplementedError

    def read_token(self, slot: int, token: int, options: RequestOptions | None = None) -> object:
        raise NotImplementedError

    def rewind(self, slot: int, tokens: int) -> None:
        raise NotImplementedError

    def digest(self, slot: int, first: int) -> bytes:
        raise NotImplementedError


@dataclass
class Fixed:
    """A drafter of so many tokens, each as sure."""

    sure: tuple[float, ...]
    asked: list[int] = field(default_factory=list)
    closed: int = 0
    fails: bool = False

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook | None = None) -> Draft:
        if self.fails:
            raise EngineError("the drafter's engine failed")
        self.asked.append(most)
        sure = self.sure[:most]
        return Draft(tuple(range(len(sure))), sure) if sure else NOTHING

    def close(self) -> None:
        self.closed += 1


def speculation(*drafters: Fixed, costs: dict[int, float] | None = None, decoder: Decoder | None = None) -> Speculation:
    def made(drafter: Fixed) -> Drafter:
        return drafter

    makers = {f"d{number}": (lambda _, each=each: made(each)) for number, each in enumerate(drafters)}
    return Speculation(decoder or Decoder(), StepCosts(costs or FLAT), makers)  # type: ignore[arg-type]


def lengths(found: list[Proposal] | None) -> list[int] | None:
    return None if found is None else [len(each.tokens) for each in found]


def proposed(each: Speculation, *texts: Text) -> list[int] | None:
    active: list[Drafted] = [*texts]
    return lengths(each.proposals(active))


@pytest.mark.parametrize(
    ("sure", "costs", "expected"),
    [
        ((0.9,) * 7, FLAT, 7),  # each token costs nothing more
        ((0.9,) * 7, {size: float(size) for size in range(1, 9)}, None),  # verifying is no quicker than writing
        ((0.05,) * 7, FLAT, None),  # 1.05 tokens in 1.1 steps
        ((0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9), {size: 1 + 0.2 * (size - 1) for size in range(1, 9)}, 3),
        ((0.9,) * 7, {1: 1.0, 2: 1.2, 3: 1.3, 4: 1.4, 5: 4.0, 6: 4.0, 7: 4.0, 8: 4.0}, 3),  # a dearer graph
        ((0.02,), {1: 1.0, 2: 1.01}, None),  # hardly quicker is not worth it
    ],
)
def test_as_many_tokens_as_are_worth_it(sure: tuple[float, ...], costs: dict[int, float], expected: int | None) -> None:
    assert proposed(speculation(Fixed(sure), costs=costs), Text()) == (None if expected is None else [expected])


def test_no_more_than_may_be_written_or_fit() -> None:
    sure = (1.0,) * 20
    for left, length, most, expected in ((100, 3, 8, 7), (4, 3, 8, 3), (100, 997, 8, 2), (100, 3, 4, 3)):
        decoder = Decoder(most, lengths={0: length})
        assert proposed(speculation(Fixed(sure), decoder=decoder), Text(left=left)) == [expected]
    for left, length, most in ((1, 3, 8), (100, 999, 8), (100, 3, 1), (100, 3, 0)):
        drafter = Fixed(sure)
        assert proposed(speculation(drafter, decoder=Decoder(most, lengths={0: length})), Text(left=left)) is None
        assert drafter.asked == [], "nothing is drafted in vain"


def test_off_and_texts_that_are_put_back_draft_nothing() -> None:
    drafter = Fixed((1.0,) * 7)
    each = speculation(drafter)
    assert proposed(each, Text(speculate="off")) is None
    assert proposed(each, Text(caught_up=False)) is None
    assert drafter.asked == []


def test_the_first_of_several_drafters_that_has_something_worth_its_time() -> None:
    nothing, unsure, good = Fixed(()), Fixed((0.01,)), Fixed((0.9,) * 3)
    each = speculation(nothing, unsure, good)
    found = each.proposals([Text()])
    assert found == [Proposal("d2", (0, 1, 2))]
    assert each.proposals([Text(speculate="d1")]) is None
    assert each.drafters == ("d0", "d1", "d2")


def test_a_batch_takes_turns_only_where_that_is_quicker_than_together() -> None:
    texts = [Text(slot=slot) for slot in range(4)]
    each = speculation(Fixed((1.0,) * 7))
    assert proposed(each, *texts) is None, "nobody knows what they take together"
    each.costs.note_plain(4, 1.2)  # 4 tokens in 1.2, or 32 in 4.4
    assert proposed(each, *texts) == [7] * 4
    few = speculation(Fixed((1.0,)))
    few.costs.note_plain(4, 1.2)  # or 8 in 4.4
    assert proposed(few, *texts) is None
    alone = [Text(slot=slot, speculate="auto" if slot == 2 else "off") for slot in range(4)]
    each.costs.note_plain(4, 1.2)
    assert proposed(each, *alone) is None, "11 in 4.1"
    for _ in range(100):
        each.costs.note_plain(4, 3.9)
    assert proposed(each, *alone) == [0, 0, 7, 0]


def test_what_a_sequence_held_is_freed_when_it_is_gone() -> None:
    drafter = Fixed((1.0,))
    each = speculation(drafter)
    one, two = Text(), Text()
    each.proposals([one])
    each.proposals([two])
    assert drafter.closed == 1
    each.clear()
    assert drafter.closed == 2


def test_a_drafter_that_fails_leaves_its_sequence_to_plain_steps() -> None:
    drafter, text = Fixed((1.0,), fails=True), Text()
    each = speculation(drafter)
    assert proposed(each, text) is None
    assert (text.speculate, drafter.closed) == ("off", 1)
