"""Files that a stranger made, or that this user may not read: one line each, and at once."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.sources.gguf.file import read_gguf
from adaptc.spec.schema import ModelSpec
from tests.attacks.outcomes import attempt
from tests.models import folder

NOBODY = 65534
HUGE = 1 << 36  # of a file with nothing in it, which takes no room


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(LoadError) as refused:
        work()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def header(*values: bytes, tensors: int = 0, keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(values)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def flag(key: bytes) -> bytes:
    return text(key) + struct.pack("<IB", 7, 1)


def tensor(name: bytes, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<IQIQ", 1, 4, 0, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(struct.pack("<Q", 1 << 33)), "a value of 8,589,934,592 bytes in the header; the file is damaged"),
        (
            header(text(b"a"), struct.pack("<IIQ", 9, 0, 1 << 35)),
            "an array of 34,359,738,368 values in the header",
        ),
        (header(text(b"a"), struct.pack("<IIQ", 9, 8, 1 << 32)), "an array of 4,294,967,296 values in the header"),
        (header(flag(b"a"), flag(b"a"), keys=2), "the key 'a' stands twice in the header; the file is damaged"),
        (header(keys=1 << 60), "the key '' stands twice in the header; the file is damaged"),
        (header(tensor(b"w"), tensor(b"w"), keys=0, tensors=2), "two tensors are named 'w'; the file is damaged"),
    ],
)
def test_a_header_that_asks_for_more_than_any_model_has(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    os.truncate(path, HUGE)
    assert refusal(lambda: read_gguf(path)).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("offset", "starts"), [(0, 96), (16, 112), (64, 160)])  # 128 is 16 bytes, padded, on
def test_tensors_that_share_bytes_or_leave_a_gap_are_refused_as_llama_cpp_does(
    offset: int, starts: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensor(b"v"), tensor(b"w", offset), keys=0, tensors=2).ljust(256, b"\0"))
    message = f"tensor w starts at byte {starts}; 128, where the one before it ends, is right; the file is damaged"
    assert refusal(lambda: read_gguf(path)) == f"{path}: {message}"
    path.write_bytes(header(tensor(b"v"), tensor(b"w", 32), keys=0, tensors=2).ljust(256, b"\0"))
    assert [place.start for place in read_gguf(path).tensors.values()] == [96, 128]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder in which `model` is one."""
    folder.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1, 99_999_999])
def test_weights_that_cannot_be_right_are_refused_before_they_are_hashed(length: int, model: Path) -> None:
    file = model / "model" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length))
    os.truncate(file, 1 << 42)  # which takes an hour to hash
    source = find_source(ModelSpec(source="model"), model)
    assert refusal(source.sha256).startswith("model: model.safetensors is damaged or cut short: ")


@pytest.mark.skipif(sys.platform == "win32" or os.name != "posix", reason="permissions")
@pytest.mark.parametrize("closed", ["", "config.json", "tokenizer.json", "model.safetensors", "README.md"])
def test_what_this_user_may_not_read_is_one_line(closed: str) -> None:
    def look() -> list[str]:
        if os.geteuid() == 0:  # who may read everything
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            source = find_source(ModelSpec(source="model"), base)
        except LoadError as error:
            return [str(error)]
        said = []
        for ask in (source.config, source.tokenizer_files, source.tensors, source.sha256, source.remarks):
            try:
                ask()
            except LoadError as error:
                said.append(str(error))
        return [*said, f"licence {source.licence()}"]

    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to others
        base = Path(scratch)
        folder.write(base)
        (base / "model" / "README.md").write_text("---\nlicense: mit\n---")
        for path in (base, *base.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (base / "model" / closed).chmod(0)
        told = attempt(look)
        (base / "model" / closed).chmod(0o755)
    assert told.kind == "value", told
    *refused, last = told.value
    if closed == "README.md":
        assert (refused, last) == ([], "licence None")
    else:
        assert all(line.endswith("cannot be read: Permission denied") for line in refused)
        assert last.endswith("cannot be read: Permission denied" if not closed else "licence mit")
        assert bool(refused) == bool(closed)


@pytest.mark.parametrize("name", ["a" * 5000, "~nosuchuser/model", "a\0b", "m/" * 3000])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    assert len(refusal(lambda: find_source(ModelSpec(source=name), tmp_path))) < 12_000


def test_whole_weights_are_hashed(model: Path) -> None:
    """A negative control of the look at headers."""
    source = find_source(ModelSpec(source="model"), model)
    before = source.sha256()
    save_file({"a": torch.zeros(2)}, model / "model" / "model.safetensors")
    assert source.sha256() != before
