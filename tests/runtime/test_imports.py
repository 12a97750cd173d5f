from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
LATE = {"onnxruntime", "tokenizers", "jinja2", "typing_extensions", "cuda"}
ROOMS = {
    "text/jinja": {"jinja2"},
    "text/grammars.py": {"llguidance"},
    "server/scaling": {"ray"},
    "server": {"opentelemetry", "PIL", "starlette", "uvicorn"},
}
"""Rooms that are themselves imported late, where a request or a command needs them, and what they may import."""
HEAVY = [
    "torch",
    "starlette",
    "uvicorn",
    "llguidance",
    "transformers",
    "pydantic",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "jinja2",
    "adaptc.passes",
]


def modules_after(code: str) -> set[str]:
    """What is imported in a fresh interpreter that runs `code`."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_runtime_imports_nothing_heavy() -> None:
    found = modules_after("import adaptc.runtime")
    assert not found.intersection([*HEAVY, "numpy"])


def test_opening_a_session_imports_nothing_heavy() -> None:
    found = modules_after("from adaptc.runtime import Session, FakeEngine, Sampling, load, open_bundle")
    assert "adaptc.runtime.generation.session" in found
    assert not found.intersection(HEAVY)


def test_every_public_name_is_there() -> None:
    import adaptc.runtime

    for name in adaptc.runtime.__all__:
        assert getattr(adaptc.runtime, name).__name__ == name
    assert set(adaptc.runtime.__all__) <= set(dir(adaptc.runtime))
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = adaptc.runtime.nonsense


def test_the_folder_itself_cannot_be_imported() -> None:
    code = f"import sys; sys.path.insert(0, {str(RUNTIME.parent)!r}); import runtime"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ImportError: import adaptc.runtime, not runtime\n")


@pytest.mark.parametrize("file", sorted(RUNTIME.rglob("*.py")), ids=lambda file: str(file.relative_to(RUNTIME)))
def test_the_runtime_depends_on_numpy_alone(file: Path) -> None:
    """Engines and tokenizers are imported in functions, where they are needed, and rooms of `ROOMS` by their users."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            inside = name.startswith("adaptc.runtime")
            late = top in LATE and node not in tree.body
            late |= any(file.is_relative_to(RUNTIME / room) and top in tops for room, tops in ROOMS.items())
            assert inside or late or top == "numpy" or top in sys.stdlib_module_names, f"line {node.lineno}: {name}"
