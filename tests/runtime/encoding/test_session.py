"""A session of an encoder: texts, prompts, pairs, cutting, order, and what is refused; by hand, without torch."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest

from adaptc.runtime import EncoderSession, EngineError, RequestError
from tests.models.text_encoder import MAX_TOKENS, session, with_tokenizer
from tests.models.word_tokenizer import tokenizer


def expected(ids: list[int]) -> list[float]:
    return [sum(ids), len(ids), 0]


def words(text: Any) -> Any:
    own = tokenizer()
    own.no_padding()
    own.no_truncation()
    return own.encode(*text) if isinstance(text, tuple) else own.encode(text)


def test_token_ids_of_any_lengths_keep_their_order() -> None:
    shapes: list[tuple[int, int]] = []
    texts = [[3], [1, 2, 3, 4, 5, 6, 7, 8], [20, 0], [5] * 9, [7]]
    with session(shapes) as running:
        vectors = running.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [expected(ids) for ids in texts]
    assert shapes == [(5, 9)]  # so few tokens are one batch


def test_padding_is_little_where_batches_are_large() -> None:
    shapes: list[tuple[int, int]] = []
    texts = [[1] * 2] * 40 + [[1] * 9] * 40
    with session(shapes) as running:
        vectors = running.embed(texts)
    assert vectors[:, 1].tolist() == [2] * 40 + [9] * 40
    assert shapes == [(47, 9), (33, 2)]  # an eighth of a batch may be padding


def test_one_text_has_one_vector() -> None:
    with with_tokenizer() as running:
        one = running.embed("the cat")
        assert one.shape == (3,)
        assert one.tolist() == expected(words("the cat").ids)
        assert running.embed([4, 5]).tolist() == [9, 2, 0]
        assert running.embed(np.array([4, 5])).tolist() == [9, 2, 0]
        assert running.embed(["the cat"]).shape == (1, 3)


def test_prompts_are_written_before_texts() -> None:
    with with_tokenizer(default="passage") as running:
        assert running.embed("sat").tolist() == expected(words("dog sat").ids)
        assert running.embed("sat", prompt="query").tolist() == expected(words("cat sat").ids)
        assert running.embed([1, 2]).tolist() == [3, 2, 0]  # ids come as they are


def test_a_text_is_cut_only_if_that_is_wanted() -> None:
    long = "the " * 20
    with with_tokenizer() as running:
        with pytest.raises(
            RequestError, match=r"texts\[1\]: 22 tokens; at most 9 are possible, and truncate=True cuts"
        ):
            running.embed(["a", long])
        assert running.embed(long, truncate=True).tolist() == expected(words("the " * 7).ids)
        assert running.embed([1] * 12, truncate=True).tolist() == [9, 9, 0]


@pytest.mark.parametrize(
    "pair", [("the cat", "a dog sat"), ("the " * 9, "a dog"), ("a", "cat " * 9), ("a " * 9, "b " * 9)]
)
def test_pairs_are_cut_as_the_library_cuts_them(pair: tuple[str, str]) -> None:
    own = tokenizer()
    own.no_padding()
    own.enable_truncation(MAX_TOKENS)
    with with_tokenizer(labels=("no", "maybe", "yes")) as running:
        found = running.classify([pair], truncate=True)
    wanted = own.encode(*pair)
    assert found.logits.tolist() == [[sum(wanted.ids), len(wanted.ids), sum(wanted.type_ids)]]
    assert found.scores.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ([], "texts: none; a text, or a list of texts"),
        ([[]], r"texts\[0\]: no token; at least one"),
        (["a", 3], r"texts\[1\]: 3; a text, or a list of texts"),
        ([[21]], r"texts\[0\]: 21; a whole number from 0 to 20"),
        ([[-1]], r"texts\[0\]: -1; a whole number from 0 to 20"),
        (7, "texts: 7; a text, or"),
        ([("a", "b")], r"texts\[0\]: \('a', 'b'\); a text or a list of token ids is needed"),
        (["\ud800"], "not valid Unicode"),
        ([[1.5]], r"texts\[0\]: 1.5; a whole number"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, fault: str) -> None:
    with with_tokenizer() as running, pytest.raises(RequestError, match=fault):
        running.embed(texts)


def test_other_requests_than_the_model_is_for_are_refused() -> None:
    wrong: dict[str, Any] = {"truncate": 1}
    with session() as running:
        for ask, fault in (
            (lambda: running.embed("a"), "this bundle has no tokenizer; token ids are needed"),
            (lambda: running.classify([[1]]), "classify: this encoder has no labels; embed is right"),
            (lambda: running.encode([np.zeros(3)]), "encode: this encoder reads texts; embed or classify is right"),
            (lambda: running.embed([[1]], prompt="title"), "prompt: 'title'; there are: query, passage"),
            (lambda: running.embed([[1]], **wrong), "truncate: 1; True or False is needed"),
        ):
            with pytest.raises(RequestError, match=fault):
                ask()
    with (
        session(labels=("no", "maybe", "yes")) as running,
        pytest.raises(RequestError, match="gives labels: no, maybe"),
    ):
        running.embed([[1]])


def test_a_closed_session_says_so() -> None:
    running = session()
    running.close()
    running.close()
    with pytest.raises(EngineError, match="session: closed"):
        running.embed([[1]])


def test_threads_share_a_session() -> None:
    found: dict[int, list[list[float]]] = {}
    with session() as running:

        def ask(at: int) -> None:
            found[at] = running.embed([[at], [at, at]]).tolist()

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {at: [[at, 1, 0], [2 * at, 2, 0]] for at in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_fork_is_refused() -> None:
    with session() as running:
        child = os.fork()
        if not child:
            try:
                running.embed([[1]])
            except RequestError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_says_what_it_is() -> None:
    with session() as running:
        assert repr(running) == "<EncoderSession of texts of up to 9 tokens, gives 3 numbers>"
        assert isinstance(running, EncoderSession)
