from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptc.runtime import BundleError
from adaptc.runtime.bundle.files import replace as replace_module
from adaptc.runtime.bundle.folder import Moved, check_destination, open_bundle, write_bundle
from adaptc.runtime.bundle.manifest import (
    DecoderSpec,
    FileRecord,
    GraphSpec,
    Manifest,
    ModelRecord,
    PassRecord,
    TargetRecord,
    TensorSpec,
)
from adaptc.runtime.bundle.plan import Run

FILES: dict[str, Path | bytes] = {
    "graphs/decoder.onnx": b"graph",
    "graphs/lm.data": b"w" * 3000,
    "spec.yaml": b"x",
}


def manifest(**changes: Any) -> Manifest:
    graph = GraphSpec(
        file="graphs/decoder.onnx",
        inputs=(TensorSpec("input_ids", "int64", ("batch", "tokens")),),
        outputs=(TensorSpec("logits", "float32", ("batch", "kept", 10)),),
        data=("graphs/lm.data",),
        decoder=DecoderSpec(10, 20, ((2, 4), (1, 8)), None, (3, 4), 0),
    )
    whole = Manifest(
        adaptc="0.1.0",
        models={"lm": ModelRecord("hub/lm", None, "apache-2.0", "LlamaForCausalLM", "00")},
        passes=(PassRecord("quantize", {"block": 32, "layers": [1, 2]}, True, 0.5),),
        plan=(Run("decoder"),),
        graphs={"decoder": graph},
        gates={},
        target=TargetRecord("onnxruntime", "int4", 20, 1),
        versions={"numpy": "2.4"},
        bytes_per_token=15,
    )
    return dataclasses.replace(whole, **changes)


def test_a_file_is_moved_into_a_bundle(tmp_path: Path) -> None:
    made, weights = tmp_path / "made", b"w" * 3000
    made.write_bytes(weights)
    before = made.stat().st_ino
    moved = Moved(made, FileRecord(hashlib.sha256(weights).hexdigest(), len(weights)))
    bundle = write_bundle(tmp_path / "b", {**FILES, "graphs/lm.data": moved}, manifest())
    assert not made.exists()
    assert bundle.file("graphs/lm.data").stat().st_ino == before
    open_bundle(bundle.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def written(path: Path) -> Path:
    write_bundle(path, FILES, manifest())
    return path


def refused(path: Path, message: str) -> None:
    """Opening fails with one line."""
    with pytest.raises(BundleError, match=message) as error:
        open_bundle(path)
    assert "\n" not in str(error.value)


def test_what_is_written_is_read(path: Path) -> None:
    bundle = write_bundle(path, FILES, manifest())
    assert open_bundle(path) == bundle == open_bundle(str(path), verify=False)
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert bundle.manifest.files["spec.yaml"].bytes == 1
    assert [found.name for found in path.parent.iterdir()] == ["bundle"]


def test_a_path_is_copied(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"w" * 5_000_000)
    write_bundle(path, {**FILES, "graphs/lm.data": source}, manifest())
    source.write_bytes(b"changed")
    assert open_bundle(path).manifest.files["graphs/lm.data"].bytes == 5_000_000


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*FILES, "manifest.json"]), st.integers(0, 10**6), st.integers(1, 255))
def test_one_flipped_byte_is_noticed(written: Path, name: str, place: int, mask: int) -> None:
    file = written / name
    before = file.read_bytes()
    flipped = bytearray(before)
    flipped[place % len(before)] ^= mask
    file.write_bytes(flipped)
    try:
        if name == "manifest.json":
            with contextlib.suppress(BundleError):
                assert open_bundle(written).manifest == Manifest.from_json(before), "only spacing has changed"
        else:
            refused(written, f"{name}: damaged: its sha256 is not the manifest's; compile again$")
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_noticed(written: Path, name: str) -> None:
    file = written / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(written, f"{name}: damaged: {len(whole) - 1} bytes, not {len(whole)}; compile again$")
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(written, verify=False)
    file.unlink()
    refused(written, f"{name}: cannot read: No such file")
    file.mkdir()
    refused(written, f"{name}: cannot read: Is a directory")


def test_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "nothing: no bundle: cannot read manifest.json: No such file")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "file: no bundle: cannot read manifest.json: Not a directory")


