"""Options of a request: names, plain keywords, what ends a text; and what objects say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from adaptc import runtime
from adaptc.runtime import RequestError, Sampling, Session
from adaptc.runtime.generation.request import Request, request_of
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.gated_lm import GatedLm, gates
from tests.models.history_lm import HistoryLm, decoder_spec, greedy
from tests.models.routed_lm import RoutedLm
from tests.models.sessions import session_of
from tests.repo import ROOT
from tests.runtime.generation.text_lm import PROMPT, SPEC, expected


@pytest.mark.parametrize(
    ("plain", "sampling"),
    [
        ({"temperature": 0.8, "top_k": 9}, Sampling(temperature=0.8, top_k=9)),
        ({"temperature": 2, "top_p": 0.5, "min_p": 0.1}, Sampling(2, top_p=0.5, min_p=0.1)),
        ({"repetition_penalty": 1.5}, Sampling(repetition_penalty=1.5)),
    ],
)
def test_plain_keywords_are_a_sampling(session: Session, plain: dict[str, Any], sampling: Sampling) -> None:
    assert request_of(plain).sampling == sampling
    one = session.generate(PROMPT, max_tokens=20, seed=3, **plain)
    assert one.ids == session.generate(PROMPT, max_new_tokens=20, seed=3, sampling=sampling).ids


def test_none_is_the_same_as_leaving_it_out() -> None:
    from dataclasses import asdict, fields

    nothing = {each.name: None for each in (*fields(Request), *fields(Sampling))} | {"max_tokens": None}
    assert asdict(request_of(nothing)) == asdict(Request())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sampling": Sampling(), "top_k": 3, "temperature": 1}, "sampling: together with temperature, top_k; one or the"),
    ({"max_tokens": 3, "max_new_tokens": 3}, "max_tokens: together with max_new_tokens, which means the same; one"),
    ({"max_tokens": 0}, "max_tokens: 0; a whole number from 1 is needed"),
    ({"temprature": 1}, r"temprature: no such option; did you mean temperature\?"),
    ({"qqq": 1}, "qqq: no such option; there are: max_new_tokens, min_new_tokens, "),
    ({"a\nb": 1}, r"'a\\nb': no such option; there are: "),
    ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens: 4; at most max_new_tokens, which is 3, are right"),
    ({"min_new_tokens": -1}, "min_new_tokens: -1; a whole number from 0 is needed"),
    ({"stop_token_ids": 3}, "stop_token_ids: 3; a list of token ids is needed"),
    ({"stop_token_ids": [True]}, "stop_token_ids: True; a whole number from 0 is needed"),
    ({"stop_token_ids": [320]}, "stop_token_ids: token id 320; ids go from 0 to 319"),
    ({"stop": 5}, "stop: 5; a string, or a list of strings is needed"),
    ({"stop": b"a"}, "stop: b'a'; a string, or a list of strings is needed"),
    ({"deadline": 0}, "deadline: 0; a number of seconds above 0 is needed"),
    ({"deadline": float("inf")}, "deadline: inf; a number of seconds above 0 is needed"),
    ({"seed": 10**5000}, ""),
    ({"max_new_tokens": -(10**5000)}, "max_new_tokens: a whole number of 16610 bits; a whole number from 1 is needed"),
    ({"modalities": "text"}, "modalities: 'text'; a list of names is needed"),
    ({"route": 5}, "route: no route 5; this bundle has none"),
    ({"budget": 1}, "budget: this bundle has neither gates nor a router and always runs whole; leave it out"),
    ({"stream": 1}, "stream: 1; True or False is needed"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_is_refused(session: Session, options: dict[str, Any], message: str) -> None:
    if not message:
        assert session.generate(PROMPT, max_tokens=1, temperature=1, **options).ids, "a seed of any size"
        return
    with pytest.raises(RequestError, match=f"^{message}") as error:
        session.generate(PROMPT, **options)
    assert len(str(error.value).splitlines()) == 1


def test_ends_are_held_back(tokenizer: Tokenizer) -> None:
    free = greedy(tokenizer.encode(PROMPT), 20, SPEC)
    spec = decoder_spec(vocab=320, max_tokens=100, eos=(free[2],))
    with session_of(HistoryLm(spec).engine, spec, tokenizer) as session:
        assert list(session.generate(PROMPT, max_tokens=20).ids) == free[:3]
        held = session.generate(PROMPT, max_tokens=20, min_new_tokens=3)
        assert list(held.ids[:2]) == free[:2]
        assert held.ids[2] != free[2], "another token is chosen in its place"
        assert session.generate(PROMPT, max_tokens=20, min_new_tokens=2).ids == tuple(free[:3])
        assert len(session.generate(PROMPT, max_tokens=9, min_new_tokens=9).ids) == 9


def test_stop_strings_count_from_min_new_tokens_on(session: Session, tokenizer: Tokenizer) -> None:
    whole = expected(tokenizer, 60)
    stop = whole[10:12]
    early, late = (session.generate(PROMPT, max_tokens=60, stop=stop, min_new_tokens=least) for least in (0, 40))
    assert early.text == whole[: whole.index(stop)]
    assert len(late.ids) >= 40
    assert late.text.startswith(whole[:20])
    assert late.text == whole or late.finish_reason == "stop"


def test_a_stop_token_ends_the_text_and_is_not_in_it(session: Session, tokenizer: Tokenizer) -> None:
    ids = greedy(tokenizer.encode(PROMPT), 20, SPEC)
    end = ids.index(ids[7])
    result = session.generate(PROMPT, max_tokens=20, stop_token_ids=[ids[7]])
    assert (list(result.ids), result.finish_reason) == (ids[: end + 1], "stop")
    assert result.text == tokenizer.decode(ids[:end])
    stream = session.generate(PROMPT, max_tokens=20, stop_token_ids=(each for each in [ids[7]]), stream=True)
    assert "".join(stream) == result.text


def test_a_budget_is_for_gates_or_a_router() -> None:
    lm = GatedLm()
    with session_of(lm.engine, lm.spec, gates=gates(), budget=0.5) as session:
        assert session.generate([1], max_tokens=1, budget=1).ids
    plain = HistoryLm(decoder_spec())
    with pytest.raises(RequestError, match=r"^budget: this bundle has neither gates nor a router"):
        session_of(plain.engine, plain.spec, budget=1)
    with RoutedLm().session() as routes:
        for refused in (lambda: routes.score([1, 2], budget=1), lambda: routes.choose([1], budget=1)):
            with pytest.raises(RequestError, match=r"^budget: this bundle has neither gates nor a router"):
                refused()


def test_objects_say_what_they_are(session: Session, tokenizer: Tokenizer) -> None:
    assert repr(session) == "<Session max_tokens=100, batch=2>"
    stream = session.generate(PROMPT, max_tokens=3, stream=True)
    assert repr(stream) == "<Stream: not read yet>"
    next(stream)
    assert repr(stream) == "<Stream: goes on>"
    list(stream)
    assert repr(stream) == "<Stream: ended: length, 3 tokens>"
    assert repr(stream.result).startswith(f"<Result {stream.result.text!r}: 3 tokens after 2, finish_reason='length', ")
    assert repr(session.generate_async(PROMPT)) == "<AsyncStream: not read yet>"
    session.close()
    assert repr(session) == "<Session max_tokens=100, batch=2, closed>"
    assert repr(tokenizer) == "<Tokenizer of 321 tokens, with chat template>"


def test_a_bundle_says_what_it_is() -> None:
    with runtime.load(ROOT / "tests/stored/schema3/gated", threads=1, budget=0.5) as session:
        assert repr(session) == "<Session model on onnxruntime in int4, budget=0.5, max_tokens=64, batch=1>"
    with runtime.load(ROOT / "tests/stored/schema3/stitched", threads=1) as session:
        assert f"large+small on onnxruntime in int4, routes={'/'.join(session.routes)}, " in repr(session)


def test_a_tokenizer_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptc.runtime.backends.onnxruntime_cpu.engine.OrtEngine.__init__", None)
    tokenizer = runtime.load_tokenizer(ROOT / "tests/stored/schema3/gated")
    assert tokenizer.decode(tokenizer.encode("the cat", special=False)) == "the cat"
    with pytest.raises(runtime.BundleError, match=r"nowhere: no bundle"):
        runtime.load_tokenizer("nowhere")


def test_the_tokenizer_of_a_session(session: Session) -> None:
    tokenizer = session.tokenizer
    assert isinstance(tokenizer, runtime.Tokenizer)
    ids = tokenizer.encode("héllo <|end|>")
    assert tokenizer.count("héllo <|end|>") == len(ids)
    assert tokenizer.decode(ids) == "héllo "
    assert tokenizer.decode(ids, special=True) == "héllo <|end|>"
    assert tokenizer.render([{"role": "user", "content": "hi"}]) == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    for wrong, message in (([-1], "ids: -1; "), (["x"], "ids: 'x'; "), ("abc", "ids: 'abc'; "), (3, "ids: 3; ")):
        with pytest.raises(RequestError, match=f"^{message}"):
            tokenizer.decode(wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^text: b'x'; a str is needed$"):
        tokenizer.encode(b"x")  # type: ignore[arg-type]
