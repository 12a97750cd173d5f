from __future__ import annotations

import gc
import threading

import pytest

from adaptc.runtime import BundleError, RequestError, Session
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec, greedy
from tests.models.sessions import session_of
from tests.runtime.generation.text_lm import PROMPT, SPEC, expected


def test_pieces_join_to_the_text(session: Session, tokenizer: Tokenizer) -> None:
    stream = session.generate(PROMPT, max_new_tokens=60, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == expected(tokenizer, 60)
    assert all(pieces)
    assert stream.result.text == "".join(pieces) == session.generate(PROMPT, max_new_tokens=60).text
    assert len(stream.result.ids) == 60


def test_a_stream_is_lazy(session: Session, lm: HistoryLm) -> None:
    stream = session.generate(PROMPT, max_new_tokens=60, stream=True)
    assert lm.calls == []
    next(stream)
    assert 0 < len(lm.calls) < 20


def test_a_bad_request_is_refused_before_the_first_piece(session: Session) -> None:
    with pytest.raises(RequestError, match=r"^prompt: "):
        session.generate("x" * 200, stream=True)
    with pytest.raises(RequestError, match=r"^prompt: not valid Unicode"):
        session.generate("\ud800", stream=True)


def test_a_stop_string_ends_the_answer(session: Session, tokenizer: Tokenizer) -> None:
    whole = expected(tokenizer, 60)
    stop = whole[20:24]
    result = session.generate(PROMPT, max_new_tokens=60, stop=stop)
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert len(result.ids) < 60
    assert "".join(session.generate(PROMPT, max_new_tokens=60, stop=stop, stream=True)) == result.text


def test_text_held_back_is_told_at_the_end(session: Session, tokenizer: Tokenizer) -> None:
    whole = expected(tokenizer, 30)
    result = session.generate(PROMPT, max_new_tokens=30, stop=whole[-1] + "never")
    assert (result.text, result.finish_reason) == (whole, "length")


def test_a_batch_of_texts(session: Session, tokenizer: Tokenizer) -> None:
    prompts = ["a", "héllo wörld", "日本", "the cat sat"]
    results = session.generate(prompts, max_new_tokens=20)
    assert [result.text for result in results] == [expected(tokenizer, 20, prompt) for prompt in prompts]


def test_chat_encodes_the_template_once(session: Session, tokenizer: Tokenizer) -> None:
    result = session.chat([{"role": "user", "content": "hi"}], max_new_tokens=9)
    prompt = "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert result.text == expected(tokenizer, 9, prompt)
    pieces = session.chat([{"role": "user", "content": "hi"}], max_new_tokens=9, stream=True)
    assert "".join(pieces) == result.text


def test_an_end_token_is_no_text(tokenizer: Tokenizer) -> None:
    ids = greedy(tokenizer.encode(PROMPT), 10, SPEC)
    spec = decoder_spec(vocab=320, max_tokens=100, eos=(ids[6],))
    result = session_of(HistoryLm(spec).engine, spec, tokenizer).generate(PROMPT)
    assert result.ids == tuple(ids[: ids.index(ids[6]) + 1])
    assert result.finish_reason == "eos"
    assert result.text == tokenizer.decode(ids[: ids.index(ids[6])])


def test_a_stream_that_is_closed_has_a_result_and_writes_no_more(
    session: Session, lm: HistoryLm, tokenizer: Tokenizer
) -> None:
    with session.generate(PROMPT, max_new_tokens=60, stream=True) as stream:
        with pytest.raises(RequestError, match=r"^stream: it has not ended; read it to its end or close it"):
            _ = stream.result
        piece = next(stream)
    result = stream.result
    assert (result.text, result.finish_reason) == (piece, "cancelled")
    assert list(result.ids) == greedy(tokenizer.encode(PROMPT), len(result.ids), SPEC)
    assert list(stream) == []
    calls = len(lm.calls)
    assert session.generate(PROMPT, max_new_tokens=3).finish_reason == "length"
    assert len(lm.calls) == calls + 3


def test_a_stream_that_is_dropped_writes_no_more(session: Session, lm: HistoryLm) -> None:
    stream = session.generate(PROMPT, stream=True)
    next(stream)
    calls = len(lm.calls)
    del stream
    gc.collect()
    assert session.generate(PROMPT, max_new_tokens=3).finish_reason == "length"
    assert len(lm.calls) == calls + 3


def test_closing_the_session_ends_a_stream(session: Session, lm: HistoryLm) -> None:
    stream, other = (session.generate(PROMPT, stream=True) for _ in range(2))
    piece = next(stream)
    session.close()
    assert lm.engine.function is None
    for each, text in ((stream, piece), (other, "")):
        with pytest.raises(RequestError, match=r"^session: closed$"):
            list(each)
        assert (each.result.text, each.result.finish_reason) == (text, "cancelled")


def test_leaving_the_block_in_the_middle_of_a_stream(lm: HistoryLm, tokenizer: Tokenizer) -> None:
    with session_of(lm.engine, SPEC, tokenizer) as session:
        for _ in session.generate(PROMPT, stream=True):
            break
    assert lm.engine.function is None


def test_threads_take_turns(session: Session, tokenizer: Tokenizer) -> None:
    prompts = [f"prompt {index}" for index in range(4)]
    found: dict[str, list[str]] = {prompt: [] for prompt in prompts}

    def ask(prompt: str) -> None:
        for _ in range(3):
            found[prompt].append("".join(session.generate(prompt, max_new_tokens=15, stream=True)))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {prompt: [expected(tokenizer, 15, prompt)] * 3 for prompt in prompts}


def test_files_without_a_tokenizer() -> None:
    with pytest.raises(BundleError, match=r"^there/tokenizer\.json: missing; compile again$"):
        Tokenizer({}, "there")
