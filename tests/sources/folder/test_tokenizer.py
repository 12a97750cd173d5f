"""Ids and texts of a folder's tokenizer, held against `AutoTokenizer`, which reads the folder without adaptc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from adaptc.errors import LoadError
from adaptc.runtime.text.detokenize import Text
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models.tokenizer_kinds import KINDS, gpt2, llama2, llama3, texts

TEXTS = 400


def source(folder: Path) -> Any:
    return find_source(ModelSpec(source=str(folder)), folder)


def ours(folder: Path, into: Path) -> Tokenizer:
    """The tokenizer that a bundle of this folder has."""
    return Tokenizer(source(folder).tokenizer_files(), str(into))


def change(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_autotokenizer(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "m")
    wanted, got = transformers.AutoTokenizer.from_pretrained(folder), ours(folder, tmp_path / "t")
    marks = tuple(str(token) for token in wanted.added_tokens_decoder.values())
    assert marks
    for text in texts(TEXTS, marks):
        for special in (True, False):
            ids = wanted(text, add_special_tokens=special)["input_ids"]
            assert got.encode(text, special=special) == ids, text
        whole = wanted.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert got.decode(ids) == whole, text
        stream = Text(got.decoding(), ())
        assert "".join([*map(stream.push, ids), stream.finish()]) == whole, text


AT = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
NEW = ("<|tool|>", "<|call|>")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": NEW[0], **AT}}}),
        ("tokenizer_config.json", {"eos_token": NEW[0]}),
        ("tokenizer_config.json", {"unk_token": NEW[0]}),
        ("tokenizer_config.json", {"additional_special_tokens": list(NEW)}),
        ("tokenizer_config.json", {"extra_special_tokens": {"tool_token": NEW[0]}}),
        ("added_tokens.json", {NEW[0]: 400, NEW[1]: 401}),
        ("special_tokens_map.json", {"additional_special_tokens": list(NEW)}),
        ("special_tokens_map.json", {"bos_token": {"content": NEW[0], **AT}}),
    ],
)
def test_special_tokens_count_wherever_they_are_named(file: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "m")
    text = f"the{NEW[0]} cat {NEW[1]}"
    before = ours(folder, tmp_path / "before").encode(text)
    change(folder / file, **values)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids != before
    assert ours(folder, tmp_path / "after").encode(text) == ids


@pytest.mark.parametrize("key", ["tokenizer_class", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy"])
def test_settings_of_a_class_count(key: str, tmp_path: Path) -> None:
    folder = llama2(tmp_path / "m")
    if key.startswith("add_"):  # what tokenizer.json says of it would win
        written = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
        (folder / "tokenizer.json").write_text(json.dumps(written))
    for value in ("PreTrainedTokenizerFast", "GemmaTokenizer") if key == "tokenizer_class" else (True, False):
        change(folder / "tokenizer_config.json", **{key: value})
        wanted, got = transformers.AutoTokenizer.from_pretrained(folder), ours(folder, tmp_path / "t")
        for text in texts(20):
            assert got.encode(text) == wanted(text)["input_ids"]


def test_roles_are_strings_for_templates(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "m")
    change(folder / "special_tokens_map.json", bos_token={"content": "<|begin|>", **AT}, pad_token="<|end|>")
    config = json.loads(source(folder).tokenizer_files()["tokenizer_config.json"])
    wanted = transformers.AutoTokenizer.from_pretrained(folder).special_tokens_map
    assert {"bos_token", "eos_token", "pad_token"} <= wanted.keys()
    assert {role: config[role] for role in wanted} == wanted


def test_files_do_not_depend_on_the_folder_s_place(tmp_path: Path) -> None:
    first, second = (source(gpt2(tmp_path / place)).tokenizer_files() for place in ("a", "b"))
    assert first == second
    assert str(tmp_path) not in first["tokenizer_config.json"].decode()


def test_a_tokenizer_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(gpt2(tmp_path / "m"))
    first = found.tokenizer_files()
    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("read again"))
        assert found.tokenizer_files() == first
    change(tmp_path / "m" / "tokenizer_config.json", bos_token="<|new|>")
    assert found.tokenizer_files() != first


def test_rules_that_the_fast_form_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "m")
    change(folder / "tokenizer_config.json", split_special_tokens=True)
    with pytest.raises(LoadError, match="and its tokenizer's fast form does not; a tokenizer whose"):
        source(folder).tokenizer_files()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 5}}'),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}, "tokenizer_class": "T"}'),
        ("tokenizer_config.json", b'{"chat_template": {"default": 5}}'),
        ("tokenizer_config.json", b'{"chat_template": {"../x": "y"}}'),
        ("special_tokens_map.json", b'{"bos_token": 5}'),
        ("added_tokens.json", b'{"a": "b"}'),
    ],
)
def test_odd_files_are_one_line(file: str, content: bytes, tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "m")
    (folder / file).write_bytes(content)
    (folder / "evil.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(LoadError) as refused:
        source(folder).tokenizer_files()
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{folder}: ")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),  # fails as it is read
        ("decoder", {"type": "Strip", "content": "e", "start": 1, "stop": 2}),  # fails where it is used
    ],
)
def test_a_panic_of_the_library_is_one_line(part: str, value: dict[str, Any], tmp_path: Path) -> None:
    folder = llama3(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {part: value}))
    with pytest.raises(LoadError) as refused:
        source(folder).tokenizer_files()
    assert type(refused.value.__cause__).__name__ == "PanicException"
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"no tokenizer: nothing here has a vocabulary that"):
        source(folder).tokenizer_files()


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gpt2(tmp_path / "m")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LoadError, match="is read with sentencepiece, or tiktoken, and neither is"):
        source(folder).tokenizer_files()
