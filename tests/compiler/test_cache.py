from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from adaptc.compiler.cache import CONTENT, SEAL, Cache, Cleared, key_of
from adaptc.errors import AdaptcError
from adaptc.passes.store import Layered, Memory
from adaptc.runtime.bundle.files.partials import partial_folder

KEY, OTHER = key_of("one"), key_of("other")


def write_file(path: Path) -> None:
    path.write_text("content")


def write_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "a").write_text("first")
    (path / "b").write_text("second")


def flip(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_makes_once_and_finds_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("content")

    first = cache.get("kind", KEY, make)
    assert cache.get("kind", KEY, make) == first == cache.find("kind", KEY)
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
        cache.get("kind", KEY, make)
    assert cache.find("kind", KEY) is None
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AdaptcError, match="cannot write to the cache: No space left on device"):
        Cache(tmp_path).get("kind", KEY, make)


def test_the_full_disk_of_safetensors_is_one_line(tmp_path: Path) -> None:
    """It has an error of its own, in these words; tests/attacks/room.py has it meet a real limit."""
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    other = SafetensorError("Error while serializing: header too large")

    def refuse(error: Exception) -> None:
        raise error

    with pytest.raises(AdaptcError, match="cannot write to the cache: No space left on device"):
        Cache(tmp_path).get("kind", KEY, lambda path: refuse(full))
    with pytest.raises(SafetensorError):  # of the content, not of the disk
        Cache(tmp_path).get("kind", KEY, lambda path: refuse(other))


def test_an_entry_that_is_cleared_while_it_is_read_is_made_again(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path), []

    def make(path: Path) -> None:
        path.mkdir()
        (path / "a").write_text("content")
        made.append(path)

    def read(path: Path) -> str:
        if len(made) == 1:
            cache.clear()
        return (path / "a").read_text()

    assert cache.use("kind", KEY, make, read) == "content"
    assert len(made) == 2
    assert cache.use("kind", KEY, make, read) == "content"
    assert len(made) == 2


