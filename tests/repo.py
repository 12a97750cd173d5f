"""The repository as tests see it: where its files are, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

TOP = {"adaptc": ROOT / "adaptc", "adaptc.passes": ROOT / "passes", "adaptc.runtime": ROOT / "runtime"}
"""The packages at the top level and the real folders they come from."""


def _packages(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    yield name, folder
    for each in sorted(folder.iterdir()):
        if each.is_dir() and not each.is_symlink() and (each / "__init__.py").exists():
            yield from _packages(f"{name}.{each.name}", each)


PACKAGES = {name: folder for top in TOP.items() for name, folder in _packages(*top)}
"""Every package, rooms included, and its folder."""


def below(package: str) -> list[str]:
    """A package and all packages in it; the links in adaptc/ are not followed."""
    folder = PACKAGES[package]
    return [name for name, each in PACKAGES.items() if each == folder or folder in each.parents]


def modules(package: str) -> dict[str, Path]:
    """Modules of one package, its own subpackages not included: name -> file."""
    found = {}
    for file in sorted(PACKAGES[package].glob("*.py")):
        found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def all_modules() -> dict[str, Path]:
    """Every module: name -> file."""
    return {name: file for package in PACKAGES for name, file in modules(package).items()}


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        name: Its full name.
        line: Where it is imported.
        at_once: Imported when the file is, not in a function.
        checked_only: Imported for the type checker, never when running.
    """

    name: str
    line: int
    at_once: bool
    checked_only: bool


def imports(file: Path) -> Iterator[Import]:
    """Everything a file imports."""
    yield from _imports(ast.parse(file.read_text(encoding="utf-8")), at_once=True, checked_only=False)


def _imports(node: ast.AST, *, at_once: bool, checked_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_once, checked_only)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                # `from adaptc import runtime` imports a module, `from adaptc.errors import PassError` does not.
                name = f"{child.module}.{alias.name}" if child.module == "adaptc" else child.module or ""
                yield Import(name, child.lineno, at_once, checked_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), at_once=at_once, checked_only=True)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, at_once=at_once and not inside, checked_only=checked_only)
