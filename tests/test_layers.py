"""Who may import whom: runtime <- passes <- adaptc, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo import PACKAGES, ROOT, TOP, Import, all_modules, below, imports, modules

LATE = {"onnxruntime", "tokenizers", "jinja2", "cuda", "llguidance", "opentelemetry", "PIL"}
"""What the runtime may import in functions."""

SERVER = "adaptc.runtime.server"
"""The rooms of the extra `serve`, which a process without a server never imports."""

WEB = {"starlette", "uvicorn"}
"""What they may import at once."""

RAY = ("adaptc.runtime.server.scaling.ray_app", "adaptc.runtime.server.scaling.ray_router")
"""The modules that Ray Serve loads: they alone know it, and nothing of ours imports them."""

JINJA = "adaptc.runtime.text.jinja"
"""The room that may import Jinja at once, as it makes classes of Jinja's; it is itself imported in functions."""

PASSES_KNOW = {"passes", "runtime", "ir", "errors"}
"""What of adaptc the passes may know."""

HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "pydantic", "yaml", "rich"}
HEAVY |= {"tokenizers", "jinja2", "gguf", "safetensors", "huggingface_hub"}

ALL = all_modules()
RAY_FILES = {ALL[name] for name in RAY}
SERVER_FILES = {file for name, file in ALL.items() if f"{name}.".startswith(f"{SERVER}.")}


def of(*packages: str) -> list[object]:
    return [
        pytest.param(file, id=str(file.relative_to(ROOT)))
        for package in packages
        for room in below(package)
        for file in modules(room).values()
    ]


def outside(found: Import) -> bool:
    """Whether it is neither adaptc's nor Python's own."""
    top = found.name.partition(".")[0]
    return top != "adaptc" and top not in sys.stdlib_module_names


def told(file: Path, found: Import) -> str:
    return f"{file.relative_to(ROOT)}:{found.line}: imports {found.name}"


@pytest.mark.parametrize("file", of("adaptc.runtime"))
def test_the_runtime_stands_alone(file: Path) -> None:
    for found in imports(file):
        if outside(found):
            top = found.name.partition(".")[0]
            at_once = {"numpy"} | ({"jinja2"} if file in modules(JINJA).values() else set())
            at_once |= WEB if file in SERVER_FILES else set()
            at_once |= {"ray"} if file in RAY_FILES else set()
            late = found.name in LATE or top in LATE
            assert top in at_once or (late and not found.at_once) or found.checked_only, told(file, found)
        elif found.name.startswith("adaptc"):
            assert found.name.startswith("adaptc.runtime"), told(file, found)


def test_only_the_server_and_its_command_know_the_server() -> None:
    users = [file for name, file in ALL.items() if file not in SERVER_FILES and name != "adaptc.cli.running.serve"]
    assert not [told(file, found) for file in users for found in imports(file) if found.name.startswith(SERVER)]


def test_nothing_imports_what_needs_ray() -> None:
    assert not [told(file, found) for file in ALL.values() for found in imports(file) if found.name.startswith(RAY)]


def test_what_needs_jinja_is_imported_late() -> None:
    needs = {f"{JINJA}.sandbox", f"{JINJA}.counting"}
    users = [file for name, file in ALL.items() if not name.startswith(JINJA)]
    assert not [told(file, found) for file in users for found in imports(file) if found.at_once and found.name in needs]


@pytest.mark.parametrize("file", of("adaptc.passes"))
def test_passes_know_programs_and_graphs_only(file: Path) -> None:
    for found in imports(file):
        if found.name.startswith("adaptc"):
            module = found.name.removeprefix("adaptc.").partition(".")[0]
            assert module in PASSES_KNOW, told(file, found)


@pytest.mark.parametrize("file", [*of("adaptc.cli"), ROOT / "adaptc/__init__.py", ROOT / "adaptc/__main__.py"])
def test_the_command_line_imports_nothing_heavy_at_once(file: Path) -> None:
    for found in imports(file):
        if found.at_once and not found.checked_only:
            assert not outside(found) or found.name.partition(".")[0] == "click", told(file, found)
            if found.name.startswith("adaptc."):
                light = ("adaptc.cli", "adaptc.runtime.errors", "adaptc.runtime.progress", "adaptc.__version__")
                assert found.name.startswith(light), told(file, found)


