from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import BundleError, RequestError
from adaptc.runtime.text.detokenize import ByteDecoding, Text, WindowDecoding, stop_strings
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizer import byte_fallback, byte_level, files

QUICK = settings(deadline=None, derandomize=True, max_examples=150)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CHARACTERS = "the cat héllo 日本 👩‍👩‍👧 👍🏽 é"


@pytest.fixture(scope="module")
def bytes_() -> Tokenizer:
    return Tokenizer(files(byte_level()))


@pytest.fixture(scope="module")
def fallback() -> Tokenizer:
    return Tokenizer(files(byte_fallback(), template=None))


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    decoding = tokenizer.decoding()
    return [*map(decoding.push, ids), decoding.finish()]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms")
def test_what_a_signal_handler_raises_is_no_fault_of_the_tokenizer(bytes_: Tokenizer) -> None:
    """A caller's limit of time ends in the middle of a long text; the handler runs when the library returns."""

    def ring(*_: object) -> None:
        raise TimeoutError("too long")

    def encode() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        bytes_.encode("many words of a text " * 5000)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="too long"):
            encode()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_each_kind_of_vocabulary_has_its_decoding(bytes_: Tokenizer, fallback: Tokenizer) -> None:
    assert isinstance(bytes_.decoding(), ByteDecoding)
    assert isinstance(fallback.decoding(), WindowDecoding)


@QUICK
@given(ANY_TEXT)
def test_byte_level_pieces_join_to_the_text(bytes_: Tokenizer, text: str) -> None:
    assert "".join(pieces(bytes_, bytes_.encode(text))) == text


@QUICK
@given(st.lists(st.integers(0, 330), max_size=30))
def test_byte_level_pieces_of_any_ids_are_what_the_library_decodes(bytes_: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(bytes_, ids)) == bytes_.decode(ids)


@QUICK
@given(st.text(CHARACTERS, max_size=30))
def test_byte_fallback_pieces_join_to_the_decoded_text(fallback: Tokenizer, text: str) -> None:
    ids = fallback.encode(text)
    assert "".join(pieces(fallback, ids)) == fallback.decode(ids) == text


@QUICK
@given(st.text("ab é", max_size=12), st.integers(0, 11))
def test_a_special_token_in_the_middle_keeps_the_spaces(fallback: Tokenizer, text: str, place: int) -> None:
    ids = fallback.encode(text)
    ids.insert(min(place, len(ids)), 1)
    assert "".join(pieces(fallback, ids)) == fallback.decode(ids)


