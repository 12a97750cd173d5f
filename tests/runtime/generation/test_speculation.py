"""Answers with drafts are those without, to the token; here drafts always pay, and are as wrong as a test wants."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime import DecoderSpec, RequestError, Session
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.generation.scheduler import Limits
from adaptc.runtime.model.verifier import Verified
from adaptc.runtime.speculation.drafter import Draft
from adaptc.runtime.speculation.speculation import Speculation
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import decoder_spec, greedy
from tests.models.verifying_lm import FreeDrafts, VerifyingLm, speculation
from tests.runtime.generation.test_scheduler import ENDING
from tests.runtime.generation.text_lm import PROMPT, SPEC

PROMPTS = [[1, 2, 3], [4], [9] * 20, [7, 8]]
WRONG = [0.0, 0.3, 1.0]


@dataclass
class Odd:
    """A rule, as a grammar is one: tokens are odd after an even one, and whatever they are after an odd one."""

    newest: int = 1
    seen: list[int] = field(default_factory=list)

    def before(self, logits: npt.NDArray[np.float32]) -> None:
        if self.newest % 2 == 0:
            logits[::2] = -np.inf

    def after(self, token: int) -> None:
        self.newest = token
        self.seen.append(token)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 5},
    "filters": {"temperature": 2.0, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 6},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    "sampled penalties": {"temperature": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "seed": 7},
    "bias": {"logit_bias": {3: 4.0, 11: -100.0}},
    "rules": {"rules": [Odd]},
    "sampled rules": {"rules": [Odd], "temperature": 1.0, "seed": 8},
    "least": {"min_new_tokens": 12, "stop_token_ids": list(range(0, 50, 3))},
    "stop tokens": {"stop_token_ids": list(range(0, 50, 9))},
    "one": {"max_new_tokens": 1},
    "two": {"max_new_tokens": 2},
    "full": {"max_new_tokens": 1000},
}


def session(
    wrong: float = 0.3,
    spec: DecoderSpec | None = None,
    batch: int = 1,
    tokenizer: Tokenizer | None = None,
    *,
    drafts: bool = True,
    close: float = 0.0,
) -> Session:
    decoder = VerifyingLm(spec or decoder_spec(max_tokens=60)).decoder(batch)
    found = speculation(decoder, wrong, close=close) if drafts else None
    return Session(decoder, tokenizer, speculation=found, speculate="auto" if drafts else None)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("eos", [(), (7, 21)])
def test_answers_are_those_without_drafts(options: dict[str, Any], wrong: float, eos: tuple[int, ...]) -> None:
    """One prompt after another, and several in one step."""
    given = {"max_new_tokens": 30, **options}
    spec = decoder_spec(max_tokens=60, eos=eos)
    with session(spec=spec, drafts=False) as plain:
        expected = [plain.generate(prompt, **given) for prompt in PROMPTS]
    for batch in (1, 3):
        with session(wrong, spec, batch) as drafting:
            alone = [drafting.generate(prompt, **given) for prompt in PROMPTS]
            together = drafting.generate(PROMPTS, **given)
        for results in (alone, together):
            if "seed" in options and results is together:
                continue  # places in a batch have seeds of their own
            assert [each.ids for each in results] == [each.ids for each in expected]
            assert [each.finish_reason for each in results] == [each.finish_reason for each in expected]
        drafted = sum(each.trace.drafted for each in alone)
        assert (drafted > 0) == any(len(each.ids) > 2 for each in expected)
        accepted = sum(each.trace.accepted for each in alone)
        if options.keys() <= {"max_new_tokens"} and not eos:  # the model's own tokens, and none that ends the text
            assert {0.0: accepted == drafted, 0.3: accepted <= drafted, 1.0: accepted == 0}[wrong]


@pytest.mark.parametrize("wrong", WRONG)
def test_sampled_batches_are_those_without_drafts(wrong: float) -> None:
    given: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.5, "top_p": 0.9, "seed": 3}
    with session(batch=3, drafts=False) as plain:
        expected = plain.generate(PROMPTS, **given)
    with session(wrong, batch=3) as drafting:
        assert [each.ids for each in drafting.generate(PROMPTS, **given)] == [each.ids for each in expected]


def test_the_distribution_is_that_of_the_model() -> None:
    """Exactly, as every seed draws what it draws without drafts; and by chi-square, with the drafts all alike."""
    given: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0}
    seeds = range(400)
    with session(drafts=False) as plain, session(0.0) as drafting:
        expected = [plain.generate([1, 2], seed=seed, **given).ids for seed in seeds]
        found = [drafting.generate([1, 2], seed=seed, **given) for seed in seeds]
    assert [each.ids for each in found] == expected
    assert 0 < sum(each.trace.accepted for each in found) < sum(each.trace.drafted for each in found)
    firsts = Counter(each.ids[0] for each in found)
    weights = np.exp(-np.arange(50) / 2)
    shares = np.sort(weights / weights.sum())[::-1]
    counts = np.array(sorted((firsts[token] for token in range(50)), reverse=True)[:6])
    chi = float(((counts - 400 * shares[:6]) ** 2 / (400 * shares[:6])).sum())
    assert chi < 25, "of some 6 degrees of freedom, sorted; 0.0004 of draws are above"


@pytest.mark.parametrize("wrong", WRONG)
def test_streams_deliver_every_piece(wrong: float, tokenizer: Tokenizer) -> None:
    with (
        session(spec=SPEC, tokenizer=tokenizer, drafts=False) as plain,
        session(wrong, SPEC, tokenizer=tokenizer) as ours,
    ):
        whole = plain.generate(PROMPT, max_new_tokens=60)
        stop = whole.text[20:24]
        choices: list[dict[str, Any]] = [
            {},
            {"stop": stop},
            {"stop": stop, "min_new_tokens": 40},
            {"stop": whole.text[-1] + "never"},
        ]
        for options in choices:
            expected = plain.generate(PROMPT, max_new_tokens=60, **options)
            stream = ours.generate(PROMPT, max_new_tokens=60, stream=True, **options)
            pieces = [*stream]
            assert "".join(pieces) == expected.text == stream.result.text
            assert all(pieces)
            result = stream.result
            assert (result.ids, result.finish_reason) == (expected.ids, expected.finish_reason)
            assert result.trace.drafted > 0


def test_a_stream_that_is_closed_in_the_middle_leaves_the_others(tokenizer: Tokenizer) -> None:
    with session(0.2, SPEC, 2, tokenizer) as running:
        left = running.generate(PROMPT, max_new_tokens=80, stream=True)
        other = running.generate("other", max_new_tokens=40, stream=True)
        next(left), next(other)
        left.close()
        assert list(left.result.ids) == greedy(tokenizer.encode(PROMPT), len(left.result.ids), SPEC)
        assert "".join(other)
        assert list(other.result.ids) == greedy(tokenizer.encode("other"), 40, SPEC)
        assert list(running.generate(PROMPT, max_new_tokens=9).ids) == greedy(tokenizer.encode(PROMPT), 9, SPEC)


def test_traces_say_what_was_drafted() -> None:
    with session(0.0) as running:
        result = running.generate([1, 2, 3], max_new_tokens=30)
        trace = result.trace
        assert (trace.drafter, trace.accepted) == ("oracle", trace.drafted)
        off = running.generate([1, 2, 3], max_new_tokens=30, speculate="off")
        assert (off.trace.drafter, off.trace.drafted, off.trace.accepted) == (None, 0, 0)
        assert off.ids == result.ids
        with pytest.raises(RequestError, match=r"^speculate: 'lookup'; there are: off, auto, oracle$"):
            running.generate([1], speculate="lookup")
    with session(1.0) as running:
        result = running.generate([1, 2, 3], max_new_tokens=30)
        assert result.trace.drafted > result.trace.accepted == 0


def test_fewer_runs_are_needed_where_drafts_are_right() -> None:
    lm = VerifyingLm(decoder_spec(max_tokens=60))
    decoder = lm.decoder()
    with Session(decoder, speculation=speculation(decoder, 0.0), speculate="auto") as running:
        result = running.generate([1, 2, 3], max_new_tokens=40)
    steps = sum(call == (1, 1) for call in lm.calls) + len(lm.verified)
    assert steps == 39 - result.trace.accepted < 20


def test_tokens_that_the_model_does_not_know_are_not_verified() -> None:
    """A smaller model's head may have more rows."""

    class Wide:
        def draft(self, ids: Any, most: int, outlook: Any = None) -> Draft:
            tokens = (*greedy(list(ids), 1, decoder_spec()), 50, 3)[:most]
            return Draft(tokens, (1.0,) * len(tokens))

        def close(self) -> None:
            pass

    lm = VerifyingLm(decoder_spec(max_tokens=60))
    decoder = lm.decoder()
    drafts = Speculation(decoder, FreeDrafts(), {"wide": lambda _: Wide()})
    with Session(decoder, speculation=drafts, speculate="auto") as running:
        result = running.generate([1, 2, 3], max_new_tokens=20)
    assert list(result.ids) == greedy([1, 2, 3], 20, decoder_spec())
    assert {*lm.verified} == {2}
    assert result.trace.accepted == result.trace.drafted == len(lm.verified)


