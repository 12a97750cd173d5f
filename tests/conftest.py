"""What tests share: golden texts, and the real SmolLM2 compiled once."""

from __future__ import annotations

import fcntl
import functools
import gc
import importlib
import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PASSES = Path(__file__).parent / "passes"
GOLDEN = Path(__file__).parent / "golden"
EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2" / "model.yaml"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="Rewrite golden texts with what was got.")
    parser.addoption("--gpu-bundles", type=Path, metavar="DIR", help="Bundles of `python -m tests.gpu.prepare DIR`.")
    parser.addoption("--smollm2", type=Path, metavar="BUNDLE", help="Use this bundle of SmolLM2 instead of compiling.")


def pytest_configure() -> None:
    """Set up a process that tests run in."""
    # A shell lets what it runs in the background ignore Ctrl-C, and so would all that tests start to interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        # A core each: engines and torch start as many threads as there are cores, and wait for each other by spinning.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})
    # Exporting makes millions of objects, hardly any in a cycle, and looking for some took a fifth of its time.
    gc.set_threshold(50_000, 20, 100)
    _parse_translations_once()


def _parse_translations_once() -> None:
    """Keep the list of onnxscript's translations, which torch's exporter has it parse anew for every graph.

    That takes most of a second, and tests export some hundred graphs.
    """
    if importlib.util.find_spec("torch") is None:  # a GPU machine has the runtime alone
        return
    apis: Any = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share something dear stay in one worker, and the longest come first.

    Dear are the compiled SmolLM2, tiny models after `lower` (models/tiny.py keeps them), and fixtures of a module.
    """

    def group(item: pytest.Item) -> str:
        marker = item.get_closest_marker("xdist_group")
        if marker is not None:
            return str(marker.args[0])
        apart = item.path.name in ("test_calibrate.py", "test_blockwise.py")  # they lower nothing that others do
        return "programs" if PASSES in item.path.parents and not apart else item.path.name

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    first = ("smollm2", "programs", "test_calibrate.py", "test_compile.py")
    items.sort(key=lambda item: first.index(group(item)) if group(item) in first else len(first))


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as examples/smollm2 compiles it: a bundle that tests read and never change.

    Its test carries the mark `model`, and `xdist_group("smollm2")` so that one worker runs them all.
    """
    from adaptc.compiler.cache import Cache
    from adaptc.compiler.driver import compile_spec
    from adaptc.spec.reading import read_spec

    given: Path | None = request.config.getoption("--smollm2")
    if given is not None:
        return given.resolve()
    # Workers of xdist have folders of their own below one that they share.
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    into = folder / "smollm2"
    with (folder / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not into.exists():
            compile_spec(read_spec(EXAMPLE), EXAMPLE.parent, into, Cache(folder / "cache" / "adaptc"))
    return into


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>.txt."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--accept"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.name}: no golden text; make it with --accept and review it"
        assert text == path.read_text(encoding="utf-8")

    return compare