def test_what_a_reader_of_an_entry_raises_is_raised(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Cache(tmp_path).use("kind", KEY, Path.touch, read)


def test_another_process_may_win(tmp_path: Path) -> None:
    cache, theirs = Cache(tmp_path), tmp_path / "begun"

    def make(path: Path) -> None:
        if not theirs.exists():
            theirs.write_text("there")
            Cache(tmp_path).put("kind", KEY, make)
            path.write_text("mine")
        else:
            path.write_text("theirs")

    assert cache.get("kind", KEY, make).read_text() == "theirs"
    assert [p.name for p in (tmp_path / "kind").iterdir()] == [KEY]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    renamed: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def flush(file: int) -> None:
        flushed.append(file)
        fsync(file)

    def move(path: Path, to: Path) -> Path:
        renamed.append(len(flushed))
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", move)
    Cache(tmp_path).put("kind", KEY, write_folder)
    assert renamed[-1] == 3 + 3  # two files and the seal, three folders
    assert len(flushed) == 7  # and the folder that has the new name


@pytest.mark.parametrize("file", [f"{CONTENT}/inner/a", f"{CONTENT}/b", SEAL])
def test_a_damaged_entry_is_dropped_and_made_again(tmp_path: Path, file: str) -> None:
    cache = Cache(tmp_path)
    cache.put("kind", KEY, write_folder)
    flip(tmp_path / "kind" / KEY / file)
    assert cache.find("kind", KEY) is None
    assert list((tmp_path / "kind").iterdir()) == []
    again = cache.get("kind", KEY, write_folder)
    assert (again / "inner" / "a").read_text() == "first"
    assert cache.find("kind", KEY) == again


@pytest.mark.parametrize("damage", ["missing", "more", "link", "moved"])
def test_an_entry_that_is_not_what_was_written_is_damaged(tmp_path: Path, damage: str) -> None:
    cache, key = Cache(tmp_path), KEY
    content = cache.put("kind", KEY, write_folder)
    match damage:
        case "missing":
            (content / "b").unlink()
        case "more":
            (content / "c").write_text("")
        case "link":
            (content / "c").symlink_to(content / "inner")
        case _:
            key = OTHER
            (tmp_path / "kind" / KEY).rename(tmp_path / "kind" / OTHER)
    assert cache.find("kind", key) is None


def test_clearing_deletes_nothing_but_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("kind", KEY, write_file)
    cache.put("other", OTHER, write_folder)
    thesis = tmp_path / "kind" / "thesis" / "years.txt"
    named_alike = tmp_path / "kind" / OTHER / "years.txt"  # a key's name without a seal
    beside = tmp_path / "years.txt"
    for path in (thesis, named_alike, beside):
        path.parent.mkdir(exist_ok=True)
        path.write_text("of work")
    (tmp_path / "linked").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    Cache(outside).put("kind", KEY, write_file)
    (tmp_path / "linked" / KEY).symlink_to(outside / "kind" / KEY)
    assert cache.clear("other").bytes > 0
    assert cache.find("kind", KEY) is not None
    assert cache.clear().bytes > 0
    assert [entry.state for entry in cache.entries()] == ["unsealed"]
    assert all(path.read_text() == "of work" for path in (thesis, named_alike, beside))
    assert Cache(outside).find("kind", KEY) is not None
    assert not (tmp_path / "other").exists()


def test_what_a_killed_writer_left_is_counted_and_goes_at_the_next_write(tmp_path: Path) -> None:
    program = (
        "import os, pathlib\nfrom adaptc.compiler.cache import Cache\n"
        "def make(path):\n    path.write_bytes(bytes(1000))\n    os._exit(9)\n"
        f"Cache(pathlib.Path({str(tmp_path)!r})).put('kind', {KEY!r}, make)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    cache = Cache(tmp_path)
    [left] = cache.entries()
    assert (left.kind, left.key, left.state) == ("kind", KEY, "unfinished")
    assert left.bytes > 1000
    cache.put("elsewhere", OTHER, write_file)
    [entry] = cache.entries()
    assert entry.state == "whole"
    assert list((tmp_path / "kind").iterdir()) == []


def test_the_unfinished_entry_of_a_writer_that_lives_stays(tmp_path: Path) -> None:
    cache, seen = Cache(tmp_path), list[bool]()

    def make(path: Path) -> None:
        path.write_text("slow")
        Cache(tmp_path).put("kind", OTHER, write_file)
        seen.append(path.exists())
        seen.append(all(entry.state == "whole" for entry in cache.entries()))

    cache.put("kind", KEY, make)
    assert seen == [True, True]


def test_a_writer_of_another_host_or_container_is_known_by_its_lock(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "kind" / KEY) as folder:
        (folder / "entry").mkdir()
        Cache(tmp_path).put("kind", OTHER, write_file)
        assert folder.exists()
        held = shutil.copytree(folder, tmp_path / "kind" / f".{KEY}.00000000.partial")  # as a killed one leaves it
        assert [entry.path for entry in Cache(tmp_path).entries() if entry.state == "unfinished"] == [held]
    Cache(tmp_path).put("kind", OTHER, write_file)
    assert not held.exists()


@pytest.mark.parametrize("name", [f".{KEY}.00000000.partial", f".{KEY}.elsewhere.1.00000000.partial"])
def test_what_has_no_lock_is_counted_and_stays(tmp_path: Path, name: str) -> None:
    """Earlier versions left such folders; so may anyone have."""
    left = tmp_path / "kind" / name / "content"
    left.mkdir(parents=True)
    (left / "a").write_bytes(bytes(9))
    cache = Cache(tmp_path)
    cache.put("other", OTHER, write_file)
    assert [(entry.bytes, entry.state) for entry in cache.entries() if entry.kind == "kind"] == [(9, "unsealed")]
    assert cache.clear().left == ()
    assert left.exists()


def test_foreign_files_in_an_entry_are_not_deleted(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("kind", KEY, write_folder)
    for notes in (tmp_path / "kind" / KEY / "notes.txt", tmp_path / "kind" / KEY / CONTENT / "inner" / "notes.txt"):
        notes.write_text("years of work")
        cleared = cache.clear()
        assert [entry.key for entry in cleared.left] == [KEY]
        assert cleared.bytes == 0
        assert notes.read_text() == "years of work"
        assert cache.find("kind", KEY) is None  # it is not what was written
        [kept] = (tmp_path / "kind").rglob("notes.txt")
        assert kept.read_text() == "years of work"
        assert cache.get("kind", KEY, write_folder).exists()
        shutil.rmtree(next((tmp_path / "kind").glob("*.kept.*")))


@pytest.mark.parametrize("kind", ["../x", "*", "kind/../../x", ""])
def test_a_kind_is_a_name_and_no_pattern(tmp_path: Path, kind: str) -> None:
    inside, outside = Cache(tmp_path / "cache"), Cache(tmp_path / "x")
    inside.put("kind", KEY, write_file)
    outside.put("kind", KEY, write_file)
    assert inside.clear(kind) == Cleared(0, ())
    assert inside.find("kind", KEY) is not None
    assert outside.find("kind", KEY) is not None


def test_links_are_never_followed(tmp_path: Path) -> None:
    other, cache = Cache(tmp_path / "other"), Cache(tmp_path / "cache")
    other.put("kind", KEY, write_folder)
    cache.root.mkdir()
    (cache.root / "kind").symlink_to(tmp_path / "other" / "kind")
    (cache.root / "own").mkdir()
    (cache.root / "own" / KEY).symlink_to(tmp_path / "other" / "kind" / KEY)
    assert list(cache.entries()) == []
    assert cache.clear() == Cleared(0, ())
    assert cache.find("own", KEY) is None
    assert other.find("kind", KEY) is not None


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("file", [CONTENT, SEAL])
@pytest.mark.parametrize(
    "put", [pipe, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path), Path.mkdir]
)
def test_what_has_no_end_is_not_read(tmp_path: Path, file: str, put: Callable[[Path], None]) -> None:
    cache = Cache(tmp_path)
    cache.put("kind", KEY, write_file)
    (tmp_path / "kind" / KEY / file).unlink()
    put(tmp_path / "kind" / KEY / file)
    assert len(list(cache.entries())) == 1
    assert cache.find("kind", KEY) is None
    assert cache.get("kind", KEY, write_file).read_text() == "content"


def test_an_entry_without_a_seal_is_made_anew_beside_it(tmp_path: Path) -> None:
    """As earlier versions wrote them: a file or a folder in an entry's place."""
    for write in (write_file, write_folder):
        cache = Cache(tmp_path / write.__name__)
        old = cache.root / "kind" / KEY
        old.parent.mkdir(parents=True)
        write(old)
        assert [entry.state for entry in cache.entries()] == ["unsealed"]
        assert cache.clear() == Cleared(0, ())
        assert cache.put("kind", KEY, write_file).read_text() == "content"
        assert len(list(old.parent.glob("*.kept.*"))) == 1


def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.put("kind", KEY, write_file)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("utime", "rename", "mkdir", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert cache.find("kind", KEY) is not None
    assert [entry.key for entry in cache.clear().left] == [KEY]
    with pytest.raises(AdaptcError, match="cannot write to the cache: Read-only file system"):
        cache.put("kind", OTHER, write_file)


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, root in (("", tmp_path / ".cache"), ("relative", tmp_path / ".cache"), ("/x", Path("/x"))):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert Cache.default().root == root / "adaptc"


def test_a_seal_says_what_it_is(tmp_path: Path) -> None:
    Cache(tmp_path).put("kind", KEY, write_file)
    seal = json.loads((tmp_path / "kind" / KEY / SEAL).read_text())
    assert (seal["kind"], seal["key"], list(seal["files"])) == ("kind", KEY, [CONTENT])


def test_pieces_of_passes_are_entries_of_one_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.read("gptq", KEY) is None
    cache.write("gptq", KEY, b"codes")
    assert cache.read("gptq", KEY) == b"codes"
    flip(tmp_path / "gptq" / KEY / CONTENT)
    assert cache.read("gptq", KEY) is None


def test_memory_stands_behind_what_lasts(tmp_path: Path) -> None:
    cache, memory = Cache(tmp_path), Memory()
    memory.write("gptq", KEY, b"codes")
    both = Layered(cache, memory)
    assert both.read("gptq", KEY) == b"codes"
    assert cache.read("gptq", KEY) == b"codes"  # handed on
    both.write("gptq", OTHER, b"more")
    assert (memory.read("gptq", OTHER), cache.read("gptq", OTHER)) == (b"more", b"more")


def test_memory_forgets_what_was_not_asked_for_longest() -> None:
    memory = Memory(limit=10)
    for key in "abc":
        memory.write("kind", key, b"1234")
        assert memory.read("kind", "a") == b"1234"
    assert [memory.read("kind", key) for key in "abc"] == [b"1234", None, b"1234"]


def test_keys_follow_content_and_not_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")