def shifted(session: Session, by: float) -> Callable[[], int]:
    """Have verifications say of the second best token that it is the best, by very little; how many tokens that met."""
    decoder: Any = session._decoder
    verify, met = decoder.verify, [0]

    def other(slot: int, tokens: Any) -> Verified:
        found: Verified = verify(slot, tokens)
        for logits in found.logits:
            second = (int(logits.argmax()) - 1) % len(logits)
            met[0] += 1
            logits[second] = logits.max() + np.float32(by)
        return found

    decoder.verify = other
    return lambda: met[0]


def test_tokens_that_are_nearly_as_likely_are_computed_again() -> None:
    with session(0.3, close=1e-2) as running:
        met = shifted(running, 1e-3)
        assert list(running.generate([1, 2, 3], max_new_tokens=40).ids) == greedy([1, 2, 3], 40, decoder_spec())
        assert met() > 10
    with session(0.3, close=1e-4) as running:
        shifted(running, 1e-3)
        assert list(running.generate([1, 2, 3], max_new_tokens=40).ids) != greedy([1, 2, 3], 40, decoder_spec())


def test_what_is_computed_again_goes_through_rules_and_penalties_once_more() -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "rules": [Odd], "repetition_penalty": 1.2, "logit_bias": {5: 0.3}}
    with session(drafts=False) as plain:
        expected = plain.generate([1, 2, 3], **options)
    with session(0.3, close=math.inf) as running:
        assert running.generate([1, 2, 3], **options).ids == expected.ids


