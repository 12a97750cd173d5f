"""Options of `load` are checked for every kind of bundle, and only files that the manifest names are opened."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.runtime import AdaptcError, BundleError, RequestError
from adaptc.runtime.bundle.manifest import Manifest
from tests.opened_files import opened_with_planted
from tests.repo import ROOT

STORED = ROOT / "tests" / "stored" / "schema3"
IDS = [5, 9, 40, 7]


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return shutil.copytree(STORED / "gated", tmp_path / "gated")


def text_of(path: Path, **options: Any) -> tuple[int, ...]:
    with runtime.load(path, threads=1, **options) as session:
        return tuple(session.generate(IDS, max_new_tokens=4).ids)


def refused(path: Any, kind: type[AdaptcError], message: str, **options: Any) -> None:
    """Loading fails with one line."""
    with pytest.raises(kind, match=message) as error:
        runtime.load(path, **options)
    assert "\n" not in str(error.value)
    str(error.value).encode()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"device": "tpu"}, r"^device: 'tpu'; there are: auto, cpu, cuda, gpu, cuda:1 and so on$"),
    ({"device": "cuda:"}, r"^device: 'cuda:'; there are"),
    ({"device": "cuda:-1"}, r"^device: 'cuda:-1'; there are"),
    ({"device": "CUDA"}, r"^device: 'CUDA'; there are"),
    ({"device": None}, r"^device: None; there are"),
    ({"device": "cuda", "threads": 2}, r"^threads: has no meaning for .*gated: it runs on a GPU; leave it out$"),
    ({"device": "cuda:1", "prefix_bytes": 1}, r"^prefix_bytes: has no meaning for .*gated: it runs on a GPU"),
    ({"device": "gpu", "routes": ["a"]}, r"^routes: has no meaning for .*gated: it runs on a GPU, which loads all"),
    ({"threads": "2"}, r"^threads: '2'; a whole number from 1 to 1024 is needed$"),
    ({"threads": 0}, r"^threads: 0; "),
    ({"threads": True}, r"^threads: True; "),
    ({"threads": 1.0}, r"^threads: 1\.0; "),
    ({"threads": 10**9}, r"^threads: 1000000000; "),
    ({"batch": 0}, r"^batch: 0; "),
    ({"batch": float("nan")}, r"^batch: nan; "),
    ({"batch": 10**30}, r"^batch: 10+; "),
    ({"chunk": -1}, r"^chunk: -1; "),
    ({"chunk": [1]}, r"^chunk: \[1\]; "),
    ({"routes": "large"}, r"^routes: 'large'; a list of names is needed$"),
    ({"routes": []}, r"^routes: \[\]; one name or more, each once, are needed$"),
    ({"routes": ["a", "a"]}, r"^routes: \['a', 'a'\]; one name"),
    ({"routes": ["large"]}, r"^routes: 'large'; .*gated has no routes: leave it out$"),
    ({"verify": 1}, r"^verify: 1; True or False is needed$"),
    ({"verify": "no"}, r"^verify: 'no'; "),
    ({"budget": 2}, r"^budget: 2; "),
    ({"budget": "0.5"}, r"^budget: '0\.5'; "),
    ({"cache_bytes": -1}, r"^cache_bytes: -1; a whole number from 0"),
    ({"cache_bytes": False}, r"^cache_bytes: False; "),
    ({"cache_bytes": 0}, r"^cache_bytes: has no meaning for .*gated: it has no encoder"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    refused(STORED / "gated", RequestError, message, **options)


@pytest.mark.parametrize("path", [None, 3, b"bundle", ["bundle"], "", "a\0b", "\ud800", True])
def test_wrong_paths(path: Any) -> None:
    refused(
        path, RequestError, "^path: .*; (the name of a bundle's folder|a name that this system can have) is needed$"
    )


def test_a_path_that_is_no_bundle(tmp_path: Path) -> None:
    refused("x" * 5000, BundleError, "no bundle: cannot read manifest.json: File name too long")
    refused(tmp_path, BundleError, "no bundle: cannot read manifest.json: No such file")


def test_options_that_numpy_made_and_the_largest_chunk() -> None:
    whole = text_of(STORED / "gated")
    assert text_of(STORED / "gated", batch=np.int64(2), chunk=np.int32(3)) == whole
    assert text_of(STORED / "gated", chunk=1 << 16) == whole


def test_a_budget_without_gates_is_refused_when_it_is_loaded() -> None:
    stitched = json.loads((STORED / "stitched" / "manifest.json").read_text())
    assert stitched["plan"][1]["router"] is not None
    with runtime.load(STORED / "stitched", threads=1, budget=0.5) as session:
        assert session.routes


def test_a_session_says_whether_its_files_were_compared() -> None:
    for verify in (True, False):
        with runtime.load(STORED / "gated", threads=1, verify=verify) as session:
            assert session.verified is verify


def test_damaged_weights_are_refused_though_they_are_compared_while_the_engine_loads(gated: Path) -> None:
    file = gated / "graphs" / "lm.data"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    refused(gated, BundleError, r"graphs/lm\.data: damaged: its sha256 is not the manifest's; compile again$")
    assert text_of(gated, verify=False)


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_loaded_again(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mix of the old manifest and new files would answer, and answer wrong."""
    from adaptc.runtime import loading

    read = loading.tokenizer_of
    replaced: list[object] = []

    def tokenizer_of(bundle: Any) -> Any:
        if not replaced:
            replaced.append(shutil.move(gated, tmp_path / "old"))
            shutil.copytree(STORED / "stitched", gated)
        return read(bundle)

    monkeypatch.setattr(loading, "tokenizer_of", tokenizer_of)
    with runtime.load(gated, threads=1) as session:
        assert session.routes, "the stitched one"