@pytest.mark.parametrize("kind", ["bytes_", "fallback"])
def test_no_piece_holds_half_a_character(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(CHARACTERS + "🦊 žluť 学")
    assert any("\ufffd" in tokenizer.decode([one]) for one in ids), "some tokens hold half a character"
    assert not any("\ufffd" in piece for piece in pieces(tokenizer, ids))


def test_bytes_that_never_make_a_character_do_not_pile_up(fallback: Tokenizer) -> None:
    ids = [2 + 0x80] * 40  # continuation bytes without a beginning
    found = pieces(fallback, ids)
    assert max(map(len, found)) <= 8
    assert set("".join(found)) == {"\ufffd"}


def test_bytes_cut_off_at_the_end_are_told(bytes_: Tokenizer) -> None:
    ids = bytes_.encode("日")
    assert len(ids) > 1
    assert pieces(bytes_, ids[:-1])[-1] == "\ufffd"


def test_names_of_special_tokens_are_special(bytes_: Tokenizer) -> None:
    assert bytes_.encode("<|end|>") == [1]
    assert pieces(bytes_, [1, 1]) == ["", "", ""]


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_refuses_a_lone_surrogate(bytes_: Tokenizer, text: str) -> None:
    with pytest.raises(RequestError, match=r"^prompt: not valid Unicode: character \d is a lone surrogate"):
        bytes_.encode(text)


def test_chat(bytes_: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi <b>"}]
    assert bytes_.render(messages, {}) == "<|start|>user\nhi <b><|end|>\n<|start|>assistant\n"
    assert bytes_.render(messages, {"add_generation_prompt": False}) == "<|start|>user\nhi <b><|end|>\n"


def test_chat_without_a_template(fallback: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"^chat: this model has no chat template"):
        fallback.render([{"role": "user", "content": "hi"}], {})


RENDERED = [
    ("{{ tools | tojson }}|{{ x }}", {"tools": [{"é": "<"}], "x": 3}, '[{"é": "<"}]|3'),
    ("{% for i in range(5) %}\n  {% if i == 2 %}{% break %}{% endif %}\n{{ i }}\n{% endfor %}", {}, "0\n1\n"),
    ("{% generation %}{{ messages[0].content }}{% endgeneration %}", {}, "hi"),
    ("{{ strftime_now('%Y') | length }}{{ eos_token }}", {}, "4<|end|>"),
    ("{{ documents is none }}{{ missing is defined }}", {}, "TrueFalse"),
]


@pytest.mark.parametrize(("template", "options", "text"), RENDERED)
def test_templates_know_what_transformers_gives_them(template: str, options: dict[str, object], text: str) -> None:
    tokenizer = Tokenizer(files(byte_level(), template))
    assert tokenizer.render([{"role": "user", "content": "hi"}], options) == text


REFUSED = [
    (
        "{{ raise_exception('no system\nrole') }}",
        [{"role": "user"}],
        "chat: .* refuses this: no system role$",
    ),
    ("{{ messages[0].content + 'x' }}", [{"role": "user", "content": None}], "chat: .* refuses this: "),
    ("{{ ''.__class__.__mro__ }}", [{"role": "user"}], "chat: .* refuses this: .*unsafe"),
    ("", [], "messages: none; at least one is needed$"),
    ("", ["hi"], r"messages\[0\]: {.*} is needed$"),
    ("", [{"role": "user"}, {"content": "x"}], r"messages\[1\]: {.*} is needed$"),
    ("", [{"role": "user", "content": object()}], r"messages\[0\]: object; plain data is needed"),
]


@pytest.mark.parametrize(("template", "messages", "message"), REFUSED)
def test_chat_refuses(template: str, messages: list[dict[str, object]], message: str) -> None:
    tokenizer = Tokenizer(files(byte_level(), template))
    with pytest.raises(RequestError, match=f"^{message}") as error:
        tokenizer.render(messages, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not a tokenizer: EOF"),
        ("tokenizer.json", b"\xff", "cannot read: "),
        ("tokenizer_config.json", b"[]", "an object is needed"),
        ("tokenizer_config.json", b"{", "cannot read: "),
        ("chat_template.jinja", b"{% for %}", "not a chat template: "),
    ],
)
def test_broken_files(name: str, content: bytes, message: str) -> None:
    broken = files(byte_level()) | {name: content}
    with pytest.raises(BundleError, match=f"{name}: {message}") as error:
        Tokenizer(broken).render([{"role": "user", "content": "hi"}], {})
    assert "\n" not in str(error.value)


class Letters:
    """A decoding in which a token is a letter."""

    def push(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


def until_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the stop string that is complete first; the longest if several are."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@QUICK
@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_are_found_across_pieces_and_never_told(text: str, stops: list[str]) -> None:
    stream, told = Text(Letters(), tuple(stops)), ""
    for letter in text:
        told += stream.push(ord(letter))
        assert until_stop(text, tuple(stops))[0].startswith(told), "nothing is told that must be taken back"
        if stream.stopped:
            break
    told += stream.finish()
    assert (told, stream.stopped) == until_stop(text, tuple(stops))


@QUICK
@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_do_not_depend_on_how_text_is_cut(text: str, stops: list[str]) -> None:
    class Whole(Letters):
        def push(self, token: int) -> str:
            return text

    stream = Text(Whole(), tuple(stops))
    told = stream.push(0) + stream.finish()
    assert (told, stream.stopped) == until_stop(text, tuple(stops))


class SomeHidden(Letters):
    """A decoding in which capitals are special tokens, which have no text."""

    def push(self, token: int) -> str:
        return "" if chr(token).isupper() else chr(token)


@QUICK
@given(st.text("abST", max_size=14), st.lists(st.text("abST", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_may_name_special_tokens(text: str, stops: list[str]) -> None:
    def named(stop: str) -> str:
        return stop.replace("S", "<S>").replace("T", "<S>>")

    stream = Text(SomeHidden(), tuple(map(named, stops)), {ord("S"): "<S>", ord("T"): "<S>>"})
    told = ""
    for letter in text:
        told += stream.push(ord(letter))
        if stream.stopped:
            break
    told += stream.finish()
    wanted, stopped = until_stop(text, tuple(stops))
    assert (told, stream.stopped) == ("".join(letter for letter in wanted if letter.islower()), stopped)


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_a_special_token_ends_the_text_where_a_stop_string_names_it(kind: Callable[[], Any]) -> None:
    tokenizer = Tokenizer(files(kind()))
    name = "<|end|>" if kind is byte_level else "</s>"
    ids = tokenizer.encode(f"the cat{name} the", special=False)
    for stop, told, stopped in (
        (name, "the cat", True),
        (f"cat{name}", "the ", True),
        (name[1:], tokenizer.decode(ids), False),
        (f"{name}{name}", tokenizer.decode(ids), False),
    ):
        stream = Text(tokenizer.decoding(), (stop,), tokenizer.special_in((stop,)))
        pieces = [stream.push(token) for token in ids if not stream.stopped]
        assert ("".join([*pieces, stream.finish()]).strip(), stream.stopped) == (told.strip(), stopped), stop


def test_one_stop_string_is_not_a_list_of_letters() -> None:
    assert stop_strings("ab") == ("ab",)
    assert stop_strings(["a", "b"]) == ("a", "b")
