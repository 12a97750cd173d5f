"""Which files of a bundle a program opens: only those that the manifest names, whatever lies beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PLANTED = (
    "tokenizer/chat_template.jinja",
    "tokenizer/tokenizer_config.json",
    "tokenizer/additional_chat_templates/tool_use.jinja",
    "profile.json",
    "images.json",
    "graphs/onnxruntime.extra",
    "partitions/lm.json",
    "gates/lm.safetensors",
    "spec.json",
)
_WATCH = """
import sys, os
opened = set()
def hook(event, given):
    if event == "open" and not isinstance(given[0], int):
        opened.add(os.fsdecode(given[0]))
sys.addaudithook(hook)
"""


def opened_with_planted(bundle: Path, program: str) -> set[str]:
    """The files of a bundle that a program opens, all of them named by its manifest, though others lie beside them."""
    named = json.loads((bundle / "manifest.json").read_text())["files"]
    for name in (name for name in PLANTED if name not in named):
        (bundle / name).parent.mkdir(exist_ok=True, parents=True)
        (bundle / name).write_text("{{ 'planted' }}")
    done = subprocess.run(
        [sys.executable, "-c", f"{_WATCH}\n{program}\nprint(*opened, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (Path(name) for name in done.stdout.splitlines())
    below = {path.relative_to(bundle).as_posix() for path in paths if path.is_relative_to(bundle)}
    # The index of what `adaptc build` made is looked for; it is sealed by itself, and there is none here.
    assert below <= {*named, "manifest.json", "built.json"}, below - set(named)
    return below