@pytest.mark.parametrize("seed", range(6))
def test_callers_of_all_kinds_at_once_get_what_they_get_alone(seed: int) -> None:
    """Requests, batches and streams from several threads, some of them closed; see tests/attacks for more."""
    chance = random.Random(seed)
    decoder = VerifyingLm(ENDING).decoder(chance.randint(1, 4), chance.choice([1, 5, 64]), PrefixCache(3000))
    limits = Limits(piece=4, alone=8, kv_tokens=chance.choice([None, 60, 120]))
    drafts = speculation(decoder, chance.choice([0.0, 0.2, 0.6]), seed)

    def ask(own: random.Random, running: Session) -> None:
        for _ in range(6):
            prompt = [own.randrange(50) for _ in range(own.choice([1, 2, 20, 60, 89, 90]))]
            count = own.choice([1, 2, 3, 10, 40, 1000])
            alone = greedy(prompt, min(count, 91 - len(prompt)), ENDING)
            kind = own.choice(["plain", "off", "several", "stream", "closed"])
            if kind == "several":
                found = running.generate([prompt, prompt[:1]], max_new_tokens=count)[0].ids
            elif kind in ("plain", "off"):
                how = "off" if kind == "off" else None
                found = running.generate(prompt, max_new_tokens=count, speculate=how, priority=own.choice([0, 1])).ids
            else:
                with running.generate(prompt, max_new_tokens=count, stream=True) as stream:
                    [*islice(stream, own.randint(1, 9) if kind == "closed" else None)]
                found = stream.result.ids
            assert list(found) == (alone[: len(found)] if kind == "closed" else alone)

    with (
        Session(decoder, speculation=drafts, speculate="auto", limits=limits) as running,
        ThreadPoolExecutor(5) as pool,
    ):
        asked = [pool.submit(ask, random.Random(100 * seed + caller), running) for caller in range(5)]
        for each in asked:
            each.result(60)
        assert (running.status().running, running.status().waiting) == (0, 0)