@pytest.mark.parametrize("file", of("adaptc"))
def test_only_tests_and_the_compiler_itself_know_the_parts(file: Path) -> None:
    """Nothing in the product reaches into tests or uses the short names of the linked folders."""
    for found in imports(file):
        assert found.name.partition(".")[0] not in {"tests", "passes", "runtime", "pickle"}, told(file, found)


@pytest.mark.parametrize("command", ["import adaptc", "import adaptc.__main__", "import adaptc.cli.compiling.compile"])
def test_nothing_heavy_is_loaded(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{command}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "adaptc" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_the_short_names_are_refused(name: str) -> None:
    """From the repository's root `import passes` would find the folder, and load a second copy of every pass."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"ImportError: import adaptc.{name}, not {name}\n")


@pytest.mark.parametrize("name", ALL)
def test_every_module_can_be_imported(name: str) -> None:
    if ALL[name] in SERVER_FILES:
        pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
    if name in RAY:
        pytest.importorskip("ray.serve", reason="the extra ray is not installed here")
    if name.startswith("adaptc.evaluation.harness"):
        pytest.importorskip("lm_eval", reason="the extra eval is not installed here")
    module = importlib.import_module(name)
    assert module.__name__ == name
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ALL[name].resolve()


def test_no_module_is_overlooked() -> None:
    on_disk = {file for folder in ("adaptc", "passes", "runtime") for file in real_files(ROOT / folder)}
    assert on_disk == set(ALL.values())


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    """A negative control: these rules are worth what `imports` finds."""
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch.fx\n"
        "from adaptc import runtime\n"
        "try:\n    import yaml, rich\nexcept ImportError:\n    pass\n"
        "class A:\n    import numpy as np\n"
        "def f():\n    if True:\n        from onnx.checker import check_model\n"
    )
    assert [(each.name, each.line, each.at_once, each.checked_only) for each in imports(file)] == [
        ("typing", 1, True, False),
        ("torch.fx", 3, True, True),
        ("adaptc.runtime", 4, True, False),
        ("yaml", 6, True, False),
        ("rich", 6, True, False),
        ("numpy", 10, True, False),
        ("onnx.checker", 13, False, False),
    ]


def real_files(folder: Path) -> Iterator[Path]:
    """Python files below a folder, links not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from real_files(path)
        elif path.suffix == ".py":
            yield path


@pytest.mark.parametrize("package", [name for name in TOP if name != "adaptc"])
def test_the_links_lead_to_the_real_folders(package: str) -> None:
    link = ROOT / package.replace(".", "/")
    assert link.is_symlink()
    assert link.resolve() == PACKAGES[package]
    assert not Path(link.readlink()).is_absolute()


@pytest.mark.parametrize("file", [pytest.param(file, id=name) for name, file in ALL.items()])
def test_files_stay_readable(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{lines} lines: about 300 is the aim; split it by what it does"


@pytest.mark.parametrize("room", PACKAGES)
def test_a_room_is_small_and_says_what_it_is(room: str) -> None:
    init = PACKAGES[room] / "__init__.py"
    assert len(modules(room)) - 1 <= 15, "more than 15 files: is it one idea?"
    said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
    assert said is not None
    assert said.split("\n")[0].endswith("."), "the first line is a sentence that says the room's idea"


def test_no_two_classes_have_one_name() -> None:
    """Whoever reads a name knows which noun it is."""
    homes: dict[str, list[str]] = {}
    for module, file in ALL.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "runtime").rglob("*.py")), ids=lambda file: file.stem)
def test_tests_of_the_runtime_need_no_compiler(file: Path) -> None:
    """`make oldest` runs them where only the runtime is installed."""
    for module in imports(file):
        known = not module.name.startswith("adaptc") or module.name.startswith("adaptc.runtime")
        assert known or not module.at_once, f"{file.relative_to(ROOT)}:{module.line}: imports {module.name}"
        assert module.name.partition(".")[0] != "torch" or not module.at_once, file
