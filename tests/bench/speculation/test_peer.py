"""The script that measures llama.cpp beside adaptc, without either."""

from __future__ import annotations

import pytest

from adaptc.bench.speculation.turns import TimedAnswer, WrittenTokens
from tests.bench import measure_speculation as script
from tests.bench.llama_speculation_server import parameters_of

PLAIN = {"path": "m.gguf", "threads": 2, "tokens": 256}


def test_what_a_server_says_is_read() -> None:
    times = {"predicted_ms": 40.0, "draft_n": 5, "draft_n_accepted": 2}
    assert script.written({"tokens": [4, 5, 6], "timings": times}, 0.25) == WrittenTokens(
        (4, 5, 6), 0.04, 5, 2, None, 0.25
    )
    assert script.written({"tokens": [4], "timings": {"predicted_ms": 0.0}}) == WrittenTokens((4,), 0.0)


def test_ratios_are_of_one_engine_and_of_adaptc_over_the_other() -> None:
    text = tuple(range(11))
    seconds = {"adaptc off": 1.0, "adaptc auto": 0.5, "llama.cpp off": 2.0, "llama.cpp ngram-simple": 1.0}
    answers = [
        TimedAnswer(place, kind, 0, way, WrittenTokens(text if way.startswith("adaptc") else text[::-1], taken))
        for place, kind in enumerate(("edit", "chat"))
        for way, taken in seconds.items()
    ]
    report = script.report_of(answers)
    assert list(report["adaptc"]["kinds"]["edit"]) == ["off", "auto"]
    assert report["adaptc"]["kinds"]["edit"]["auto"]["ratio"]["median"] == pytest.approx(2.0)
    assert report["llama.cpp"]["kinds"]["all"]["ngram-simple"]["ratio"]["median"] == pytest.approx(2.0)
    assert report["llama.cpp"]["differences"] == []  # another text than adaptc's is none
    over = report["auto_over"]
    assert list(over) == ["edit", "chat", "all"]
    assert {way: found["median"] for way, found in over["chat"].items()} == pytest.approx(
        {"off": 4.0, "ngram-simple": 2.0}
    )


def test_each_way_sets_what_llama_cpp_calls_it() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    kinds = xllamacpp.common_speculative_type
    plain = parameters_of({**PLAIN, "way": "off"})
    assert (plain.model.path, plain.n_ctx, plain.n_parallel, plain.cpuparams.n_threads) == ("m.gguf", 256, 1, 2)
    assert [*plain.speculative.types] == [kinds.COMMON_SPECULATIVE_TYPE_NONE]
    grams = parameters_of({**PLAIN, "way": "ngram-simple:3:8"}).speculative
    assert [*grams.types] == [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    assert (grams.ngram_simple.size_n, grams.ngram_simple.size_m) == (3, 8)
    drafts = parameters_of({**PLAIN, "way": "draft:5", "draft": "d.gguf"}).speculative
    assert [*drafts.types] == [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    assert (drafts.draft.mparams.path, drafts.draft.n_max) == ("d.gguf", 5)
    with pytest.raises(SystemExit, match="no way 'luck'; there are: off, ngram-simple"):
        parameters_of({**PLAIN, "way": "luck"})