Change = Callable[[dict[str, Any]], object]


def decoder_of(content: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = content["graphs"]["decoder"]
    return graph


CHANGES: list[tuple[Change, str]] = [
    (lambda m: m.update(schema=1), "schema: 1; this adaptc reads 2 to 8"),
    (lambda m: m.update(schema="1"), "schema: '1'; this adaptc reads 2 to 8"),
    (lambda m: m.pop("schema"), "not a manifest: no key 'schema'"),
    (lambda m: m.pop("plan"), "plan: missing"),
    (lambda m: m.update(extra=1), "extra: unknown key; there are: schema, adaptc, "),
    (lambda m: m["target"].update(batch="1"), 'target.batch: "1"; a whole number is needed'),
    (lambda m: m["target"].update(batch=True), "target.batch: true; a whole number is needed"),
    (lambda m: m["target"].pop("batch"), "target.batch: missing"),
    (lambda m: m.update(plan=[{"graph": 3}]), r"plan\[0\].graph: 3; a string is needed"),
    (lambda m: m.update(plan={}), "plan: {}; a list is needed"),
    (lambda m: m.update(plan=["decoder"]), r'plan\[0\]: "decoder"; an object is needed'),
    (lambda m: m["passes"][0].update(changed=1), r"passes\[0\].changed: 1; true or false is needed"),
    (lambda m: m["passes"][0].update(seconds="1"), r"passes\[0\].seconds: \"1\"; a number is needed"),
    (lambda m: m["models"].update(lm=None), "models.lm: null; an object is needed"),
    (
        lambda m: m["graphs"]["decoder"]["decoder"].update(kv=[[1]]),
        r"decoder.kv\[0\]: \[1\]; a list of 2 is needed",
    ),
    (lambda m: m["graphs"]["decoder"]["inputs"][0].update(shape=[1.5]), r"shape\[0\]: 1.5; a whole number"),
    (lambda m: m["target"].update(batch=2), "changed since it was written; compile again"),
    (lambda m: m.update(bytes_per_token=1), "changed since it was written; compile again"),
    (lambda m: m.update(sha256=None), "changed since it was written; compile again"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_manifest_is_read_strictly(written: Path, change: Change, message: str) -> None:
    file = written / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    refused(written, f"manifest.json: .*{message}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": NaN}', "[" * 100_000, "\ufeff{}", "\x00"])
def test_what_is_no_manifest(written: Path, text: str) -> None:
    (written / "manifest.json").write_text(text)
    refused(written, "manifest.json: (not JSON|not a manifest)")


NAMES = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "a//b",
    "./a",
    "",
    ".",
    "..",
    "a\\b",
    "C:x",
    "a\0b",
    "a/",
    "manifest.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_leave_the_bundle(path: Path, written: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"not a plain path inside the bundle$"):
        write_bundle(path, {**FILES, name: b"x"}, manifest())
    assert open_bundle(path)
    file = path / "manifest.json"
    file.write_text(resealed(file, lambda m: m["files"].update({name: m["files"]["spec.yaml"]})))
    refused(path, "manifest.json: file .*: not a plain path inside the bundle$")


def resealed(file: Path, change: Change) -> str:
    """The manifest as a forger would write it: changed, with a hash that fits."""
    content = json.loads(file.read_text())
    content.pop("sha256")
    change(content)
    from adaptc.runtime.bundle.manifest import _seal

    return json.dumps(content | {"sha256": _seal(content)})


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_cannot_leave_the_bundle(written: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("lm.data", "decoder.onnx"):
        (written / "graphs" / name).rename(outside / name)
    if link == "file":
        (written / "graphs/lm.data").symlink_to(outside / "lm.data")
        (outside / "decoder.onnx").rename(written / "graphs/decoder.onnx")
    else:
        (written / "graphs").rmdir()
        (written / "graphs").symlink_to(outside)
    refused(written, "leads out of the bundle$")


def test_what_a_graph_needs_is_in_the_bundle(path: Path) -> None:
    with pytest.raises(BundleError, match=r"graphs\.decoder: 'graphs/lm\.data' is not among the bundle"):
        write_bundle(path, {"graphs/decoder.onnx": b"x"}, manifest())
    with pytest.raises(BundleError, match=r"plan\[0\]: no graph 'other'"):
        write_bundle(path, FILES, manifest(plan=(Run("other"),)))
    with pytest.raises(BundleError, match=r"^manifest: .*; plain, finite JSON values are needed$"):
        write_bundle(path, FILES, manifest(passes=(PassRecord("gptq", {"damp": float("nan")}, True, 0.5),)))
    assert not list(path.parent.iterdir())


def test_only_a_bundle_is_replaced(path: Path, tmp_path: Path) -> None:
    path.mkdir()
    write_bundle(path, FILES, manifest())  # an empty folder is fine
    write_bundle(path, FILES, manifest())
    for name in ("precious", "manifest.json"):
        other = tmp_path / f"other {name}"
        other.mkdir()
        (other / name).write_text("{}")
        with pytest.raises(BundleError, match="exists and is not a bundle"):
            write_bundle(other, FILES, manifest())
        assert (other / name).read_text() == "{}"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        check_destination(file)


def test_a_link_to_a_bundle_stays_a_link(written: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written)
    write_bundle(link, {**FILES, "spec.yaml": b"new"}, manifest())
    assert link.is_symlink()
    assert open_bundle(written).manifest.files["spec.yaml"].bytes == 3


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Fault:
    """Fails the n-th call of a function of `os`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, call: int) -> None:
        original, calls = getattr(os, name), iter(range(10_000))

        def failing(*arguments: object, **options: object) -> object:
            if next(calls) == call:
                raise error
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("call", range(5))
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()],
    ids=["full", "interrupt"],
)
def test_an_interrupted_write_leaves_the_old_bundle(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: int, old: bool, error: BaseException
) -> None:
    if old:
        write_bundle(path, FILES, manifest())
    with monkeypatch.context() as patch:
        Fault(patch, "fsync", error, call)
        with pytest.raises((BundleError, KeyboardInterrupt)) as raised:
            write_bundle(path, {**FILES, "spec.yaml": b"new"}, manifest())
    if isinstance(error, OSError):
        assert raised.match(rf"{path}: cannot write .*: No space left on device$")
    assert [found.name for found in path.parent.iterdir()] == (["bundle"] if old else [])
    if old:
        assert open_bundle(path).manifest.files["spec.yaml"].bytes == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"cannot write \.: Not a directory$"):
        write_bundle(tmp_path / "file" / "bundle", FILES, manifest())
    with pytest.raises(BundleError, match=r"cannot write graphs/lm\.data: No such file"):
        write_bundle(tmp_path / "bundle", {**FILES, "graphs/lm.data": tmp_path / "missing"}, manifest())
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two steps"])
def test_two_writers_never_mix(path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(replace_module, "_exchanged", lambda new, place: False)
    write_bundle(path, FILES, manifest())
    failures: list[BaseException] = []
    done = threading.Event()

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    def write(letter: bytes) -> None:
        for _ in range(15):
            write_bundle(path, dict.fromkeys(FILES, letter * 5000), manifest())

    def read() -> None:
        while not done.is_set():
            hashes = {record.sha256 for name, record in open_bundle(path).manifest.files.items()}
            assert len(hashes) in (1, 3), "all files are of one writer"

    writers = [threading.Thread(target=attempt, args=(lambda x=x: write(x),)) for x in (b"a", b"b")]
    readers = [threading.Thread(target=attempt, args=(read,))] if exchange else []
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join(60)
    done.set()
    for thread in readers:
        thread.join(60)
    assert not failures
    assert len({(path / name).read_bytes() for name in FILES}) == 1
    assert open_bundle(path)
    assert [found.name for found in path.parent.iterdir()] == ["bundle"]


def test_a_crash_between_the_two_steps_puts_the_old_bundle_back(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replace_module, "_exchanged", lambda new, place: False)
    tries = iter([False])

    def renamed(new: Path, place: Path) -> bool:
        try:
            return next(tries)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(replace_module, "_renamed", renamed)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(written, {**FILES, "spec.yaml": b"new"}, manifest())
    assert open_bundle(written).manifest.files["spec.yaml"].bytes == 1
    assert [found.name for found in written.parent.iterdir()] == ["bundle"]
