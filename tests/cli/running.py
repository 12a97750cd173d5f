"""Running a command as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from adaptc.cli import COMPILING, main

WITHOUT_COMPILER = (
    "import importlib.abc, sys\n"
    "class Absent(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    f"        if name.partition('.')[0] in {sorted({*COMPILING} - {'onnxruntime'})}:\n"
    "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    "sys.meta_path.insert(0, Absent())\n"
    "from adaptc.__main__ import main\n"
    "main()\n"
)
"""Runs a command as where only the runtime, its command line and an engine are installed."""


def run(*arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=text, prog_name="adaptc")


def run_without_compiler(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, *arguments], capture_output=True, text=True, check=False
    )
