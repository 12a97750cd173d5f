from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from adaptc.bench.figures import DISTURBED
from adaptc.bench.speculation.figures import TIMED, Difference, differences, figures_by_kind, ratio_of, spread
from adaptc.bench.speculation.prompts import Prompt
from adaptc.bench.speculation.turns import TimedAnswer, Write, WrittenTokens, answer_in_turns
from adaptc.machine.disturbance import Clock
from tests.fakes.progress import Told

PROMPTS = [Prompt(kind, (), (place,)) for place, kind in enumerate(("edit", "edit", "free"))]
TEXT = tuple(range(9))


def answer(prompt: int, way: str, seconds: float = 1.0, turn: int = 0, **options: object) -> TimedAnswer:
    told = {"ids": TEXT, "drafted": 0, "accepted": 0} | options
    others = told.pop("others", 0.0)
    kind = PROMPTS[prompt].kind
    return TimedAnswer(prompt, kind, turn, way, WrittenTokens(seconds=seconds, **told), others)  # type: ignore[arg-type]


def test_ways_take_turns_and_each_prompt_begins_with_another() -> None:
    asked: list[tuple[str, int, int]] = []

    def way(name: str) -> Write:
        def write(prompt: Sequence[int], new_tokens: int) -> WrittenTokens:
            asked.append((name, prompt[0], new_tokens))
            return WrittenTokens((len(asked),), 0.5)

        return write

    told = Told()
    ways = {name: way(name) for name in ("off", "lookup")}
    answers = answer_in_turns(ways, PROMPTS, 20, 2, told)
    assert asked[:2] == [("off", 0, 8), ("lookup", 0, 8)]  # warm up, which does not count
    order = [(name, prompt) for name, prompt, _ in asked[2:]]
    first = [("off", 0), ("lookup", 0), ("lookup", 1), ("off", 1), ("off", 2), ("lookup", 2)]
    assert order[:6] == first
    assert order[6:8] == [("lookup", 0), ("off", 0)]
    assert {new for *_, new in asked[2:]} == {20}
    assert [(each.way, each.prompt) for each in answers] == order
    assert [each.written.ids[0] for each in answers] == list(range(3, 15))
    assert (answers[0].kind, answers[-1].kind, answers[0].turn, answers[-1].turn) == ("edit", "free", 0, 1)
    assert told.steps_of("answers")[-1] == (12, 12)


def test_work_of_a_server_of_ours_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([Clock(0.0, 0.0, 0.0), Clock(2.0, 0.5, 4.5)] * 2)
    monkeypatch.setattr(Clock, "now", lambda: next(moments))
    ways: dict[str, Write] = {"alone": lambda *_: WrittenTokens((1,), 1.0)}
    ways["served"] = lambda *_: WrittenTokens((1,), 1.0, elsewhere=3.0)
    alone, served = answer_in_turns(ways, PROMPTS[:1], 4, 1)
    assert alone.others == pytest.approx(2.0)
    assert served.others == pytest.approx(0.5)
    assert alone.disturbed
    assert TimedAnswer(0, "a", 0, "b", alone.written, None).disturbed is False


def test_speeds_and_ratios_are_medians_over_prompts() -> None:
    # Eight tokens after the first. Ratios: prompt 0 has 2 and 4 in its turns, prompt 1 has 1.
    answers = [
        answer(0, "off", 1.0),
        answer(0, "lookup", 0.5, drafted=5, accepted=4),
        answer(0, "off", 2.0, 1),
        answer(0, "lookup", 0.5, 1, drafted=5, accepted=4),
        answer(1, "off", 1.0),
        answer(1, "lookup", 1.0),
        answer(2, "off", 1.0),
        answer(2, "lookup", 4.0),
    ]
    found = figures_by_kind(answers, ["off", "lookup"])
    assert list(found) == ["edit", "free", "all"]
    assert list(found["edit"]) == ["off", "lookup"]
    off, lookup = found["edit"].values()
    assert off["tokens_per_second"]["median"] == pytest.approx((6 + 8) / 2)  # prompt 0: the median of 8 and 4
    assert lookup["tokens_per_second"]["median"] == pytest.approx((16 + 8) / 2)
    assert off["ratio"] is None
    assert lookup["ratio"] == pytest.approx({"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 2.5})
    assert lookup["tokens_per_step"] == pytest.approx(24 / 16)  # of the 24 tokens 8 took no step of their own
    assert (lookup["drafted"], lookup["accepted"], lookup["acceptance"]) == (10, 8, 0.8)
    assert (off["tokens_per_step"], off["acceptance"]) == (1.0, None)
    assert found["free"]["lookup"]["ratio"]["median"] == pytest.approx(0.25)
    assert found["all"]["lookup"]["ratio"]["median"] == pytest.approx(1.0)
    assert ratio_of(answers, "lookup", "off") == found["all"]["lookup"]["ratio"]
    assert list(figures_by_kind(answers[:2], ["off", "lookup"])) == ["edit"]
    json.dumps(found, allow_nan=False)


def test_disturbed_answers_are_left_out_with_what_they_are_compared_to() -> None:
    busy = DISTURBED * 2
    answers = [answer(0, "off", 8.0, others=busy), answer(0, "lookup", 1.0), answer(1, "off"), answer(1, "lookup")]
    off, lookup = figures_by_kind(answers, ["off", "lookup"])["edit"].values()
    assert lookup["ratio"]["median"] == pytest.approx(1.0)
    assert (off["disturbed"], lookup["disturbed"], off["timed"], lookup["timed"]) == (1, 0, 1, 1)
    # If all were disturbed, all count.
    off, lookup = figures_by_kind(answers[:2], ["off", "lookup"])["edit"].values()
    assert lookup["ratio"]["median"] == pytest.approx(8.0)
    assert (off["disturbed"], off["timed"]) == (1, 1)


def test_the_time_of_a_few_tokens_does_not_count_but_their_text_does() -> None:
    short = TEXT[: TIMED - 1]
    answers = [answer(0, "off", ids=short), answer(0, "lookup", ids=short[:2])]
    off, lookup = figures_by_kind(answers, ["off", "lookup"])["edit"].values()
    assert off["tokens_per_second"] is lookup["ratio"] is None
    assert (off["equal"], lookup["equal"], lookup["answers"]) == (1, 0, 1)


def test_a_difference_is_found_and_said_where() -> None:
    answers = [
        answer(0, "off"),
        answer(0, "auto"),
        answer(0, "off", turn=1),
        answer(0, "auto", turn=1, ids=(0, 1, 2, 99)),
        answer(1, "lookup", ids=(5,)),  # before the base has answered this prompt
        answer(1, "off", ids=(5,)),
    ]
    assert differences(answers, "off") == [Difference(0, "edit", "auto", 1, 3)]
    assert figures_by_kind(answers, ["off", "auto"])["edit"]["auto"]["equal"] == 1
    # A base that does not repeat itself is a difference too.
    assert differences([answer(0, "off"), answer(0, "off", turn=1, ids=(0, 7))], "off") == [
        Difference(0, "edit", "off", 1, 1)
    ]


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0}
    assert spread([]) is None


def test_speed_and_steps_are_of_the_tokens_after_the_first() -> None:
    written = WrittenTokens(TEXT, 2.0, drafted=6, accepted=5)
    assert written.tokens_per_second == 4.0
    assert written.steps == 3
    assert (WrittenTokens((1,), 0.0).tokens_per_second, WrittenTokens((1,), 0.0).steps) == (0.0, 0)
