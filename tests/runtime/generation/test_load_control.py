"""Load control: budgets follow the load, in replays on a clock that only work moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from adaptc.runtime import LoadTargets, RequestError
from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.generation.load_control import LoadController, StepLoad
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.scheduler import Scheduler
from adaptc.runtime.generation.sequence import TokenSequence, sequence_of
from adaptc.runtime.generation.step_watch import StepWatch
from adaptc.runtime.model.budget import threshold_at
from tests.models.gated_lm import THRESHOLDS, GatedLm, gates
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.sessions import session_of

SLOTS = 8
BUDGETS = np.linspace(1, 0, 21)
LEVELS = np.array([max(threshold_at(THRESHOLDS, budget), -9.0) for budget in BUDGETS])
FIRST, EACH = 0.5, 0.045
CALM = StepLoad(now=0.0, idle=0.0, between=0.01, waiting=0, longest_wait=0.0, ended=0)


class TimedLm:
    """A gated model whose steps take time: 4 ms, and for each row 4 ms with all blocks, a quarter of it at budget 0.

    With 8 rows that is 222 tokens/s dense and 667 at budget 0. A prompt takes 1 ms a token.
    """

    def __init__(self) -> None:
        self.now = 0.0
        lm = GatedLm()
        self.engine, self.spec = lm.engine, lm.spec
        self.engine.function = self._run

    def clock(self) -> float:
        return self.now

    def _run(self, feeds: Arrays, outputs: Arrays) -> None:
        outputs["logits"][...] = np.arange(self.spec.vocab_size)
        outputs["ran"][...] = True
        tokens = feeds["input_ids"].shape[1]
        if tokens > 1:
            self.now += 0.001 * tokens
            return
        budgets = np.interp(feeds["threshold"][:, 0], LEVELS, BUDGETS)
        self.now += 0.004 + float((0.001 + 0.003 * budgets).sum())


@dataclass
class Replayed:
    """What became of the requests of a replay."""

    sequences: list[TokenSequence] = field(default_factory=list)
    ceilings: list[tuple[float, float]] = field(default_factory=list)

    def first(self, share: float) -> float:
        return float(np.quantile([each.time_to_first_token_seconds for each in self.sequences], share))

    def each(self) -> float:
        return float(np.mean([each.decode_seconds / (len(each.ids) - 1) for each in self.sequences]))


def replayed(
    rates: Sequence[tuple[float, float]], targets: LoadTargets | None, floors: Sequence[float] = (0.0,)
) -> Replayed:
    """Replay Poisson arrivals, (requests a second, seconds) one after the other."""
    model, random = TimedLm(), np.random.default_rng(5)
    spec = model.spec
    decoder = HostDecoder(model.engine, spec, SLOTS, 40, gates(0, "rows"))
    control = None if targets is None else LoadController(targets)
    scheduler = Scheduler(decoder, None, StepWatch(control, model.clock))
    times, at = [], 0.0
    for rate, seconds in rates:
        end = at + seconds
        while (at := at + random.exponential(1 / rate)) < end:
            times.append(at)
        at = end
    done = Replayed()
    waiting = list(enumerate(times))
    while waiting or any(not each.ended for each in done.sequences[-200:]):
        if waiting and all(each.ended for each in done.sequences[-200:]):
            model.now = max(model.now, waiting[0][1])
        while waiting and waiting[0][1] <= model.now:
            index, came = waiting.pop(0)
            prompt = random.integers(0, 50, 4)
            request = Request(max_new_tokens=int(random.integers(8, 33)))
            sequence = sequence_of(request, prompt, spec, floor=floors[index % len(floors)])
            scheduler.add([sequence])
            sequence.began = came
            done.sequences.append(sequence)
        scheduler.step()
        done.ceilings.append((model.now, scheduler.status.budget_ceiling))
    return done


CAPACITY = 222 / 20
"""Requests a second that the model answers dense: 20 tokens each."""


def test_beyond_its_dense_capacity_a_session_keeps_its_targets_by_lower_budgets() -> None:
    rates = [(1.5 * CAPACITY, 25.0)]
    dense = replayed(rates, None)
    adaptive = replayed(rates, LoadTargets(time_to_first_token=FIRST, time_per_output_token=EACH))
    assert dense.first(0.5) > 4 * FIRST
    assert adaptive.first(0.95) < FIRST
    assert adaptive.each() < EACH
    assert len(adaptive.sequences) == len(dense.sequences) > 300
    lowered = [each.lowered_to for each in adaptive.sequences if each.lowered_to is not None]
    assert len(lowered) > 250
    assert 0.1 < float(np.median(lowered)) < 0.9, "no more than it takes"


def test_budgets_are_whole_again_when_the_load_has_gone() -> None:
    targets = LoadTargets(time_to_first_token=FIRST)
    done = replayed([(0.4 * CAPACITY, 10.0), (1.6 * CAPACITY, 15.0), (0.4 * CAPACITY, 40.0)], targets)
    by_phase = [[ceiling for now, ceiling in done.ceilings if a <= now < b] for a, b in ((0, 10), (13, 25), (50, 65))]
    assert min(by_phase[0]) == 1.0
    assert float(np.mean(by_phase[1])) < 0.8
    assert min(by_phase[2]) == 1.0


def test_a_steady_load_finds_a_steady_ceiling() -> None:
    """Rises that bring the pressure back become rare."""
    done = replayed([(1.5 * CAPACITY, 60.0)], LoadTargets(time_to_first_token=FIRST))
    late = [ceiling for now, ceiling in done.ceilings if now > 30]
    turns = np.sign(np.diff(late))
    turns = turns[turns != 0]
    rises = int((np.diff(np.concatenate([[-1.0], turns])) > 0).sum())
    assert rises <= 8, f"{rises} rises in half a minute"


def test_no_budget_falls_below_its_requests_floor() -> None:
    floors = (1.0, 0.6, 0.25, 0.0)
    done = replayed([(2.5 * CAPACITY, 20.0)], LoadTargets(time_to_first_token=FIRST), floors)
    for index, floor in enumerate(floors):
        own = done.sequences[index :: len(floors)]
        lowest = min((each.lowered_to for each in own if each.lowered_to is not None), default=1.0)
        assert lowest == (1.0 if floor == 1.0 else pytest.approx(floor, abs=0.05)), floor
        assert all(each.options.ceiling >= floor for each in own)


def test_without_targets_or_load_nothing_is_lowered() -> None:
    for targets, rate in ((None, 3.0), (LoadTargets(time_to_first_token=FIRST), 0.3)):
        done = replayed([(rate * CAPACITY, 8.0)], targets)
        assert all(each.lowered_to is None and each.options.ceiling == 1.0 for each in done.sequences)


def test_the_pressure_is_the_worse_of_both_times() -> None:
    control = LoadController(LoadTargets(time_to_first_token=2.0, time_per_output_token=0.1))
    for step in range(200):
        control.observe(replace(CALM, now=0.05 * step, between=0.05))
    assert control.pressure == pytest.approx(0.5 / 0.9, abs=0.05)
    control.observe(replace(CALM, now=10.0, between=0.05, waiting=1, longest_wait=3.0))
    assert control.pressure == pytest.approx(1.5 / 0.5)


def test_who_comes_now_waits_for_all_that_wait() -> None:
    control = LoadController(LoadTargets(time_to_first_token=10.0))
    for second in range(40):  # one ends each second
        control.observe(replace(CALM, now=float(second), between=1.0, waiting=5, longest_wait=0.5, ended=1))
    assert control.pressure == pytest.approx(0.5 / 0.5)


def test_the_ceiling_falls_the_quicker_the_higher_the_pressure() -> None:
    ceilings = []
    for wait in (0.55, 0.65, 0.8, 1.5):
        control = LoadController(LoadTargets(time_to_first_token=1))
        for step in range(6):
            control.observe(replace(CALM, now=0.1 * step, waiting=1, longest_wait=wait))
        ceilings.append(control.ceiling)
    assert ceilings == sorted(ceilings, reverse=True)
    assert len(set(ceilings)) == 4
    assert min(ceilings) > 0


def test_time_without_work_is_calm() -> None:
    control = LoadController(LoadTargets(time_per_output_token=0.1))
    for step in range(30):
        control.observe(replace(CALM, now=0.5 * step, between=0.5))
    assert control.ceiling == 0.0
    control.observe(replace(CALM, now=115.0, idle=100.0, between=None))
    assert control.ceiling == 1.0


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^load targets: none; "):
        LoadTargets()
    with pytest.raises(RequestError, match=r"^time_to_first_token: 0; a number of seconds above 0"):
        LoadTargets(time_to_first_token=0)
    with pytest.raises(RequestError, match=r"^min_budget: 2; a number from 0"):
        LoadTargets(time_to_first_token=1, min_budget=2)
    with pytest.raises(RequestError, match=r"^load_targets: this bundle has neither gates nor a router"):
        session_of(HistoryLm(decoder_spec()).engine, decoder_spec(), load_targets=LoadTargets(time_to_first_token=1))


def test_a_request_names_its_floor() -> None:
    lm = GatedLm()
    targets = LoadTargets(time_to_first_token=1, min_budget=0.3)
    with session_of(lm.engine, lm.spec, gates=gates(0, "rows"), load_targets=targets) as session:
        floors = {
            (None, None): 0.3,
            (0.8, None): 1.0,  # what was asked for is kept
            (0.8, 0.2): 0.2,
            (None, 0.9): 0.9,
        }
        for (budget, least), floor in floors.items():
            asked = Request(budget=budget, min_budget=least)
            assert session._sequence([1, 2], asked).floor == floor
        with pytest.raises(RequestError, match=r"^min_budget: 0\.5; at most budget, which is 0\.4"):
            session.generate([1], budget=0.4, min_budget=0.5)