@pytest.mark.parametrize("kind", ["gated", "stitched"])
def test_only_files_that_the_manifest_names_are_opened(kind: str, tmp_path: Path) -> None:
    bundle = shutil.copytree(STORED / kind, tmp_path / kind)
    opened = opened_with_planted(
        bundle,
        f"from adaptc import runtime\nwith runtime.load({str(bundle)!r}, threads=1) as session:\n"
        "    session.generate([5, 9], max_new_tokens=2)\n    repr(session)\n"
        "    session.chat([{'role': 'user', 'content': 'hi'}], max_new_tokens=1)\n"
        f"runtime.load_tokenizer({str(bundle)!r}).render([{{'role': 'user', 'content': 'hi'}}])",
    )
    assert len(opened) > 4


def test_an_unlisted_template_is_not_obeyed(gated: Path) -> None:
    file = gated / "manifest.json"
    content = json.loads(file.read_text())
    del content["sha256"], content["files"]["tokenizer/chat_template.jinja"]
    file.write_text(resealed(content))
    (gated / "tokenizer" / "chat_template.jinja").write_text("obey")
    with runtime.load(gated, threads=1) as session, pytest.raises(RequestError, match="no chat template"):
        session.chat([{"role": "user", "content": "hi"}])


def resealed(content: dict[str, Any]) -> str:
    """A manifest as a forger would write it."""
    from adaptc.runtime.bundle.manifest import _seal

    return json.dumps(content | {"sha256": _seal(content)})


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # the name itself may be too long for a socket
        os.close(folder)


IN_ITS_PLACE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (pipe, "not a plain file"),
    "a socket": (listener, "No such device"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "leads out of the bundle"),
    "a link to a pipe": (lambda path: (pipe(path.with_name("p")), path.symlink_to("p"))[1], "not a plain file"),  # type: ignore[func-returns-value]
}


@pytest.mark.skipif(sys.platform != "linux", reason="makes sockets by /proc")
@pytest.mark.parametrize("what", IN_ITS_PLACE)
@pytest.mark.parametrize("name", ["manifest.json", "graphs/lm.data", "tokenizer/tokenizer.json", "spec.yaml"])
def test_what_is_no_file_is_not_read(gated: Path, name: str, what: str) -> None:
    put, message = IN_ITS_PLACE[what]
    (gated / name).unlink()
    put(gated / name)
    for verify in (True, False):
        refused(gated, BundleError, message, verify=verify)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a manifest has values that are no lists and objects, and where it has those."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, each in items for leaf in leaves(each, (*path, key)))] if path or items else [path]


ABSURD: list[Any] = [
    *(0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63), 1.5, 1e308, True, None),
    *("", "x", "../x", "/etc/passwd", "\0", "é" * 300, "é́"),
    *([], {}, [[]], [-1], ["x"], {"x": {}}, [2**40] * 3),
]


@pytest.mark.parametrize("kind", ["gated", "stitched"])
def test_absurd_values_in_a_resealed_manifest_are_one_line(kind: str, tmp_path: Path) -> None:
    """Of every place a value; what still loads must answer, or refuse, in bounded time and memory."""
    bundle = shutil.copytree(STORED / kind, tmp_path / kind)
    file = bundle / "manifest.json"
    whole = json.loads(file.read_text())
    del whole["sha256"]
    random = np.random.default_rng(0)
    places = [path for path in leaves(whole) if path and path[0] not in ("passes", "versions", "models")]
    loaded = 0
    for path in (places[index] for index in random.permutation(len(places))[:120]):
        content = json.loads(json.dumps(whole))
        holder: Any = content
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = ABSURD[random.integers(len(ABSURD))]
        file.write_text(resealed(content))
        try:
            Manifest.from_json(file.read_bytes())
            text_of(bundle)
            loaded += 1
        except AdaptcError as error:
            several = "\n" in str(error)
        else:
            several = False
        assert not several, path
    assert loaded < 60, "most are refused, or nothing was tried"


def test_routes_that_are_not_asked_for_are_not_loaded() -> None:
    stitched = STORED / "stitched"
    with runtime.load(stitched, threads=1) as session:
        first, *_, last = session.routes
        expected = [session.generate(IDS, max_new_tokens=4, route=route).ids for route in (last, first)]
    with runtime.load(stitched, threads=1, routes=[last, first]) as session:
        assert session.routes == (last, first)
        assert not session.takes_budget  # the router needs all
        assert session.generate(IDS, max_new_tokens=4).ids == expected[0]
        assert session.generate(IDS, max_new_tokens=4, route=first).ids == expected[1]
    with runtime.load(stitched, threads=1, routes=[last]) as session:
        assert session.generate(IDS, max_new_tokens=4).ids == expected[0]
        with pytest.raises(RequestError, match=f"^route: no route {first!r}; there are: {last}$"):
            session.generate(IDS, max_new_tokens=4, route=first)
    refused(stitched, RequestError, f"^routes: 'none'; there are: {first}, ", routes=["none"])
