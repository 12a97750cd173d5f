from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adaptc.compiler.cache import Cache, key_of
from adaptc.errors import AdaptcError


def test_makes_once_and_finds_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("content")

    first = cache.get("kind", "key", make)
    assert cache.get("kind", "key", make) == first == cache.find("kind", "key")
    assert first.read_text() == "content"
    assert len(made) == 1
    assert made[0] != first  # written beside its place, then renamed


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")])
def test_nothing_is_left_of_an_entry_that_failed(tmp_path: Path, error: BaseException) -> None:
    cache = Cache(tmp_path)

    def make(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        cache.get("kind", "key", make)
    assert cache.find("kind", "key") is None
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AdaptcError, match=r"cannot write to the cache: No space left on device; see `adaptc cache`$"):
        Cache(tmp_path).get("kind", "key", make)


def test_another_process_may_win(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def make(path: Path) -> None:
        path.mkdir()
        (path / "mine").write_text("1")
        rival = tmp_path / "kind" / "key"
        rival.mkdir()
        (rival / "theirs").write_text("2")

    found = cache.get("kind", "key", make)
    assert [p.name for p in found.iterdir()] == ["theirs"]
    assert [p.name for p in (tmp_path / "kind").iterdir()] == ["key"]


def test_keys_follow_content_and_not_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")
